"""Saving and restoring a scheduler (layer 1)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from distiller_ng.core.entries import ActiveEntries, load_entries
from distiller_ng.core.hooks import HookDriver
from distiller_ng.core.masks import RESTORED
from distiller_ng.core.position import TrainPosition
from distiller_ng.core.resume import ResumePoint, capture_rng
from distiller_ng.errors import CheckpointError, did_you_mean

__all__ = ["STATE_VERSION", "StatefulScheduler"]

STATE_VERSION = 1
# What reading a state raises whose values are of other types or shapes than they were saved with.
_DAMAGED = (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError)

logger = logging.getLogger(__name__)


class StatefulScheduler(HookDriver):
    """``state_dict``, ``load_state_dict`` and Distiller's ``init_from_masks_dict``."""

    def state_dict(self) -> dict[str, Any]:
        """Everything an exact resume needs: masks, every policy's state, the position and the random generators.

        Plain values and tensors only, so ``torch.load(weights_only=True)`` reads it. ``masks_dict`` is Distiller's
        format, ``{name: effective mask or None}``.
        """
        life = self._lifecycle
        stepped = self.masks.steps != self._steps_at_begin
        if life.phase == "minibatch" and not stepped and self.masks.is_attached and self._has_gradients():
            logger.warning(
                "state saved inside minibatch %d before its optimizer.step(): gradients are not saved, so a resumed "
                "run loses that step. Save after the step",
                life.minibatch_id,
            )
        return {
            "version": STATE_VERSION,
            "masks_dict": {name: masker.mask for name, masker in self.masks.items()},
            "masks": self.masks.state_dict(),
            "policies": [entry.state_dict() for entry in self._entries],
            "lifecycle": life.state_dict(),
            "loop": {
                "steps": self.masks.steps,
                "stepped": stepped,
                "last_micro_stepped": self._last_micro_stepped,
                "accumulation_steps": self.accumulation_steps,
                "minibatches_per_epoch": self._position.minibatches_per_epoch,
                "drained": self._drained,
                "metrics": dict(self._metrics),
                "finished": self._finished,
            },
            "epoch_rng": self._epoch_rng,
            "example_inputs": self.graph.state_dict(),
            "rng": capture_rng(),
            "generators": self._generator_states(),
        }

    def load_state_dict(
        self,
        state: Mapping[str, Any],
        normalize_dataparallel_keys: bool = False,
        *,
        restore_position: bool = True,
    ) -> None:
        """Restore :meth:`state_dict` onto the same schedule; a state with only ``masks_dict`` restores masks.

        ``restore_position=False`` takes the masks alone and starts the schedule at any epoch. Names are canonical, so
        ``normalize_dataparallel_keys`` changes nothing. Raises :class:`CheckpointError` for another schedule's state or
        masks that do not fit; then the scheduler is as it was. A loop that calls the hooks itself must continue at
        :attr:`resume_point` and restore the generators with it.
        """
        if "masks_dict" not in state:
            raise CheckpointError(f"not a scheduler state: no 'masks_dict' among {sorted(map(str, state))}")
        if "policies" not in state or not restore_position:
            self.init_from_masks_dict(state["masks_dict"], normalize_dataparallel_keys)
            return
        if state["version"] != STATE_VERSION:
            raise CheckpointError(f"scheduler state version {state['version']}, this library reads {STATE_VERSION}")
        self._follow_model()
        undo = self._undo()
        finished = False
        try:
            self._restore(state)
            finished = True
        except CheckpointError:
            raise
        except _DAMAGED as error:
            raise CheckpointError(f"the scheduler state is damaged: {type(error).__name__}: {error}") from error
        finally:
            if not finished:
                undo()

    def init_from_masks_dict(
        self,
        masks_dict: Mapping[str, Tensor | None],
        normalize_dataparallel_keys: bool = False,
    ) -> None:
        """Set the masks of ``{name: mask or None}``; parameters that are not named are left without one.

        Each stays until a pruner decides about its parameter. Raises :class:`CheckpointError` for a name or shape that
        does not fit.
        """
        for name, mask in masks_dict.items():
            if name not in self.parameters:
                raise CheckpointError(f"mask for unknown parameter {name!r}. {did_you_mean(name, self.parameters)}")
            shape = self.parameters[name].shape
            if mask is not None and mask.shape != shape:
                raise CheckpointError(f"mask of {name!r} has shape {list(mask.shape)}, the parameter {list(shape)}")
        for masker in self.masks.values():
            masker.clear()
        for name, mask in masks_dict.items():
            self.masks.set(name, mask, owner=RESTORED)

    @property
    def resume_point(self) -> ResumePoint | None:
        """Where and how a loop of your own must continue after ``load_state_dict``; None without one."""
        return self._resume

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.masks.load_state_dict(state["masks"])
        load_entries(self._entries, state["policies"])
        self.graph.load_state_dict(state.get("example_inputs"))
        self._restore_position(state)
        if self._lifecycle.phase != "idle":
            self._observe_again(state["policies"])

    def _undo(self) -> Callable[[], None]:
        """What puts everything back that :meth:`_restore` changes."""
        attributes, lifecycle = dict(self.__dict__), copy.copy(self._lifecycle)
        masks, steps, inputs = self.masks.state_dict(), self.masks.steps, self.graph.example_inputs
        entries = [entry.state_dict() for entry in self._entries]

        def undo() -> None:
            self.__dict__.update({**attributes, "_lifecycle": lifecycle})
            self.masks.put_back(masks)
            self.masks.steps = steps
            if self.graph.example_inputs is not inputs:
                self.graph.example_inputs = inputs
            for entry, before in zip(self._entries, entries, strict=True):
                entry.load_state_dict(before)

        return undo

    def _generator_states(self) -> dict[str, Tensor]:
        """The state of the loader's own generators."""
        return {name: generator.get_state() for name, generator in self._generators.items()}

    def _observe_again(self, saved: Sequence[Mapping[str, Any]]) -> None:
        """Continue what policies were collecting in the open epoch: hooks first, then what was collected so far."""
        for entry, state in zip(self._entries, saved, strict=True):
            if entry in self._active.preceding:
                entry.policy.on_preceding_epoch_begin(self._context(entry, self._position))
                entry.load_state_dict(state)

    def _restore_position(self, state: Mapping[str, Any]) -> None:
        loop = state["loop"]
        for part in ("python", "numpy", "torch", "cuda"):
            state["rng"][part]  # damaged states fail here, not when the run goes on
        self._lifecycle.load_state_dict(state["lifecycle"])
        life = self._lifecycle
        self.accumulation_steps = loop["accumulation_steps"]
        self.masks.steps = loop["steps"]
        self._steps_at_begin = loop["steps"] - int(loop["stepped"])
        self._last_micro_stepped = loop["last_micro_stepped"]
        self._drained, self._finished = loop["drained"], loop["finished"]
        self._metrics = dict(loop["metrics"])
        self._position = TrainPosition(max(life.epoch, 0), 0, loop["minibatches_per_epoch"])
        self._active = ActiveEntries.of(self._entries, max(life.epoch, 0))
        self._epoch_rng = state["epoch_rng"]
        inside = life.phase != "idle"
        self._resume = ResumePoint(
            life.epoch if inside else life.epoch + 1,
            life.minibatch_id + 1 if inside else 0,
            life.minibatches_per_epoch if inside else 0,
            state["rng"],
            state["generators"],
        )
        if inside:
            logger.info(
                "resuming at %s; a loop that calls the hooks itself must restore the sampler's order and the random "
                "generators (scheduler.resume_point)",
                self._resume,
            )
