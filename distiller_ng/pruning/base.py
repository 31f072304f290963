"""What every pruner is: it decides masks and never touches weights (layer 2)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.core.masker import ParameterMasker
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, CheckpointError, TargetError
from distiller_ng.names import ParameterIndex
from distiller_ng.ops.patterns import NMPattern
from distiller_ng.pruning._direct_call import direct_context
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike, SparsitySchedule, as_schedule
from distiller_ng.registry import Registry

__all__ = ["DEFAULT_TARGET", "PRUNERS", "MaskGroup", "Pruner", "Scope", "Target", "targets_of_list", "targets_of_map"]

PRUNERS: Registry[Pruner] = Registry("pruner", "distiller_ng.pruning")

#: Key of a map of targets that stands for every parameter not named by another key.
DEFAULT_TARGET = "*"

#: ``layer``: each tensor is decided alone. ``global``: one decision over all targeted tensors together.
Scope: TypeAlias = Literal["layer", "global"]


@dataclass(frozen=True, slots=True)
class Target:
    """One thing a user wrote to name parameters, and where: ``Target("conv1.weight", ("levels", "conv1.weight"))``."""

    text: str
    argument: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class MaskGroup:
    """Parameters whose masks are decided together (canonical names; a leader stands first)."""

    names: tuple[str, ...]


class Pruner(ABC):
    """Base of all pruners.

    ``schedule``: the target sparsity over the policy's window, instead of a fixed level, e.g.
    ``{class: AGP, initial_sparsity: 0.05, final_sparsity: 0.9}``. ``scope``: "layer" or "global". ``pattern``: "N:M",
    at most N live weights in M consecutive ones.

    Subclasses implement :meth:`targets` and :meth:`compute_masks`. Registering is one line::

        @PRUNERS.register("MyPruner", injected=("name",))
        class MyPruner(Pruner): ...
    """

    #: Whether masks hold only 0 and 1.
    binary_masks: ClassVar[bool] = True
    #: Whether optimizer state of weights that change between pruned and live is zeroed.
    resets_optimizer_state: ClassVar[bool] = False
    #: Whether the epoch before each active one must be observed (:meth:`start_observing`).
    observes: ClassVar[bool] = False
    #: Whether decisions take the model's channel-dependency graph, and so what the model is called with.
    follows_channels: ClassVar[bool] = False
    #: Whether a decision is still to be made, once it is known what the model is called with.
    waits_for_inputs: bool = False
    #: Whether decisions are made right before an optimizer's step, when :meth:`before_step` has seen its gradients.
    decides_before_step: ClassVar[bool] = False
    #: Whether the policy drops this pruner's masks when its window ends.
    releases_at_window_end: ClassVar[bool] = False

    def __init__(
        self,
        name: str,
        *,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        if scope not in get_args(Scope):
            raise ArgumentError(f"scope is 'layer' or 'global', got {scope!r}", argument=("scope",))
        self.name = name
        self.schedule: SparsitySchedule | None = None if schedule is None else as_schedule(schedule)
        self.scope = scope
        self.pattern: NMPattern | None = None if pattern is None else _parse_pattern(pattern)
        self._levels: Any = None
        self._bound: dict[str, Target] = {}

    @property
    def owner(self) -> str:
        """The name under which this pruner's masks are kept; policies that share a pruner share its masks."""
        return self.name or type(self).__name__

    @property
    def levels(self) -> Any:
        """Set by a policy's ``levels`` argument: a sparsity, or one by target, instead of the constructor's."""
        return self._levels

    @levels.setter
    def levels(self, levels: Any) -> None:
        self._levels = None if levels is None else self.accept_levels(levels)

    def accept_levels(self, levels: Any) -> Any:
        """Check a policy's ``levels``; raises :class:`ArgumentError` where it is wrong or cannot mean anything."""
        raise ArgumentError(
            f"{type(self).__name__} prunes to no level, so 'levels' says nothing to it; leave it out of the policy's "
            "args",
            argument=("levels",),
        )

    # -- targets ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def targets(self) -> Sequence[Target]:
        """What the user named, in order; ``*`` last."""

    def bind(self, parameters: ParameterIndex, *, strict: bool = True) -> list[str]:
        """Resolve the targets on a model and return the canonical names, in the order they are named.

        The first target that names a parameter decides about it, an exact name before any pattern. Nothing is changed
        on the model. Raises :class:`TargetError` for a target that matches nothing, unless ``strict`` is False, and
        for a parameter this pruner cannot prune.
        """
        bound: dict[str, Target] = {}
        exact: dict[str, Target] = {}
        default: Target | None = None
        for target in self.targets():
            if target.text == DEFAULT_TARGET:
                default = target
                continue
            found = parameters.find(target.text)
            if found is not None:
                exact.setdefault(found, target)
                bound.setdefault(found, target)
                continue
            try:
                matched = parameters.match(target.text, argument=target.argument)
            except TargetError:
                if strict:
                    raise
                continue
            for name in matched:
                bound.setdefault(name, target)
        bound.update(exact)
        if default is not None:
            for name in parameters:
                bound.setdefault(name, default)
        for name, target in bound.items():
            self.check_parameter(name, parameters[name], target)
        self._bound = bound
        return list(bound)

    def check_parameter(self, name: str, parameter: Tensor, target: Target) -> None:
        """Refuse a targeted parameter this pruner cannot prune; raises :class:`TargetError` at ``target.argument``."""

    def structure_dim(self, name: str) -> int | None:
        """The dimension of a parameter whose entries this pruner masks whole (filters, channels); None for others.

        Policies extend such masks to everything that belongs to the same channel (``mask_group``).
        """
        return None

    @property
    def names(self) -> list[str]:
        """Canonical names of the parameters this pruner masks; empty before :meth:`bind`."""
        return list(self._bound)

    def target_of(self, name: str) -> str:
        """The text of the target that named this parameter (a key of the user's map)."""
        return self._bound[name].text

    # -- masks ------------------------------------------------------------------------------------------------------

    def groups(self, parameters: ParameterIndex) -> Sequence[MaskGroup]:
        """What is decided together: each parameter alone, or all at once with ``scope: global``."""
        if self.scope == "global":
            return [MaskGroup(tuple(self.names))] if self.names else []
        return [MaskGroup((name,)) for name in self.names]

    @abstractmethod
    def compute_masks(self, group: MaskGroup, ctx: StepContext) -> Mapping[str, Tensor]:
        """Masks (parameter's shape and dtype, 1 = keep) for a group.

        A name that is left out keeps the mask it has. Weights must not be changed; rank ``ctx.weight(name)``.
        """

    def update_weights_(self, ctx: StepContext) -> None:
        """Change weights once the masks of a decision are all in the registry; most pruners do nothing here.

        This is the one place where a pruner may write weights. One that moves surviving weights (OBS, SparseGPT,
        reconstruction) remembers the new ones in :meth:`compute_masks`, which leaves the model as it is, and writes
        them here; the policy applies the masks afterwards as always.
        """

    def planned_sparsity(self, name: str, window: PolicyWindow) -> float | None:
        """The sparsity the parameter should have after ``window``; None where it depends on the weights."""
        return None

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """Refuse a window or model this pruner cannot work with, before anything changes."""
        if self.schedule is not None and math.isinf(window.end):
            first, last = self.schedule.target(0.0), self.schedule.target(1.0)
            if first != last:
                raise ArgumentError(
                    f"pruner {self.owner!r} goes from {first:g} to {last:g} over its policy's window, but this one "
                    "never ends: give ending_epoch",
                    argument=("ending_epoch",),
                )

    # -- observing --------------------------------------------------------------------------------------------------

    def start_observing(self, ctx: StepContext) -> None:
        """Begin to collect what the next decision needs (``observes`` only)."""

    def stop_observing(self) -> None:
        """Stop collecting and remove every hook."""

    # -- every step -------------------------------------------------------------------------------------------------

    def before_step(self, ctx: StepContext) -> None:
        """``ctx.optimizer`` is about to step, with gradients as it will apply them; only while the policy is active."""

    def after_step(self, ctx: StepContext) -> None:
        """``ctx.optimizer`` stepped; masked weights are zero again."""

    # -- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beyond the constructor's arguments: plain values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        if state:
            raise CheckpointError(f"pruner {self.owner!r} keeps no state, but the checkpoint holds {sorted(state)}")

    # -- Distiller's direct call ------------------------------------------------------------------------------------

    def set_param_mask(
        self,
        param: Tensor,
        param_name: str,
        zeros_mask_dict: MutableMapping[str, ParameterMasker],
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Decide the mask of one parameter now and put it in ``zeros_mask_dict``; Distiller's entry point.

        ``meta`` may hold ``starting_epoch``, ``ending_epoch``, ``frequency``, ``current_epoch``, ``model``. A parameter
        this pruner does not target is left alone.
        """
        ctx = direct_context(param, param_name, zeros_mask_dict, meta or {})
        self.bind(ctx.parameters, strict=False)
        name = ctx.parameters.find(param_name) or param_name
        for group in self.groups(ctx.parameters):
            if name in group.names:
                masks = self.compute_masks(group, ctx)
                if name in masks:
                    ctx.masks.set(name, masks[name], owner=self.owner, binary=self.binary_masks)
                    if ctx.masks is not zeros_mask_dict:
                        zeros_mask_dict[param_name].set(masks[name], owner=self.owner, binary=self.binary_masks)
                    self.update_weights_(ctx)


def _parse_pattern(pattern: str | int) -> NMPattern:
    try:
        return NMPattern.parse(pattern)
    except ArgumentError as error:
        raise ArgumentError(str(error), argument=("pattern",)) from None


def targets_of_list(argument: str, names: str | Iterable[str]) -> list[Target]:
    """Targets of a list argument (a string is a list of one): ``weights: [conv1.weight, 're:layer1.*weight']``."""
    if isinstance(names, str):
        return [Target(names, (argument,))]
    return [Target(name, (argument, position)) for position, name in enumerate(names)]


def targets_of_map(argument: str, names: Iterable[str]) -> list[Target]:
    """Targets of a map argument, by key: ``levels: {conv1.weight: 0.5, '*': 0.2}``."""
    return [Target(name, (argument, name)) for name in names]
