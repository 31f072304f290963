"""Base of the pruners that watch the model run before they decide (layer 2)."""

from __future__ import annotations

import contextlib
import sys
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from distiller_ng.core.context import StepContext
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, CalibrationError, ScheduleWarning
from distiller_ng.names import ParameterIndex, unwrap
from distiller_ng.pruning.base import Pruner

__all__ = ["ObservingPruner", "Store", "uncompiled"]


class Store(Protocol):
    """What is kept of the observed values of one parameter."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        ...


@dataclass(slots=True)
class _Entry:
    store: Store
    evaluation: bool  # whether the values came from modules in eval mode


class ObservingPruner(Pruner):
    """Collects in the epoch before each active one, and decides on what that epoch gave.

    Values seen in eval mode (validation) replace those seen in training, which are used only if there was no
    validation. Without a schedule, observe by hand::

        with pruner.observing(model):
            evaluate(model)

    Hooks are invisible to code that torch.compile has compiled already, so its caches are reset when collecting
    begins and ends.
    """

    observes: ClassVar[bool] = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._removers: list[Callable[[], None]] = []
        self._current: dict[str, _Entry] | None = None  # being collected
        self._finished: dict[str, _Entry] = {}  # of the last observed epoch
        self._continues = False  # a restored collection goes on when the hooks are back

    @abstractmethod
    def new_store(self) -> Store:
        """An empty store."""

    @abstractmethod
    def watch(self, model: nn.Module, example_inputs: tuple[Any, ...] | None) -> None:
        """Install hooks (:meth:`hook`) on the unwrapped model that pass what they see to :meth:`entry`."""

    # -- observing --------------------------------------------------------------------------------------------------

    def start_observing(self, ctx: StepContext) -> None:
        """Begin a new collection, or go on with one that was restored from a checkpoint."""
        self._start(ctx.model, ctx.example_inputs)

    def stop_observing(self) -> None:
        """Remove every hook; what was collected is what the next decision uses."""
        if self._current is None:
            return
        for remove in self._removers:
            remove()
        self._removers.clear()
        self._finished, self._current = self._current, None
        forget_compiled_code()

    @contextlib.contextmanager
    def observing(self, model: nn.Module) -> Iterator[None]:
        """Collect while the block runs the model; targets are resolved on it if they are not yet."""
        if not self.names:
            self.bind(ParameterIndex(model))
        self._start(model, None)
        try:
            yield
        finally:
            self.stop_observing()

    def hook(self, module: nn.Module, hook: Callable[..., None]) -> None:
        """Call ``hook(module, args, output)`` after each forward pass until observing stops."""
        self.when_stopped(module.register_forward_hook(uncompiled(hook)).remove)

    def when_stopped(self, remove: Callable[[], None]) -> None:
        """Call ``remove`` when observing stops."""
        self._removers.append(remove)

    def entry(self, name: str, training: bool) -> Store | None:
        """Where to put a value seen for ``name``; None when it does not count, as validation is what counts."""
        if self._current is None:
            return None
        known = self._current.get(name)
        if known is None or (not known.evaluation and not training):
            known = self._current[name] = _Entry(self.new_store(), not training)
        return None if known.evaluation and training else known.store

    def observed(self, name: str, ctx: StepContext) -> Store | None:
        """What was collected for a parameter; None in an epoch 0 that is skipped because nothing precedes it.

        Raises :class:`CalibrationError` when nothing was collected.
        """
        found = self._finished.get(name)
        if found is not None:
            return found.store
        if ctx.epoch == 0 and not _only_epoch_zero(ctx.window):
            return None
        raise CalibrationError(
            f"{type(self).__name__} has seen nothing of the layer of {name!r}: it decides on what the epoch before an "
            "active one shows. Begin training at least one epoch before the policy and call the scheduler's epoch "
            "hooks in it, or collect yourself: with pruner.observing(model): evaluate(model)"
        )

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """Refuses a window of epoch 0 alone; warns about one that begins with it."""
        super().check(window, parameters)
        if not window.is_active(0):
            return
        why = f"pruner {self.owner!r} decides on what the epoch before shows, and none precedes epoch 0"
        if _only_epoch_zero(window):
            argument = "epochs" if window.epochs is not None else "starting_epoch"
            raise ArgumentError(f"{why}: start its policy at epoch 1 or later", argument=(argument,))
        warnings.warn(ScheduleWarning(f"{why}: nothing is pruned there"), stacklevel=2)

    # -- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What was collected last, and what is being collected."""
        current = None if self._current is None else _saved(self._current)
        return {**super().state_dict(), "finished": _saved(self._finished), "current": current}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; hooks come back with the next :meth:`start_observing`."""
        rest = {key: value for key, value in state.items() if key not in ("finished", "current")}
        super().load_state_dict(rest)
        self._finished = self._restored(state["finished"])
        self._continues = state["current"] is not None
        self._current = self._restored(state["current"]) if self._continues else None

    def _restored(self, state: Mapping[str, Any]) -> dict[str, _Entry]:
        entries = {}
        for name, saved in state.items():
            store = self.new_store()
            store.load_state_dict(dict(saved["store"]))
            entries[name] = _Entry(store, bool(saved["evaluation"]))
        return entries

    def _start(self, model: nn.Module, example_inputs: tuple[Any, ...] | None) -> None:
        if self._removers:
            return  # another policy of this pruner observes the same epoch
        if not self._continues or self._current is None:
            self._current = {}
        self._continues = False
        self.watch(unwrap(model), example_inputs)
        forget_compiled_code()


def uncompiled(function: Callable[..., None]) -> Callable[..., None]:
    """``function``, never traced by torch.compile: the graph breaks there."""
    disabled: Callable[..., None] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return disabled


def forget_compiled_code() -> None:
    """Make torch.compile look at modules again; without it hooks that came or went are not noticed. Free if unused."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _only_epoch_zero(window: PolicyWindow) -> bool:
    return window.last_epoch == 0


def _saved(entries: Mapping[str, _Entry]) -> dict[str, Any]:
    return {name: {"store": e.store.state_dict(), "evaluation": e.evaluation} for name, e in entries.items()}


def channels_second(value: Tensor, *, channels_last: bool) -> Tensor:
    """``[N, C, ...]`` in float32 or wider; linear layers on sequences put their features last."""
    wide = value.detach()
    wide = wide.float() if wide.element_size() < 4 else wide
    return wide.movedim(-1, 1) if channels_last and wide.dim() > 2 else wide
