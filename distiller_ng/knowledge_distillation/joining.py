"""Parameters that a distiller trains beside the model: they join its optimizer, and replicas keep them equal."""

from __future__ import annotations

import weakref
from typing import Protocol

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from distiller_ng.knowledge_distillation._optimizer import average_gradients_, broadcast_, is_replicated, join_group_

__all__ = ["OptimizerLink", "PeerParameters", "TrainedBeside"]


class TrainedBeside(Protocol):
    """Something with parameters of its own: projections, or a peer."""

    has_changes: bool

    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        ...

    def join_(self, optimizer: Optimizer) -> None:
        """Give the optimizer those it does not have, in place."""
        ...


class PeerParameters:
    """The parameters of a whole model that is trained beside the scheduler's."""

    def __init__(self, peer: nn.Module) -> None:
        self._peer = peer
        self.has_changes = True

    def parameters(self) -> list[nn.Parameter]:
        """Those with ``requires_grad``."""
        return [parameter for parameter in self._peer.parameters() if parameter.requires_grad]

    def join_(self, optimizer: Optimizer) -> None:
        """As a group of their own."""
        self.has_changes = False
        join_group_(optimizer, [(f"peer.{n}", p) for n, p in self._peer.named_parameters() if p.requires_grad])

    def equalize_(self) -> None:
        """Rank 0's weights and buffers on every rank, in place: each process made its own peer."""
        broadcast_([*self._peer.parameters(), *self._peer.buffers()])


class OptimizerLink:
    """Gives parameters to the optimizer that trains the student as soon as both are there.

    They lie outside of the student's DistributedDataParallel: :meth:`average` makes their gradients equal on all ranks,
    and is called before each optimizer step even where a loop leaves out the hook for it.
    """

    def __init__(self, source: TrainedBeside) -> None:
        self._source = source
        self._optimizer: weakref.ref[Optimizer] | None = None
        self._handle: RemovableHandle | None = None
        self._is_averaged = False

    def join(self, optimizer: Optimizer | None = None) -> None:
        """Give what is new to ``optimizer``, or to the one that is known already."""
        known = None if self._optimizer is None else self._optimizer()
        if optimizer is None:
            optimizer = known
        elif optimizer is not known:
            self.remove()
            self._optimizer = weakref.ref(optimizer)
            self._source.has_changes = True
        if optimizer is None or not self._source.has_changes:
            return
        self._source.join_(optimizer)
        if self._handle is None and is_replicated():
            self._handle = optimizer.register_step_pre_hook(lambda *_: self.average())

    def begin_step(self) -> None:
        """Gradients of this minibatch are not averaged yet."""
        self._is_averaged = False

    def average(self) -> None:
        """Average the gradients over all ranks, once a minibatch."""
        if not self._is_averaged:
            self._is_averaged = True
            average_gradients_(self._source.parameters())

    def forget_gradients(self) -> None:
        """After a step: a loop that calls ``model.zero_grad()`` does not reach these parameters."""
        for parameter in self._source.parameters():
            parameter.grad = None

    def remove(self) -> None:
        """Take the hook off the optimizer; the group stays, for learning-rate schedules count groups."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
