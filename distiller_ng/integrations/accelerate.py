"""Schedules in loops that use Hugging Face's accelerate (layer 5).

https://huggingface.co/docs/accelerate
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from torch import Tensor, nn

from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.integrations._schedule import refuse_engine, refuse_structure_in_ddp

__all__ = ["AcceleratedLoop"]

B = TypeVar("B")
_OWN_ENGINES = ("DEEPSPEED", "FSDP", "MEGATRON_LM")


class AcceleratedLoop:
    """The scheduler's short form for a model that an ``Accelerator`` prepared::

        model, optimizer = network(), ...
        scheduler = distiller_ng.file_config(model, optimizer, "schedule.yaml")     # before prepare()
        prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        loop = AcceleratedLoop(accelerator, scheduler, prepared)
        for epoch in scheduler.epochs(20):
            for inputs, labels in loop.minibatches(loader):
                loop.backward(criterion(prepared(inputs), labels))
                optimizer.step()
                optimizer.zero_grad()

    Accumulation is the accelerator's (``gradient_accumulation_steps``): the body of ``minibatches`` runs inside
    ``accelerator.accumulate``, and ``backward`` takes the minibatch's own loss. Mixed precision is followed. In loops
    that call the hooks themselves nothing is needed: ``accelerator.backward(scheduler.before_backward_pass(...))``.

    Raises :class:`LifecycleError` for DeepSpeed, FSDP and Megatron, naming it (their engines own the optimizer step),
    and for schedules that change the structure of a model in DistributedDataParallel.
    """

    def __init__(self, accelerator: Any, scheduler: CompressionScheduler, model: nn.Module) -> None:
        engine = str(getattr(accelerator.distributed_type, "name", accelerator.distributed_type))
        refuse_engine("accelerator", engine if engine in _OWN_ENGINES else None)
        if isinstance(model, nn.parallel.DistributedDataParallel):
            refuse_structure_in_ddp("accelerator", scheduler)
        self.accelerator, self.scheduler, self.model = accelerator, scheduler, model

    def minibatches(self, loader: Iterable[B], *, length: int | None = None) -> Iterator[B]:
        """The batches of the prepared ``loader`` with the scheduler's hooks around each, as
        :meth:`CompressionScheduler.minibatches`.
        """
        steps = int(self.accelerator.gradient_accumulation_steps)
        for batch in self.scheduler.minibatches(loader, accumulate=steps, length=length):
            with self.accelerator.accumulate(self.model):
                yield batch

    def backward(self, loss: Tensor) -> Tensor:
        """``accelerator.backward`` of the loss with what policies add; what was differentiated, detached."""
        return self.scheduler.backward(loss, scaler=_Through(self.accelerator))


class _Through:
    """Stands where a GradScaler would: backward goes through the accelerator, which scales and divides itself."""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.loss: Tensor | None = None

    def scale(self, loss: Tensor) -> _Through:
        """Take the loss, which the scheduler has divided by the accumulation steps."""
        self.loss = loss * self.accelerator.gradient_accumulation_steps
        return self

    def backward(self) -> None:
        """Differentiate it."""
        self.accelerator.backward(self.loss)
