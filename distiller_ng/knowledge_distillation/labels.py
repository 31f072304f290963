"""The labels of a step, for the teacher's own loss: from the criterion, from the user, or from the loss's graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from distiller_ng.errors import ArgumentError, LifecycleError
from distiller_ng.knowledge_distillation.capture import Call
from distiller_ng.knowledge_distillation.structures import tensors_in

__all__ = ["LabelSource"]

_REACH = 64  # nodes of the loss's graph to look at: the criterion is at its very end
_NEEDED = (
    "the teacher's weight needs the labels, which the policy could not find: pass the loss function, "
    "KnowledgeDistillationPolicy(..., criterion=nn.CrossEntropyLoss()), the one the training loop calls; or call "
    "policy.set_labels(labels) in each step; or set the teacher's weight to 0"
)


class LabelSource:
    """Finds the labels of each step and computes other outputs' loss against them.

    ``criterion``: the training loop's loss function. A module is watched while a step is open, so that it is known what
    it was called with; a plain function needs :meth:`give`. Without one the labels are read from the graph of a loss
    that ``cross_entropy`` or ``nll_loss`` computed. Raises :class:`LifecycleError` where there are none.
    """

    def __init__(self, criterion: Callable[..., Tensor] | None) -> None:
        if criterion is not None and not callable(criterion):
            raise ArgumentError(
                f"criterion is a loss function or module, got {type(criterion).__name__}", argument=("criterion",)
            )
        self.criterion = criterion
        self._given: Any = None
        self._seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._is_open = False
        self._handle: RemovableHandle | None = None

    def install(self) -> None:
        """Watch the criterion; again does nothing."""
        if self._handle is None and isinstance(self.criterion, nn.Module):
            self._handle = self.criterion.register_forward_hook(self._note, with_kwargs=True)

    def remove(self) -> None:
        """Stop watching."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self.close()

    def open(self) -> None:
        """A step begins."""
        self._given, self._seen, self._is_open = None, [], True

    def close(self) -> None:
        """A step is over: forget its labels."""
        self._given, self._seen, self._is_open = None, [], False

    def give(self, labels: Any) -> None:
        """The labels of this step."""
        self._given = labels

    def loss(self, call: Call, taught: Any, user_loss: Tensor) -> Tensor:
        """The loss of the teacher's output ``taught`` against the labels of one pass, without gradient."""
        with torch.no_grad():
            return self.live_loss(call, taught, user_loss)

    def live_loss(self, call: Call, taught: Any, user_loss: Tensor) -> Tensor:
        """The same with gradients, for a model that is trained too."""
        if self._given is not None:
            criterion = functional.cross_entropy if self.criterion is None else self.criterion
            with self._silence():
                return criterion(taught, self._given)
        if self._seen and self.criterion is not None:
            args, kwargs = self._matching(call)
            with self._silence():
                return self.criterion(*_replaced(args, taught), **kwargs)
        if self.criterion is None:
            found = _in_graph(user_loss)
            if found is not None:
                return found(taught)
        raise LifecycleError(_NEEDED)

    def _matching(self, call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the criterion was called with for this pass: with one of its outputs, else last."""
        outputs = {id(tensor) for tensor in tensors_in(call.output)}
        for args, kwargs in self._seen:
            if any(id(tensor) in outputs for tensor in tensors_in(args)):
                return args, kwargs
        return self._seen[-1]

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._is_open:
            self._seen.append((args, kwargs))

    @contextlib.contextmanager
    def _silence(self) -> Iterator[None]:
        was, self._is_open = self._is_open, False
        try:
            yield
        finally:
            self._is_open = was


def _replaced(args: Sequence[Any], taught: Any) -> tuple[Any, ...]:
    if not args:
        raise LifecycleError("the criterion was called without its first argument by position: " + _NEEDED)
    return (taught, *args[1:])


def _in_graph(loss: Tensor) -> Callable[[Tensor], Tensor] | None:
    """The negative log likelihood at the end of ``loss``'s graph, as a function of other logits; None without one."""
    waiting, seen = [loss.grad_fn], 0
    while waiting and seen < _REACH:
        node = waiting.pop(0)
        seen += 1
        if node is None:
            continue
        if node.name() in ("NllLossBackward0", "NllLoss2DBackward0"):
            saved: Any = node
            target, weight = saved._saved_target, saved._saved_weight
            ignored = _signed(saved._saved_ignore_index)
            return lambda logits: functional.cross_entropy(logits, target, weight=weight, ignore_index=ignored)
        waiting += [following for following, _ in node.next_functions]
    return None


def _signed(value: int) -> int:
    """Saved numbers below 0 come back as unsigned ones of 64 bits."""
    return value - (1 << 64) if value >= 1 << 63 else value
