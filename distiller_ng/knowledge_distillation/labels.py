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

__all__ = ["NEEDED", "LabelSource"]

_REACH = 64  # nodes of the loss's graph to look at: the criterion is at its very end
NEEDED = (
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

    def loss(self, call: Call, taught: Any, user_loss: Tensor, *, is_one_of_several: bool = False) -> Tensor | None:
        """The loss of the teacher's output ``taught`` against the labels of one pass, without gradient.

        None for the pass without labels where it ``is_one_of_several``.
        """
        with torch.no_grad():
            return self.live_loss(call, taught, user_loss, is_one_of_several=is_one_of_several)

    def live_loss(
        self, call: Call, taught: Any, user_loss: Tensor, *, is_one_of_several: bool = False
    ) -> Tensor | None:
        """The same with gradients, for a model that is trained too."""
        if self._given is not None:
            criterion = functional.cross_entropy if self.criterion is None else self.criterion
            with self._silence():
                return criterion(taught, self._given)
        if self._seen and self.criterion is not None:
            seen = self._matching(call, is_one_of_several)
            if seen is None:
                return None
            args, kwargs = seen
            with self._silence():
                return self.criterion(*_replaced(args, taught), **kwargs)
        if self.criterion is None:
            nodes = _likelihoods(user_loss)
            if nodes and is_one_of_several:
                ends = [tensor.grad_fn for tensor in tensors_in(call.output) if tensor.grad_fn is not None]
                nodes = [node for node in nodes if _reaches(node, ends)]
                if not nodes:
                    return None
            if nodes:
                return _likelihood(nodes[0], taught)
        raise LifecycleError(NEEDED)

    def _matching(self, call: Call, is_one_of_several: bool) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """What the criterion was called with for this pass: with one of its outputs, else last if it is the only."""
        outputs = {id(tensor) for tensor in tensors_in(call.output)}
        for args, kwargs in self._seen:
            if any(id(tensor) in outputs for tensor in tensors_in(args)):
                return args, kwargs
        return None if is_one_of_several else self._seen[-1]

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
        raise LifecycleError("the criterion was called without its first argument by position: " + NEEDED)
    return (taught, *args[1:])


def _likelihoods(loss: Tensor) -> list[Any]:
    """The negative log likelihoods at the end of ``loss``'s graph, the nearest first."""
    waiting, seen, found = [loss.grad_fn], 0, []
    while waiting and seen < _REACH:
        node = waiting.pop(0)
        seen += 1
        if node is None:
            continue
        if node.name() in ("NllLossBackward0", "NllLoss2DBackward0"):
            found.append(node)
        else:
            waiting += [following for following, _ in node.next_functions]
    return found


def _reaches(node: Any, ends: Sequence[Any]) -> bool:
    """Whether what ``node`` was computed from are outputs of the pass with these ``ends``."""
    waiting, seen = [node], 0
    while waiting and seen < _REACH:
        here = waiting.pop(0)
        seen += 1
        if any(here is end for end in ends):
            return True
        waiting += [] if here is None else [following for following, _ in here.next_functions]
    return False


def _likelihood(node: Any, logits: Tensor) -> Tensor:
    """The mean of the same likelihood of other logits."""
    if len(node._saved_target) != len(logits):
        raise LifecycleError(
            f"the teacher's weight needs the labels of each pass: this one has {len(logits)} samples, the loss "
            f"{len(node._saved_target)} labels. Compute the loss of each pass, or run the model once on all samples"
        )
    ignored = _signed(node._saved_ignore_index)
    return functional.cross_entropy(logits, node._saved_target, weight=node._saved_weight, ignore_index=ignored)


def _signed(value: int) -> int:
    """Saved numbers below 0 come back as unsigned ones of 64 bits."""
    return value - (1 << 64) if value >= 1 << 63 else value
