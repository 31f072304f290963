"""Cutting tensors in place, with everything that has their shape, so that it can be undone (layer 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distiller_ng.core.masker import ParameterMasker
from distiller_ng.errors import GraphError, TargetError, did_you_mean
from distiller_ng.names import canonical_name
from distiller_ng.thinning.plan import Cut

__all__ = ["Journal", "check_cuts", "cut_tensors", "tensors_of"]


class Journal:
    """What was changed, so that :meth:`undo` can put everything back.

    As a context it does so by itself, whatever ends the block early: an error, or an interrupt.
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def note(self, undo: Callable[[], None]) -> None:
        """Remember how to take back a change that is about to be made."""
        self._undo.append(undo)

    def set_attribute(self, owner: Any, name: str, value: Any) -> None:
        """``owner.name = value``, to be undone."""
        before = getattr(owner, name)
        self.note(lambda: setattr(owner, name, before))
        setattr(owner, name, value)

    def set_data(self, tensor: Tensor, value: Tensor) -> None:
        """Give a tensor other data, of any shape; the tensor object stays the same."""
        before = tensor.data
        self.note(lambda: _replace_data(tensor, before))
        _replace_data(tensor, value)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind is not None:
            self.undo()

    def undo(self) -> None:
        """Take everything back, last change first."""
        while self._undo:
            self._undo.pop()()


def _replace_data(tensor: Tensor, value: Tensor) -> None:
    """``tensor.data = value``, where autograd forgets the shape it knew.

    While a graph of an earlier step is alive (the loop still holds its loss), the node that accumulates the gradient
    lives on and checks the old shape; torch makes a new one only when the type changes in between.
    """
    other = torch.float32 if tensor.dtype is torch.float64 else torch.float64
    tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = value


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by canonical name, shared ones under each of their names."""
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {canonical_name(name): tensor for name, tensor in named}


def cut_tensors(
    model: nn.Module,
    cuts: Iterable[Cut],
    journal: Journal,
    *,
    optimizers: Sequence[Optimizer] = (),
    masks: Mapping[str, ParameterMasker] | None = None,
) -> None:
    """Remove the entries from parameters and buffers, their gradients, masks and optimizer state, in place.

    Parameters stay the same objects. Raises :class:`GraphError` where a tensor does not have the size the plan was made
    for, or an optimizer keeps state of a shape that cannot be followed; :class:`TargetError` for a tensor the model
    does not have. What was done until then is in ``journal``.
    """
    _refuse_joint_state(optimizers)
    tensors = tensors_of(model)
    by_tensor: dict[str, list[Cut]] = {}
    for cut in check_cuts(model, cuts):
        by_tensor.setdefault(cut.tensor, []).append(cut)
    for name, own in by_tensor.items():
        tensor = tensors[name]
        _cut_states(name, tensor, own, optimizers, journal)
        masker = masks.get(name) if masks is not None else None
        if masker is not None:
            for cut in own:
                _cut_masker(masker, cut, journal)
        _cut_tensor(tensor, own, journal)


def _refuse_joint_state(optimizers: Sequence[Optimizer]) -> None:
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.LBFGS) and any(optimizer.state.values()):
            raise GraphError(
                "LBFGS keeps one history of all parameters together, which cannot be thinned with them: thin first "
                "and make a new optimizer"
            )


def check_cuts(model: nn.Module, cuts: Iterable[Cut]) -> tuple[Cut, ...]:
    """The cuts, where they fit the model; raises :class:`TargetError` or :class:`GraphError` where one does not."""
    tensors, checked = tensors_of(model), tuple(cuts)
    for cut in checked:
        tensor = tensors.get(cut.tensor)
        if tensor is None:
            nearest = did_you_mean(cut.tensor, tensors)
            raise TargetError(f"the plan cuts {cut.tensor!r}, which the model does not have. {nearest}")
        if tensor.dim() <= cut.dim or tensor.shape[cut.dim] != cut.size:
            raise GraphError(
                f"the plan was made for {cut.tensor!r} with {cut.size} entries in dimension {cut.dim}; the model's has "
                f"shape {list(tensor.shape)}. Plan again on this model"
            )
    return checked


def _cut_tensor(tensor: Tensor, cuts: Sequence[Cut], journal: Journal) -> None:
    gradient = tensor.grad
    if gradient is not None:
        journal.note(lambda: setattr(tensor, "grad", gradient))
        tensor.grad = None
    journal.set_data(tensor, _without(tensor.data, cuts))
    if gradient is not None:
        journal.note(lambda: setattr(tensor, "grad", None))
        tensor.grad = _without(gradient, cuts)


def _without(tensor: Tensor, cuts: Sequence[Cut]) -> Tensor:
    """The tensor without the cut entries, in the memory format it has."""
    result = tensor
    for cut in cuts:
        result = result.index_select(cut.dim, torch.tensor(cut.kept, device=tensor.device))
    if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        return result.contiguous(memory_format=torch.channels_last)
    return result.contiguous()


def _cut_states(
    name: str, tensor: Tensor, cuts: Sequence[Cut], optimizers: Sequence[Optimizer], journal: Journal
) -> None:
    for optimizer in optimizers:
        state: dict[str, Any] = optimizer.state.get(tensor) or {}
        for key, value in list(state.items()):
            if not isinstance(value, Tensor) or value.numel() == 1:
                continue
            if not _follows(value, tensor):
                raise GraphError(
                    f"{type(optimizer).__name__} keeps {key!r} of shape {list(value.shape)} for {name!r} of shape "
                    f"{list(tensor.shape)}, which cannot be thinned with it: thin first and make a new optimizer"
                )
            journal.note(partial(state.__setitem__, key, value))
            state[key] = _without(value, [cut for cut in cuts if value.shape[cut.dim] == cut.size])


def _follows(value: Tensor, tensor: Tensor) -> bool:
    """Whether state has the parameter's shape, or size 1 where it is a mean along a dimension (Adafactor's)."""
    return value.dim() == tensor.dim() and all(a in (1, b) for a, b in zip(value.shape, tensor.shape, strict=True))


def _cut_masker(masker: ParameterMasker, cut: Cut, journal: Journal) -> None:
    before = masker.layout()
    journal.note(lambda: masker.restore_layout(before))
    masker.select(cut.dim, cut.kept)
