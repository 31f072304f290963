"""Schedules in Lightning: a callback that drives every hook (layer 5).

https://lightning.ai/docs/pytorch/stable/extensions/callbacks.html
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.core.summary import CompressionSummary
from distiller_ng.errors import ArgumentError, LifecycleError
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
from distiller_ng.ops.optional import require

__all__ = ["CompressionCallback"]

logger = logging.getLogger(__name__)

_OWN_ENGINES = ("DeepSpeedStrategy", "FSDPStrategy", "ModelParallelStrategy")

_lightning = require("lightning.pytorch", "lightning", "the Lightning callback")


class CompressionCallback(_lightning.Callback):  # type: ignore[name-defined, misc]
    """Trains a LightningModule by a schedule, with its losses, masks and learning rates::

        trainer = L.Trainer(max_epochs=20, callbacks=[CompressionCallback("schedule.yaml")])
        trainer.fit(module, loader)
        print(trainer.callbacks[0].summary)

    ``schedule``: a file, a dictionary, or a function ``(model, optimizer) -> CompressionScheduler``. ``module``: the
    attribute of the LightningModule that is compressed (``"model"``), so that the schedule has that model's names;
    without it names begin at the LightningModule. ``monitor``: logged metrics for learning rates that follow
    validation, ``{"min": "val_loss", "max": "val_acc"}``. ``options`` go to :func:`distiller_ng.file_config`
    (``example_inputs``, ``teachers``, ...).

    The schedule is loaded before the trainer restores a checkpoint or moves the model, with the optimizer that
    ``configure_optimizers`` makes (it is called once). A schedule with learning rates replaces the module's own
    learning-rate schedulers. The state is part of Lightning's checkpoints. Accumulation and mixed precision are
    followed. ``scheduler`` is the :class:`CompressionScheduler` once ``fit`` began, ``summary`` what it achieved when
    it ended. A further ``fit`` of the same trainer goes on with the schedule, that of a new trainer begins it again.

    ``fit`` raises what loading raises; :class:`LifecycleError` for manual optimization (call the scheduler's hooks
    yourself there), several optimizers, loaders without a length, the DeepSpeed, FSDP and model-parallel strategies,
    whose engines own the optimizer's step, and schedules that change the model's structure below DDP.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        module: str | None = None,
        monitor: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.schedule, self.module, self.options = schedule, module, options
        self.monitor = checked_monitor(monitor)
        self.scheduler: CompressionScheduler | None = None
        self.summary: CompressionSummary | None = None
        self._optimizer: Optimizer | None = None
        self._epoch = -1
        self._position = (-1, -1, 0)
        self._restore_methods: list[Callable[[], None]] = []
        self._whole: Any = None

    # -- before training -----------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Load the schedule; the model and the optimizer are the real ones, before anything was restored."""
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise LifecycleError(
                "the callback cannot drive manual optimization: call the scheduler's hooks in training_step"
            )
        kinds = {kind.__name__ for kind in type(trainer.strategy).__mro__}
        refuse_engine("trainer", next((name for name in _OWN_ENGINES if name in kinds), None))
        target = compressed_module(pl_module, self.module)
        configured = pl_module.configure_optimizers()
        self._optimizer, self._whole = _only_optimizer(configured), pl_module
        if self.scheduler is not None and self.scheduler.model is target and trainer.current_epoch > 0:
            self.scheduler.attach(self._optimizer)  # the trainer goes on after an earlier fit, with a new optimizer
        else:
            self.scheduler = load_schedule(self.schedule, target, self._optimizer, **self.options)
        if "DDPStrategy" in kinds:
            refuse_structure_in_ddp("trainer", self.scheduler)
        if sets_rates(self.scheduler) and _has_rates(configured):
            logger.warning("the schedule sets learning rates: configure_optimizers' lr_scheduler is left out")
            configured = self._optimizer
        self._replace_method(pl_module, "configure_optimizers", lambda: configured)
        self._replace_method(pl_module, "on_load_checkpoint", self._before_weights(pl_module.on_load_checkpoint))

    def _replace_method(self, pl_module: Any, name: str, method: Callable[..., Any]) -> None:
        """Until ``fit`` begins: Lightning, which calls it later, must get what the schedule knows."""
        own = pl_module.__dict__.get(name)
        setattr(pl_module, name, method)

        def restore() -> None:
            if own is None:
                pl_module.__dict__.pop(name, None)
            else:
                setattr(pl_module, name, own)

        self._restore_methods.append(restore)

    def _before_weights(self, own: Callable[..., None]) -> Callable[[dict[str, Any]], None]:
        """Make structural changes again before Lightning, which restores callbacks last, loads the weights."""

        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            own(checkpoint)
            saved = checkpoint.get("callbacks", {}).get(self.state_key, {})
            if "structure" in saved:
                make_structure_again(saved["structure"], self._scheduler, self._whole, self._optimizer)

        return on_load_checkpoint

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Lightning has its optimizer now."""
        self._give_back()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave nothing on the module, however training ended."""
        self._give_back()

    def _give_back(self) -> None:
        while self._restore_methods:
            self._restore_methods.pop()()

    # -- the loop ------------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """``on_epoch_begin``."""
        end_saved_epoch(self._scheduler, trainer.current_epoch, self.monitor)
        self._epoch = trainer.current_epoch
        self._scheduler.on_epoch_begin(self._epoch, self._optimizer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """``on_minibatch_begin``."""
        total = trainer.num_training_batches
        if not math.isfinite(total):
            raise LifecycleError(
                "the training loader does not know its length, which schedules need: set limit_train_batches"
            )
        if self._epoch != trainer.current_epoch:  # Lightning does not announce an epoch that it resumes inside
            self.on_train_epoch_start(trainer, pl_module)
        self._position = (trainer.current_epoch, batch_idx, int(total))
        self._scheduler.accumulation_steps = trainer.accumulate_grad_batches  # a callback may change it by epochs
        self._scheduler.on_minibatch_begin(*self._position, self._optimizer)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """``before_backward_pass``: what policies add goes into the loss that Lightning differentiates."""
        total = self._scheduler.before_backward_pass(*self._position, loss.clone(), self._optimizer)
        if isinstance(total, Tensor):
            loss.copy_(total)  # in place: Lightning takes no other loss back, and autograd follows

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        """``before_parameter_optimization``."""
        self._scheduler.before_parameter_optimization(*self._position, self._optimizer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """``on_minibatch_end``."""
        self._scheduler.on_minibatch_end(*self._position, self._optimizer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """``on_epoch_end``, with the monitored metrics."""
        metrics = {}
        for kind, name in self.monitor.items():
            if name not in trainer.callback_metrics:
                raise ArgumentError(
                    f"monitor: nothing was logged as {name!r}, only {', '.join(map(repr, trainer.callback_metrics))}",
                    argument=("monitor", kind),
                )
            metrics[kind] = float(trainer.callback_metrics[name])
        self._scheduler.on_epoch_end(trainer.current_epoch, self._optimizer, metrics=metrics or None)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """``finish``."""
        self.summary = self._scheduler.finish()

    @property
    def _scheduler(self) -> CompressionScheduler:
        if self.scheduler is None:
            raise LifecycleError("the callback has no scheduler before trainer.fit()")
        return self.scheduler

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's state and the model's structural changes, for Lightning's checkpoints."""
        if self.scheduler is None:
            return {}
        structure = structure_of(self.scheduler, self._whole, self._optimizer)
        return {"scheduler": self.scheduler.state_dict(), "structure": structure}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the checkpoint was saved. Raises :class:`CheckpointError` for another schedule's state."""
        if "scheduler" in state_dict and self.scheduler is not None:
            self.scheduler.load_state_dict(state_dict["scheduler"])
            self._epoch = -1


def _only_optimizer(configured: Any) -> Optimizer:
    """The one optimizer in what ``configure_optimizers`` returned."""
    found = configured.get("optimizer") if isinstance(configured, Mapping) else configured
    if isinstance(found, tuple | list):
        flat = [one for part in found for one in (part if isinstance(part, tuple | list) else [part])]
        parts = [one.get("optimizer") if isinstance(one, Mapping) else one for one in flat]
        optimizers = [one for one in parts if isinstance(one, Optimizer)]
        if len(optimizers) > 1:
            raise LifecycleError(f"the callback follows one optimizer, configure_optimizers made {len(optimizers)}")
        found = optimizers[0] if optimizers else None
    if not isinstance(found, Optimizer):
        raise LifecycleError(f"configure_optimizers made no optimizer, but {configured!r}")
    return found


def _has_rates(configured: Any) -> bool:
    """Whether ``configure_optimizers`` returned learning-rate schedulers, in any of Lightning's forms."""
    if isinstance(configured, Mapping):
        return configured.get("lr_scheduler") is not None
    if isinstance(configured, tuple | list):
        return any(
            _has_rates(part) or (bool(part) and isinstance(part, tuple | list) and place == 1)
            for place, part in enumerate(configured)
        )
    return False
