"""From policy entries to live policies with their windows (layer 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distiller_ng.config.arguments import WrittenArguments, check_arguments
from distiller_ng.config.classes import ComponentClass
from distiller_ng.config.components import located_warnings
from distiller_ng.config.kinds import Kind, kind_of_key
from distiller_ng.config.marks import Path
from distiller_ng.config.probing import CONSTRUCTOR_ERRORS, Prober
from distiller_ng.config.problems import Report
from distiller_ng.config.signatures import Argument
from distiller_ng.config.spec import ComponentSpec, PolicySpec, ScheduleSpec
from distiller_ng.config.validation import check_value
from distiller_ng.core.policy import Policy
from distiller_ng.core.window import PolicyWindow, Trigger
from distiller_ng.errors import ArgumentError, TargetError, did_you_mean, listed
from distiller_ng.names import ParameterIndex

__all__ = ["MAX_EPOCH", "PlannedPolicy", "PolicyBuilder", "find_instance"]

#: No training has as many epochs; a larger number is a typing error, and listing its epochs would take minutes.
MAX_EPOCH = 1_000_000

_TIMING_ARGUMENTS = {
    "epochs": Argument("epochs", Sequence[int]),
    **{name: Argument(name, float) for name in ("starting_epoch", "ending_epoch")},
    "frequency": Argument("frequency", float, 1),
    "trigger": Argument("trigger", Trigger, "epoch"),
}


@dataclass(frozen=True, slots=True)
class PlannedPolicy:
    """A policy that is ready to be added, or that could be checked only in part (``policy`` is None)."""

    spec: PolicySpec
    kind: Kind
    component: Any
    window: PolicyWindow
    policy: Policy


def find_instance(spec: ScheduleSpec, policy: PolicySpec, report: Report | None = None) -> ComponentSpec | None:
    """The definition a policy names; reported if there is none."""
    kind = kind_of_key(policy.key)
    found = next((c for c in spec.section(kind.section) if c.name == policy.instance_name), None)
    if found is None and report is not None:
        elsewhere = [c.section for c in spec.components if c.name == policy.instance_name]
        names = [c.name for c in spec.section(kind.section)]
        if elsewhere:
            hint = f"It is defined below {listed(elsewhere)}; a {policy.key!r} policy looks below {kind.section}"
        else:
            hint = did_you_mean(policy.instance_name, names)
        report.error(policy.instance_path, f"no {kind.noun} is called {policy.instance_name!r}. {hint}")
    return found


@dataclass(slots=True)
class PolicyBuilder:
    """Builds the policies of one schedule and reports what is wrong with each.

    ``names_unknown``: there is only a stand-in for the model, so names that match nothing say nothing.
    """

    schedule: ScheduleSpec
    parameters: ParameterIndex
    report: Report
    warn_unmatched: bool = False
    names_unknown: bool = False

    def build(self, spec: PolicySpec, components: Mapping[tuple[str, str], Any]) -> PlannedPolicy | None:
        """The policy, or None after its problems were reported (or those of its component were)."""
        kind = kind_of_key(spec.key)
        definition = find_instance(self.schedule, spec, self.report)
        window = self._window(spec)
        component = None if definition is None else components.get((kind.section, spec.instance_name))
        with located_warnings(self.report, spec.path):
            policy = self._policy(spec, kind, component)
            if definition is None or component is None or window is None or policy is None:
                return None
            return self._check(PlannedPolicy(spec, kind, component, window, policy), definition)

    def _check(self, planned: PlannedPolicy, definition: ComponentSpec) -> PlannedPolicy | None:
        if self.names_unknown and planned.kind.reads_layers:
            return planned
        try:
            planned.policy.check(planned.window, self.parameters)
        except ArgumentError as error:
            if not (self.names_unknown and isinstance(error, TargetError)):
                self.report.error(self._place(planned, definition, error.argument), str(error))
            return None
        except CONSTRUCTOR_ERRORS as error:
            self.report.error(planned.spec.path, f"{type(error).__name__}: {error}")
            return None
        return planned

    @staticmethod
    def _place(planned: PlannedPolicy, definition: ComponentSpec, argument: Path) -> Path:
        """Where an argument that a policy's check complains about stands: with the times, the args or the component."""
        spec = planned.spec
        if argument and argument[0] in spec.timing_paths:
            return (*spec.timing_paths[str(argument[0])], *argument[1:])
        if argument and argument[0] in spec.args:
            return (*spec.args_path, *argument)
        return (*definition.path, *argument) if argument and argument[0] in definition.args else spec.path

    # -- arguments --------------------------------------------------------------------------------------------------

    def _policy(self, spec: PolicySpec, kind: Kind, component: Any) -> Policy | None:
        """The policy, or None after the problems of its own arguments were reported.

        Without a component only what does not depend on it is checked.
        """
        title = f"a {spec.key} policy"
        takes = ComponentClass(title, kind.make_policy, kind.policy_args)
        before = len(self.report.problems)
        written = check_arguments(takes, spec.args, spec.args_path, self.report)
        for error in reversed(kind.unmatched(kind.arg_targets(written.values), self.parameters)):
            if self.names_unknown and isinstance(error, TargetError):
                continue
            soft = self.warn_unmatched and isinstance(error, TargetError) and written.drop(error.argument)
            (self.report.warn if soft else self.report.error)((*spec.args_path, *error.argument), str(error))

        def build(values: Mapping[str, Any]) -> Any:
            return kind.check_args(values) if component is None else kind.make_policy(component, values)

        prober = Prober(build, kind.policy_args)
        for complaint in prober.run(written):
            if self.names_unknown and complaint.is_target:
                continue
            place = (*spec.args_path, *complaint.argument) if complaint.argument else spec.path
            self.report.error(place, complaint.message)
        policy: Policy | None = prober.component
        return policy if len(self.report.problems) == before else None

    # -- time -------------------------------------------------------------------------------------------------------

    def _window(self, spec: PolicySpec) -> PolicyWindow | None:
        """The window, or None after problems were reported."""
        before = len(self.report.problems)
        timing = {name: value for name, value in spec.timing.items() if value is not None}
        if "epochs" in timing and len(timing) > 1:
            others = listed(name for name in timing if name != "epochs")
            message = f"epochs cannot be combined with {others}: give one or the other"
            self.report.error(spec.timing_paths["epochs"], message, at_key=True)
            timing = {"epochs": timing["epochs"]}
        missing: list[str] = []
        if "epochs" not in timing:
            missing = [name for name in ("starting_epoch", "ending_epoch") if name not in timing]
            if missing:
                hint = "give epochs, or starting_epoch and ending_epoch (exclusive, -1 = never ends)"
                self.report.error(spec.path, f"{listed(missing)} missing: {hint}")
        written = WrittenArguments(dict(timing))
        for name in timing:
            written.pending += self._check_time(name, timing[name], spec)
        written.pending += [(name,) for name in missing]
        prober = Prober(lambda values: PolicyWindow.from_arguments(**values), _TIMING_ARGUMENTS)
        for complaint in prober.run(written):
            place = spec.timing_paths.get(str(complaint.argument[0])) if complaint.argument else None
            self.report.error((*place, *complaint.argument[1:]) if place else spec.path, complaint.message)
        window: PolicyWindow | None = prober.component
        return window if len(self.report.problems) == before else None

    def _check_time(self, name: str, value: Any, spec: PolicySpec) -> list[Path]:
        """Report wrong types and numbers beyond all reason; where they are."""
        path = spec.timing_paths[name]
        checked, messages = check_value(_TIMING_ARGUMENTS[name], value)
        for below, message in messages:
            self.report.error((*path, *below), message)
        wrong: list[Path] = [(name, *below[:1]) for below, _ in messages]
        values = checked if isinstance(checked, list | tuple | range) else [checked]
        for at, number in enumerate(values if not messages else ()):
            if not isinstance(number, str) and number > MAX_EPOCH:
                here: Path = (at,) if name == "epochs" else ()
                hint = "; -1 leaves the window open" if name == "ending_epoch" else ""
                self.report.error((*path, *here), f"{name} is at most {MAX_EPOCH}, got {number:g}{hint}")
                wrong.append((name, *here))
        return wrong
