"""``ScheduledModifierManager``: a recipe's life around a training loop, as SparseML's users have it."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from distiller_ng.compat.sparseml._driver import StepDriver
from distiller_ng.compat.sparseml._loading import Given, check, load, one_shot, structure
from distiller_ng.compat.sparseml._views import ModifierLists, ModifierView
from distiller_ng.config.api import read_schedule
from distiller_ng.config.frontends.recipe.reverse import as_recipe
from distiller_ng.config.frontends.recipe.staging import compose, max_epochs, min_epochs
from distiller_ng.config.frontends.recipe.variables import RecipeArgs
from distiller_ng.config.frontends.recipe.writing import recipe_text
from distiller_ng.config.spec import ModifierSpec, RecipeSpec, ScheduleSpec
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.core.summary import CompressionSummary
from distiller_ng.errors import LifecycleError, ScheduleWarning
from distiller_ng.ops.files import write_text_atomically
from distiller_ng.reports.schedule_plan import SchedulePlan, schedule_plan

__all__ = ["ScheduledModifierManager"]

logger = logging.getLogger(__name__)


class ScheduledModifierManager(ModifierLists):
    """Runs a recipe (or a schedule) around a loop that calls nothing but its own optimizer.

    ``modify`` puts hooks on the model and the optimizer and returns the optimizer it was given, which learning-rate
    schedulers and ``GradScaler`` take as it is; ``finalize`` takes the hooks away. Everything is computed by one
    :class:`CompressionScheduler` (:attr:`scheduler`). Example::

        manager = ScheduledModifierManager.from_yaml("recipe.md", recipe_variables={"num_epochs": 10})
        optimizer = manager.modify(model, optimizer, steps_per_epoch=len(loader))
        for epoch in range(manager.max_epochs):
            for x, y in loader:
                optimizer.zero_grad()
                criterion(model(x), y).backward()
                optimizer.step()
        manager.finalize(model)

    Where the recipe distils, the loop passes its loss through ``loss = manager.loss_update(loss)`` before backward.
    """

    def __init__(self, spec: ScheduleSpec, recipe: RecipeSpec | None = None) -> None:
        self._spec = spec
        self._recipe = as_recipe(spec) if recipe is None else recipe
        self._scheduler: CompressionScheduler | None = None
        self._driver: StepDriver | None = None
        self._given: dict[str, Any] = {}

    @classmethod
    def from_yaml(
        cls,
        file_path: str | os.PathLike[str],
        add_modifiers: Sequence[ModifierView] | None = None,
        recipe_variables: RecipeArgs = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> ScheduledModifierManager:
        """From a recipe's file (``.yaml``, ``.yml``, ``.md``) or text, or a schedule all of whose parts recipes know.

        ``add_modifiers`` come in addition to the recipe's. ``recipe_variables``: values for its variables, a mapping,
        JSON or ``"name=value,..."``. ``metadata`` is written to ``__metadata__`` when the recipe is saved. Raises
        :class:`ScheduleError` with everything that is wrong, and :class:`ArgumentError` for unknown variables.
        """
        spec = read_schedule(file_path, recipe_args=recipe_variables)
        recipe = as_recipe(spec)
        if add_modifiers or metadata is not None:
            stages = recipe.stages or [""]
            extra = [ModifierSpec(m.tag, m.properties, (), stage=stages[-1]) for m in add_modifiers or ()]
            known = dict(recipe.metadata)
            if metadata is not None:
                known |= {stage: {**(known.get(stage) or {}), **metadata} for stage in stages}
            recipe = replace(recipe, modifiers=(*recipe.modifiers, *extra), metadata=known)
            if extra:
                spec = read_schedule(recipe_text(recipe))
                recipe = as_recipe(spec)
        return cls(spec, recipe)

    @classmethod
    def compose_staged(
        cls,
        base_recipe: str | os.PathLike[str] | ScheduledModifierManager,
        additional_recipe: str | os.PathLike[str] | ScheduledModifierManager,
        keep_original_epochs: bool = False,
        save_path: str | os.PathLike[str] | None = None,
    ) -> ScheduledModifierManager:
        """The manager of both recipes, the second after the first, as stages."""
        base, additional = _recipe_of(base_recipe), _recipe_of(additional_recipe)
        recipe = compose(base, additional, keep_original_epochs=keep_original_epochs)
        text = recipe_text(recipe)
        if save_path is not None:
            write_text_atomically(save_path, text)
        return cls.from_yaml(text)

    # -- what it holds ----------------------------------------------------------------------------------------------

    @property
    def max_epochs(self) -> int:
        """The latest start or end of all modifiers, rounded up: how many epochs to train; -1 without any."""
        return max_epochs(self._recipe.modifiers)

    @property
    def min_epochs(self) -> int:
        """The earliest start of all modifiers, rounded down; -1 without any."""
        return min_epochs(self._recipe.modifiers)

    @property
    def modifiers(self) -> list[ModifierView] | dict[str, list[ModifierView]]:
        """All modifiers in the order in which they act; by stage for a recipe with stages."""
        if not self._recipe.stages:
            return list(self.iter_modifiers())
        return {stage: [m for m in self.iter_modifiers() if m.stage == stage] for stage in self._recipe.stages}

    def iter_modifiers(self) -> Iterator[ModifierView]:
        """All modifiers, those of all stages one after the other."""
        return (ModifierView.of(modifier) for modifier in self._recipe.modifiers)

    @property
    def metadata(self) -> Mapping[str, Any] | None:
        """``__metadata__``: as it is, or by stage."""
        known = self._recipe.metadata
        return (known if self._recipe.stages else known.get("")) or None

    # -- life -------------------------------------------------------------------------------------------------------

    @property
    def scheduler(self) -> CompressionScheduler:
        """The scheduler that does it all; raises :class:`LifecycleError` before ``modify``."""
        if self._scheduler is None:
            raise LifecycleError("the manager has no model yet: call modify(model, optimizer, steps_per_epoch) first")
        return self._scheduler

    @property
    def initialized(self) -> bool:
        """Whether the manager runs on a model."""
        return self._scheduler is not None

    def initialize(self, module: nn.Module, epoch: float = 0, loggers: Any = None, **given: Any) -> None:
        """Check the recipe against ``module``, which is not changed; ``modify`` takes what is given here.

        ``given``: ``distillation_teacher``, ``grad_sampler``, ``calibration_dataloader``, ``calibration_function``,
        ``example_inputs``, ``on_unmatched``. ``loggers`` is accepted and unused.
        """
        check(self._spec, module, Given.of(given))
        self._given = dict(given)

    def modify(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        steps_per_epoch: float,
        wrap_optim: Any = None,
        epoch: float | None = None,
        allow_parallel_module: bool = True,
        loggers: Any = None,
        **given: Any,
    ) -> Any:
        """Apply the recipe while ``optimizer`` trains ``module``; returns the optimizer (or ``wrap_optim``) itself.

        ``steps_per_epoch``: optimizer steps in an epoch (with gradient accumulation ``len(loader) / k``). ``epoch``:
        where training begins. ``allow_parallel_module`` is accepted: names mean the same on wrapped models.
        """
        if self._driver is not None:
            raise LifecycleError("modify() was called before: call finalize() first, or make another manager")
        self._scheduler = load(self._spec, module, optimizer, Given.of({**self._given, **given}))
        done = round((epoch or 0) * steps_per_epoch)
        self._driver = StepDriver(self._scheduler, optimizer, steps_per_epoch, done)
        logger.info("recipe:\n%s", self.report())
        return optimizer if wrap_optim is None else wrap_optim

    def loss_update(
        self,
        loss: Tensor,
        module: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        epoch: float | None = None,
        steps_per_epoch: float | None = None,
        **outputs: Any,
    ) -> Tensor:
        """The loss with what modifiers add to it (distillation); call it before ``backward``.

        The other arguments are accepted: the student's inputs and outputs were seen in its forward pass.
        """
        if self._driver is None:
            raise LifecycleError("loss_update() before modify()")
        self._driver.sees_losses = True
        where = self._driver.open()
        updated = self.scheduler.before_backward_pass(*where, loss, self._driver.optimizer)
        assert isinstance(updated, Tensor)  # components were not asked for
        return updated

    def finalize(self, module: nn.Module | None = None, reset_loggers: bool = True, **given: Any) -> CompressionSummary:
        """End the run: what is due at its end happens now, masks are applied, all hooks are removed.

        Returns planned and achieved sparsity of each parameter.
        """
        scheduler = self.scheduler
        if self._driver is not None:
            self._driver.close()
            self._driver = None
        summary = scheduler.finish()
        for masker in scheduler.masks.values():
            masker.masks_gradients = False
        scheduler.masks.prepare()
        scheduler.masks.detach()
        self._scheduler = None
        return summary

    def apply(
        self, module: nn.Module, epoch: float = math.inf, loggers: Any = None, finalize: bool = True, **given: Any
    ) -> CompressionSummary:
        """One-shot use: every modifier acts at once as at its end, stage after stage; nothing is trained.

        ``given`` as for :meth:`initialize`; second-order pruners take their gradients from ``grad_sampler`` (or a
        loader given as ``calibration_dataloader``).
        """
        return one_shot(self._spec, module, Given.of(given))

    def apply_structure(self, module: nn.Module, epoch: float = 0.0, loggers: Any = None, **given: Any) -> None:
        """Change the model's modules as the recipe has done by ``epoch``, so that a checkpoint's weights fit.

        Quantization and removed layers only; weights stay as they are.
        """
        structure(self._spec, module, epoch, Given.of(given))

    def report(self) -> SchedulePlan:
        """What the recipe will do to the model: values, parameters, the epochs of every action, leniencies."""
        steps = 1.0 if self._driver is None else self._driver.steps_per_epoch
        return schedule_plan(self.scheduler, steps, max(self.max_epochs, 1))

    # -- saving -----------------------------------------------------------------------------------------------------

    def save(self, file_path: str | os.PathLike[str], include_modifiers: Sequence[ModifierView] | None = None) -> None:
        """Write the recipe with resolved values, whole or not at all; ``include_modifiers`` limits it to some."""
        recipe = self._recipe
        if include_modifiers is not None:
            wanted = list(include_modifiers)
            recipe = replace(recipe, modifiers=tuple(m for m in recipe.modifiers if ModifierView.of(m) in wanted))
        write_text_atomically(file_path, recipe_text(recipe))

    def __str__(self) -> str:
        return recipe_text(self._recipe)

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to go on: the scheduler's state and the number of steps made."""
        return {"scheduler": self.scheduler.state_dict(), "steps": 0 if self._driver is None else self._driver.done}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Restore :meth:`state_dict` after ``modify``; raises :class:`CheckpointError` for another recipe's state."""
        self.scheduler.load_state_dict(state["scheduler"])
        if self._driver is not None:
            self._driver.restore(int(state["steps"]))
        elif state["steps"]:
            warnings.warn("call modify() before load_state_dict(), to go on at its step", ScheduleWarning, stacklevel=2)


def _recipe_of(given: str | os.PathLike[str] | ScheduledModifierManager) -> RecipeSpec:
    return given._recipe if isinstance(given, ScheduledModifierManager) else as_recipe(read_schedule(given))
