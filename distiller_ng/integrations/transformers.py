"""Schedules in the Trainer of Hugging Face's transformers (layer 5).

https://huggingface.co/docs/transformers/main_classes/trainer
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.core.summary import CompressionSummary
from distiller_ng.errors import ArgumentError, CheckpointError, LifecycleError
from distiller_ng.integrations._schedule import (
    Schedule,
    checked_monitor,
    compressed_module,
    end_saved_epoch,
    load_schedule,
    make_structure_again,
    refuse_engine,
    refuse_structure_in_ddp,
    sets_rates,
    structure_of,
)
from distiller_ng.ops.files import write_tensors_atomically
from distiller_ng.ops.optional import require

__all__ = ["CompressionTrainerCallback", "compress_trainer"]

logger = logging.getLogger(__name__)

_transformers = require("transformers", "transformers", "the transformers callback")
_FILE = "distiller_ng.pt"


def compress_trainer(
    trainer: Any,
    schedule: Schedule,
    *,
    module: str | None = None,
    monitor: Mapping[str, str] | None = None,
    **options: Any,
) -> CompressionTrainerCallback:
    """Make ``trainer`` train by a schedule; call it after the trainer was made and before ``train()``::

        trainer = Trainer(model=model, args=arguments, train_dataset=texts)
        compression = compress_trainer(trainer, "schedule.yaml")
        trainer.train()
        print(compression.summary)

    ``schedule``: a file, a dictionary, or a function ``(model, optimizer) -> CompressionScheduler``. ``module``: the
    submodule that is compressed (``"bert"``), whose names the schedule has. ``monitor``: evaluation metrics for
    learning rates that follow them, ``{"min": "eval_loss"}``. ``options`` go to :func:`distiller_ng.file_config`.

    The trainer's optimizer is made now, and all hooks are driven: losses that policies add reach
    ``accelerator.backward``, accumulation and mixed precision are followed, and every checkpoint of the trainer holds
    the scheduler's state, from which ``train(resume_from_checkpoint=...)`` goes on. A schedule with learning rates
    replaces the trainer's own.

    Raises what loading raises, and :class:`LifecycleError` for trainers that use DeepSpeed or FSDP (their engines own
    the optimizer step), for those that have a schedule already, and for schedules that change the model's structure in
    several processes.
    """
    refuse_engine("trainer", _engine(trainer))
    if any(isinstance(callback, CompressionTrainerCallback) for callback in trainer.callback_handler.callbacks):
        raise LifecycleError("compress_trainer was called for this trainer already: one trainer has one schedule")
    if trainer.optimizer is None:
        trainer.create_optimizer()
    scheduler = load_schedule(schedule, compressed_module(trainer.model, module), trainer.optimizer, **options)
    if trainer.args.world_size > 1:
        refuse_structure_in_ddp("trainer", scheduler)
    scheduler.accumulation_steps = trainer.args.gradient_accumulation_steps
    callback = CompressionTrainerCallback(scheduler, monitor, trainer)
    if sets_rates(scheduler):
        if trainer.lr_scheduler is not None:
            logger.warning("the schedule sets learning rates: the trainer's own lr_scheduler is left out")
        trainer.lr_scheduler = _KeepingRates(trainer.optimizer)
    if trainer.args.load_best_model_at_end:
        logger.warning(
            "load_best_model_at_end may bring back weights from before they were pruned, and puts the last masks on "
            "them; where layers were cut out they do not fit at all. Rather keep the last checkpoint"
        )
    _wrap(trainer, "training_step", callback.around_training_step)
    _wrap(trainer, "train", callback.around_train)
    _wrap(trainer.accelerator, "backward", callback.around_backward)
    trainer.add_callback(callback)
    return callback


def _engine(trainer: Any) -> str | None:
    """What owns the trainer's steps, by its arguments or by accelerate's configuration; None where nothing does."""
    for name in ("deepspeed", "fsdp"):
        if getattr(trainer.args, name, None) or getattr(trainer, f"is_{name}_enabled", False):
            return name
    return None


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Let ``owner.name(...)`` be ``around(its own method, ...)``."""
    own = getattr(owner, name)
    setattr(owner, name, lambda *args, **kwargs: around(own, *args, **kwargs))


class _KeepingRates(torch.optim.lr_scheduler.LRScheduler):
    """Leaves the learning rates as the schedule sets them."""

    def get_lr(self) -> list[float | Tensor]:
        return [group["lr"] for group in self.optimizer.param_groups]


class CompressionTrainerCallback(_transformers.TrainerCallback):  # type: ignore[name-defined, misc]
    """What :func:`compress_trainer` adds to a trainer. ``scheduler`` is its :class:`CompressionScheduler`, ``summary``
    what was achieved, once training ended.
    """

    def __init__(self, scheduler: CompressionScheduler, monitor: Mapping[str, str] | None, trainer: Any) -> None:
        self.scheduler, self.monitor, self._trainer = scheduler, checked_monitor(monitor), trainer
        self.summary: CompressionSummary | None = None
        self._optimizer: Optimizer | None = scheduler.optimizer
        self._epoch, self._minibatch, self._total = -1, 0, 0
        self._is_epoch_open = False

    @property
    def _position(self) -> tuple[int, int, int]:
        return self._epoch, self._minibatch, self._total

    # -- around the trainer's own methods ------------------------------------------------------------------------------

    def around_train(self, train: Callable[..., Any], resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Restore the scheduler from the checkpoint that training resumes from."""
        arguments = train.__self__.args  # type: ignore[attr-defined]
        path = resume_from_checkpoint
        if path is True:
            path = require("transformers.trainer_utils", "transformers", "resuming").get_last_checkpoint(
                arguments.output_dir
            )
        if path:
            self._restore(Path(path, _FILE))
        return train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _restore(self, path: Path) -> None:
        if not path.exists():
            raise CheckpointError(f"{path.parent} was saved without a schedule: it has no {path.name}")
        saved = torch.load(path, weights_only=True)
        if "structure" in saved:
            make_structure_again(saved["structure"], self.scheduler, self._trainer.model, self._optimizer)
        self.scheduler.load_state_dict(saved)
        self._epoch, self._is_epoch_open = -1, False

    def around_training_step(self, training_step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``on_minibatch_begin`` before the forward pass."""
        self.scheduler.on_minibatch_begin(*self._position, self._optimizer)
        return training_step(*args, **kwargs)

    def around_backward(self, backward: Callable[..., Any], loss: Tensor, **kwargs: Any) -> Any:
        """``before_backward_pass``: backward on the loss with what policies add."""
        # The last step of an epoch may have fewer minibatches, by whose number the trainer has divided the loss.
        here = getattr(self._trainer, "current_gradient_accumulation_steps", None) or self.scheduler.accumulation_steps
        share = here / self.scheduler.accumulation_steps
        total = self.scheduler.before_backward_pass(*self._position, loss * share, self._optimizer)
        if not isinstance(total, Tensor):  # only where loss components are asked for
            total = total.overall_loss
        return backward(total / share, **kwargs)

    # -- the trainer's events ------------------------------------------------------------------------------------------

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """``on_epoch_begin``."""
        self._close_epoch({})
        try:
            self._total = len(kwargs["train_dataloader"])
        except TypeError as error:
            raise LifecycleError("schedules need the number of minibatches: the dataset must have a length") from error
        done = float(state.epoch or 0.0) + 1e-6  # epochs are sums of fractions
        if int(done) <= self._epoch:
            raise LifecycleError(
                f"train() begins again at epoch {int(done)}, but the schedule has seen epoch {self._epoch}: give "
                "num_train_epochs for all of it, train(resume_from_checkpoint=...), or a new trainer its own schedule"
            )
        self._epoch = int(done)
        self._minibatch = round((done - self._epoch) * self._total)
        end_saved_epoch(self.scheduler, self._epoch, self.monitor)
        self.scheduler.on_epoch_begin(self._epoch, self._optimizer)
        self._is_epoch_open = True

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """``before_parameter_optimization``."""
        self.scheduler.before_parameter_optimization(*self._position, self._optimizer)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """``on_minibatch_end`` of a minibatch that was accumulated."""
        self.scheduler.on_minibatch_end(*self._position, self._optimizer)
        self._minibatch += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """``on_minibatch_end`` of a minibatch that made a step."""
        self.on_substep_end(args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """``on_epoch_end``, unless a metric of the evaluation that follows is wanted."""
        if not self.monitor:
            self._close_epoch({})

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """``on_epoch_end`` with the metrics, after the evaluation at the end of an epoch."""
        if self._minibatch >= self._total:
            self._close_epoch(kwargs.get("metrics", {}))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The scheduler's state, beside the trainer's."""
        folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if state.is_world_process_zero and folder.is_dir():
            structure = structure_of(self.scheduler, self._trainer.model, self._optimizer)
            write_tensors_atomically(folder / _FILE, {**self.scheduler.state_dict(), "structure": structure})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """``finish``."""
        if self._minibatch >= self._total or not self.monitor:
            self._close_epoch({})  # a metric that a broken-off epoch has not got is not missed
        self.summary = self.scheduler.finish()

    def _close_epoch(self, metrics: Mapping[str, Any]) -> None:
        if not self._is_epoch_open:
            return
        missing = [name for name in self.monitor.values() if name not in metrics]
        if missing and not metrics:
            raise LifecycleError(
                f"monitor wants {missing[0]!r} at the end of every epoch, but no evaluation ran after epoch "
                f"{self._epoch}: give eval_strategy='epoch' in the TrainingArguments"
            )
        if missing:
            raise ArgumentError(
                f"monitor: the evaluation has no {missing[0]!r}, only {', '.join(map(repr, metrics))}",
                argument=("monitor",),
            )
        wanted = {kind: float(metrics[name]) for kind, name in self.monitor.items() if name in metrics}
        self.scheduler.on_epoch_end(self._epoch, self._optimizer, metrics=wanted or None)
        self._is_epoch_open = False
