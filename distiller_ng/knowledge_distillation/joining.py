"""Parameters that a distiller trains beside the model: they join its optimizer, and replicas keep them equal."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from distiller_ng.knowledge_distillation.projections import Projections

__all__ = ["OptimizerLink", "average_gradients_"]


class OptimizerLink:
    """Gives projections to the optimizer that trains the student, as a group of their own, as soon as both are there.

    Projections lie outside of DistributedDataParallel: :meth:`average` makes their gradients equal on all ranks, and is
    called before each optimizer step even where a loop leaves out the hook for it.
    """

    def __init__(self, projections: Projections, parameters: Callable[[], Sequence[nn.Parameter]]) -> None:
        self._projections = projections
        self._parameters = parameters
        self._optimizer: weakref.ref[Optimizer] | None = None
        self._handle: RemovableHandle | None = None
        self._is_averaged = False

    def join(self, optimizer: Optimizer | None = None) -> None:
        """Give what is new to ``optimizer``, or to the one that is known already."""
        known = None if self._optimizer is None else self._optimizer()
        if optimizer is None:
            optimizer = known
        elif optimizer is not known:
            self._optimizer = weakref.ref(optimizer)
            self._projections.has_changes = True
        if optimizer is None or not self._projections.has_changes:
            return
        self._projections.join_(optimizer)
        if self._handle is None and self._parameters() and _is_replicated():
            self._handle = optimizer.register_step_pre_hook(lambda *_: self.average())

    def begin_step(self) -> None:
        """Gradients of this minibatch are not averaged yet."""
        self._is_averaged = False

    def average(self) -> None:
        """Average the gradients over all ranks, once a minibatch."""
        if not self._is_averaged:
            self._is_averaged = True
            average_gradients_(self._parameters())

    def forget_gradients(self) -> None:
        """After a step: a loop that calls ``model.zero_grad()`` does not reach these parameters."""
        for parameter in self._parameters():
            parameter.grad = None

    def remove(self) -> None:
        """Take the hook off the optimizer; the group stays, for learning-rate schedules count groups."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


def average_gradients_(parameters: Sequence[nn.Parameter]) -> None:
    """Average gradients over all ranks, in place. Twice changes nothing; a missing gradient counts as zeros."""
    if not parameters or not _is_replicated():
        return
    ranks = torch.distributed.get_world_size()
    for parameter in parameters if ranks > 1 else ():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad.div_(ranks)


def _is_replicated() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
