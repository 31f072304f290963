"""From a spec to a scheduler: everything is checked before anything is changed (layer 4)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from torch import nn
from torch.optim import Optimizer

from distiller_ng.checkpoint import LoadedScheduler
from distiller_ng.config.components import Builder
from distiller_ng.config.kinds import KINDS, kind_of_key
from distiller_ng.config.marks import Path
from distiller_ng.config.overlaps import refuse_use_of_replaced, warn_about_overlaps
from distiller_ng.config.parts import OPTIONAL, without_missing_teachers
from distiller_ng.config.policies import PlannedPolicy, PolicyBuilder, find_instance
from distiller_ng.config.probing import CONSTRUCTOR_ERRORS
from distiller_ng.config.problems import Report
from distiller_ng.config.resume import continue_learning_rates_
from distiller_ng.config.spec import TIMING_KEYS, ScheduleSpec
from distiller_ng.config.structure import POLICIES
from distiller_ng.core.context import Compat, checked_compat
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import ArgumentError, ScheduleWarning, did_you_mean
from distiller_ng.graph.inputs import ExampleInputsLike
from distiller_ng.names import ParameterIndex, unwrap

__all__ = ["OnUnmatched", "Options", "ScheduleLoader"]

#: What happens to names, patterns and tokens that match nothing on the model.
OnUnmatched: TypeAlias = Literal["error", "warn"]

Components: TypeAlias = dict[tuple[str, str], Any]


@dataclass(frozen=True, slots=True)
class Options:
    """The optional arguments of ``file_config``, documented there.

    ``unknown``, for checks alone: ``"model"``, the model is a stand-in and what depends on it is not looked at (names,
    shapes); ``"teachers"``, definitions that need teachers are read but not built.
    """

    scheduler: CompressionScheduler | None = None
    resumed_epoch: int | None = None
    on_unmatched: OnUnmatched = "error"
    example_inputs: ExampleInputsLike | None = None
    allow_user_classes: bool = False
    teachers: Mapping[str, nn.Module] = field(default_factory=dict)
    compat: Compat | None = None
    unknown: frozenset[str] = frozenset()


class ScheduleLoader:
    """Loads one spec onto one model. Raises :class:`ArgumentError` for options that cannot be."""

    def __init__(self, model: nn.Module, optimizer: Optimizer | None, spec: ScheduleSpec, options: Options) -> None:
        _check_options(model, optimizer, options)
        self._model, self._optimizer, self._options = model, optimizer, options
        self._spec = without_missing_teachers(spec, bool(options.teachers) or "teachers" in options.unknown)
        existing = options.scheduler
        self._parameters = ParameterIndex(model) if existing is None else existing.parameters
        self._report = Report(spec.source, spec.marks, list(spec.problems), list(spec.warnings))
        if len(self._spec.policies) != len(spec.policies):
            self._report.warn((OPTIONAL[0],), "no teacher was given: the recipe does not distil", at_key=True)

    def load(self) -> CompressionScheduler:
        """Check everything, then add the policies; raises :class:`ScheduleError`."""
        return self._commit(self.check())

    def check(self) -> Sequence[PlannedPolicy]:
        """The policies, ready to be added; nothing on the model changes. Raises :class:`ScheduleError`."""
        planned = self._review()
        self._report.finish()
        return planned

    def review(self) -> Report:
        """Every problem and warning; nothing is raised, and nothing on the model changes."""
        self._review()
        return self._report

    def _review(self) -> Sequence[PlannedPolicy]:
        planned = self._plan(self._build_components())
        if not self._report.problems:
            warn_about_overlaps(planned, self._report)
            refuse_use_of_replaced(planned, self._parameters, self._report)
        return planned

    def _build_components(self) -> Components:
        used = {(kind_of_key(policy.key).section, policy.instance_name) for policy in self._spec.policies}
        builder = Builder(
            self._model,
            self._parameters,
            self._optimizer,
            self._report,
            warn_unmatched=self._options.on_unmatched == "warn",
            allow_user_classes=self._options.allow_user_classes,
            teachers=self._options.teachers,
            example_inputs=self._example_inputs(),
            unknown=self._options.unknown,
        )
        # A misspelt policy leaves a definition without use: its mistakes are mistakes all the same.
        is_certain = not self._spec.problems and all(find_instance(self._spec, p) for p in self._spec.policies)
        components: Components = {}
        for spec in self._spec.components:
            place = (spec.section, spec.name)
            components[place] = builder.build(spec, used=place in used or not is_certain)
            if place not in used:
                self._report.warn(spec.path, f"{spec.label} is defined but no policy uses it", at_key=True)
        for kind in KINDS.values():
            extra = list(self._spec.section(kind.section))[kind.most or len(components) :]
            if extra:
                message = f"a schedule has at most {kind.most} {kind.noun}, this one defines more"
                self._report.error(extra[0].path, message, at_key=True)
        return components

    def _example_inputs(self) -> ExampleInputsLike | None:
        if self._options.example_inputs is not None or self._options.scheduler is None:
            return self._options.example_inputs
        return self._options.scheduler.example_inputs

    def _plan(self, components: Components) -> list[PlannedPolicy]:
        """The policies in the order in which they are added."""
        options = self._options
        builder = PolicyBuilder(
            self._spec, self._parameters, self._report, options.on_unmatched == "warn", "model" in options.unknown
        )
        built = [builder.build(policy, components) for policy in self._spec.policies]
        planned = [policy for policy in built if policy is not None]
        for policy in planned:
            self._check_optimizer(policy)
        if not self._spec.policies:
            self._report.warn((POLICIES,), "the schedule has no policies: it will do nothing")
        return [p for p in planned if not p.kind.adds_last] + [p for p in planned if p.kind.adds_last]

    def _check_optimizer(self, planned: PlannedPolicy) -> None:
        if self._optimizer is None:
            return
        path: Path = next(
            c.path for c in self._spec.section(planned.kind.section) if c.name == planned.spec.instance_name
        )
        try:
            planned.kind.check_optimizer(planned.component, self._optimizer)
        except ArgumentError as error:
            self._report.error((*path, *error.argument), str(error))
        except CONSTRUCTOR_ERRORS as error:
            self._report.error(path, f"{type(error).__name__}: {error}", at_key=True)

    def _commit(self, planned: Sequence[PlannedPolicy]) -> CompressionScheduler:
        options = self._options
        scheduler = options.scheduler or CompressionScheduler(self._model, example_inputs=options.example_inputs)
        compat = checked_compat(options.compat) or self._spec.compat
        if compat is not None:
            scheduler.compat = compat
        if options.example_inputs is not None:
            scheduler.example_inputs = options.example_inputs
        if self._optimizer is not None:
            scheduler.attach(self._optimizer)  # before the policies, which may have parameters to give to it
        first = len(scheduler.schedule)
        with warnings.catch_warnings():  # the checks said them already, with their place
            warnings.simplefilter("ignore", ScheduleWarning)
            for policy in planned:
                scheduler.add_policy(policy.policy, **_times(policy.spec.timing))
                _name_last(scheduler, policy, self._spec)
        scheduler.notes += [str(warning) for warning in self._report.warnings]
        if self._optimizer is not None and options.resumed_epoch is not None:
            continue_learning_rates_(planned, self._optimizer, options.resumed_epoch)
        if isinstance(scheduler, LoadedScheduler):
            scheduler.restore_saved(first=first, resumed_epoch=options.resumed_epoch)
        return scheduler


def _name_last(scheduler: CompressionScheduler, policy: PlannedPolicy, spec: ScheduleSpec) -> None:
    """Tell the scheduler what the author wrote, for reports."""
    entry = scheduler.entries[-1]
    definition = find_instance(spec, policy.spec)
    entry.name = policy.spec.instance_name
    if definition is not None:
        entry.settings = {"class": definition.class_name, **definition.args, **policy.spec.args}
    if spec.recipe is not None:
        place = (policy.kind.section, policy.spec.instance_name)
        found = next((m for m in spec.recipe.modifiers if m.instance == place), None)
        if found is not None:
            entry.settings = {"modifier": found.tag, **found.properties}


def _times(timing: Mapping[str, Any]) -> dict[str, Any]:
    return {name: timing[name] for name in TIMING_KEYS if timing.get(name) is not None}


def _check_options(model: nn.Module, optimizer: Optimizer | None, options: Options) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise ArgumentError(f"optimizer must be a torch optimizer or None, got {type(optimizer).__name__}")
    if options.on_unmatched not in get_args(OnUnmatched):
        hint = did_you_mean(str(options.on_unmatched), get_args(OnUnmatched))
        raise ArgumentError(f"on_unmatched cannot be {options.on_unmatched!r}. {hint}")
    teachers: Any = options.teachers
    if not isinstance(teachers, Mapping) or not all(
        isinstance(name, str) and isinstance(module, nn.Module) for name, module in teachers.items()
    ):
        raise ArgumentError(f"teachers maps names to modules, {{'resnet56': module}}; got {teachers!r}")
    epoch = options.resumed_epoch
    if epoch is not None and (isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < -1):
        raise ArgumentError(f"resumed_epoch is the last completed epoch or None, got {epoch!r}")
    existing = options.scheduler
    if existing is not None:
        if not isinstance(existing, CompressionScheduler):
            raise ArgumentError(f"scheduler must be a CompressionScheduler, got {type(existing).__name__}")
        if unwrap(existing.model) is not unwrap(model):
            raise ArgumentError("scheduler belongs to another model than the one given")
