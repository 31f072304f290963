"""Building components from their definitions, reporting everything that is wrong with each (layer 4)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from distiller_ng.config.arguments import WrittenArguments, check_arguments
from distiller_ng.config.classes import ComponentClass
from distiller_ng.config.kinds import KINDS, Kind
from distiller_ng.config.marks import Path
from distiller_ng.config.probing import Complaint, Prober
from distiller_ng.config.problems import Report
from distiller_ng.config.spec import ComponentSpec
from distiller_ng.errors import ArgumentError, ScheduleWarning, TargetError
from distiller_ng.graph.inputs import ExampleInputsLike
from distiller_ng.knowledge_distillation._read_teachers import names_a_teacher
from distiller_ng.names import ParameterIndex

__all__ = ["Builder", "located_warnings"]


@contextmanager
def located_warnings(report: Report, path: Path) -> Iterator[None]:
    """Give the :class:`ScheduleWarning` that components emit a place in the file; others pass."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if issubclass(warning.category, ScheduleWarning):
            report.warn(path, str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@dataclass(frozen=True, slots=True)
class _Draft:
    """One definition on its way to a component."""

    spec: ComponentSpec
    kind: Kind
    found: ComponentClass
    written: WrittenArguments
    injected: Mapping[str, Any]
    used: bool


@dataclass(slots=True)
class Builder:
    """Builds components against one model; nothing on the model or the optimizer changes.

    ``extra`` are arguments given from Python, over those of the file; ``teachers`` are what distillers name.
    ``warn_unmatched``: targets that match nothing
    are left out with a warning instead of being problems. ``unknown``: what is a stand-in, see ``Options``.
    """

    model: nn.Module
    parameters: ParameterIndex
    optimizer: Optimizer | None
    report: Report
    extra: Mapping[str, Any] = field(default_factory=dict)
    warn_unmatched: bool = False
    allow_user_classes: bool = False
    teachers: Mapping[str, nn.Module] = field(default_factory=dict)
    example_inputs: ExampleInputsLike | None = None
    unknown: frozenset[str] = frozenset()

    def build(self, spec: ComponentSpec, *, used: bool = True) -> Any:
        """The component, or None after its problems were reported.

        With ``used=False`` (no policy names it) targets that match nothing are only warnings.
        """
        kind = KINDS[spec.section]
        found = self.find(spec, kind)
        if found is None:
            return None
        before = len(self.report.problems)
        given = {name: value for name, value in spec.args.items() if name not in self.extra}
        given |= {name: value for name, value in self.extra.items() if name in found.arguments}
        written = check_arguments(found, given, spec.path, self.report)
        if "teachers" in self.unknown and "teachers" in found.injected and names_a_teacher(spec.args):
            return None
        injected = self._injected(found, spec)
        component = None
        if injected is not None:
            draft = _Draft(spec, kind, found, written, injected, used)
            with located_warnings(self.report, spec.path):
                component = self._construct(draft)
                if component is not None:
                    component = self._match(draft, component)
        if component is None and used and found.is_built_in:
            self._match_text(kind, spec)
        return component if len(self.report.problems) == before else None

    def _match_text(self, kind: Kind, spec: ComponentSpec) -> None:
        """Report the unmatched targets of a definition that cannot be built."""
        for error in kind.unmatched(kind.written_targets(spec.args), self.parameters):
            is_open = "model" in self.unknown and isinstance(error, TargetError)
            if not self._warns(spec) and not is_open:
                self.report.error((*spec.path, *error.argument), str(error))

    def _warns(self, spec: ComponentSpec) -> bool:
        return self.warn_unmatched or spec.may_miss

    def find(self, spec: ComponentSpec, kind: Kind) -> ComponentClass | None:
        """The class; reported if there is none."""
        name, classes = spec.class_name, kind.classes
        if classes is None:
            message = f"unknown {kind.noun} class {name!r}: this version has no {kind.section}"
        else:
            try:
                if name in classes.names() or "." not in name:
                    return classes.get(name)
                if self.allow_user_classes:
                    return classes.adopt(name)
                message = _refusal(name, kind)
            except ArgumentError as error:
                message = str(error)
        self.report.error((*spec.path, "class"), _misplaced(name, kind) or message)
        return None

    def _injected(self, found: ComponentClass, spec: ComponentSpec) -> dict[str, Any] | None:
        available: dict[str, Any] = {
            "name": spec.name,
            "model": self.model,
            "optimizer": self.optimizer,
            "teachers": self.teachers,
            "example_inputs": self.example_inputs,
            **self.extra,
        }
        if "optimizer" in found.injected and available["optimizer"] is None:
            self.report.error(spec.path, f"{found.name} needs an optimizer, but none was given", at_key=True)
            return None
        return {name: available[name] for name in found.injected if name in available}

    def _construct(self, draft: _Draft) -> Any:
        """Call the constructor and report all it complains about; the component if it can do without bad entries."""
        prober = Prober(lambda values: draft.found.build(**{**values, **draft.injected}), draft.found.arguments)
        for complaint in prober.run(draft.written):
            if self._is_open(draft, complaint):
                continue
            if complaint.is_foreign:
                self.report.error(draft.spec.path, f"{draft.found.name}: {complaint.message}", at_key=True)
            else:
                soft = (self._warns(draft.spec) or not draft.used) and complaint.is_target
                self._report_at((*draft.spec.path, *complaint.argument), complaint.message, soft=soft)
        if prober.survivor is not None:
            draft.written.adopt(prober.survivor)
        return prober.component

    def _is_open(self, draft: _Draft, complaint: Complaint) -> bool:
        """Whether a complaint may be about the stand-in for the model."""
        if "model" not in self.unknown:
            return False
        return complaint.is_target or (complaint.is_foreign and "model" in draft.found.injected)

    def _match(self, draft: _Draft, component: Any) -> Any:
        """Look every target up on the model; the component, or where that is allowed one without the unmatched."""
        component = self._fit(draft, component)
        if component is None:
            return None
        errors = draft.kind.unmatched(draft.kind.targets(component), self.parameters)
        if "model" in self.unknown:
            for error in errors:
                if not isinstance(error, TargetError):  # a pattern that cannot be read
                    self._note(draft, error, soft=False)
            return component
        soft = self._warns(draft.spec) or not draft.used
        for error in errors:
            self._note(draft, error, soft=soft and isinstance(error, TargetError))
        if not (errors and soft and draft.used):
            return component
        for error in reversed(errors):
            if not draft.written.drop(error.argument):
                self.report.warn(draft.spec.path, f"{draft.spec.label} has nothing left to work on", at_key=True)
                return None
        return self._construct(draft)

    def _fit(self, draft: _Draft, component: Any) -> Any:
        """Let the component look at the parameters it found; those it cannot work with are reported and left out."""
        if "model" in self.unknown and draft.kind.reads_layers:
            return component
        while component is not None:
            try:
                draft.kind.fit(component, self.parameters)
            except ArgumentError as error:
                if "model" in self.unknown:
                    return component
                self._note(draft, error, soft=not draft.used and isinstance(error, TargetError))
                component = self._construct(draft) if draft.written.drop(error.argument) else None
            else:
                return component
        return None

    def _note(self, draft: _Draft, error: ArgumentError, *, soft: bool) -> None:
        self._report_at((*draft.spec.path, *draft.written.original(error.argument)), str(error), soft=soft)

    def _report_at(self, path: Path, message: str, *, soft: bool) -> None:
        (self.report.warn if soft else self.report.error)(path, message)


def _refusal(name: str, kind: Kind) -> str:
    """What to say about a dotted path that may not be imported."""
    last = name.rpartition(".")[2]
    if last in kind.class_names():
        return f"unknown {kind.noun} class {name!r}. Write the name alone: {last!r}"
    return (
        f"{name!r} is a class of your own: such are imported only with allow_user_classes=True. Or register it in your "
        "program and write its registered name"
    )


def _misplaced(name: str, kind: Kind) -> str:
    """What to say about a class of another kind; nothing if no kind has it."""
    other = next((k for k in KINDS.values() if k is not kind and name in k.class_names()), None)
    return f"{name} is a {other.noun}: define it below {other.section}, not {kind.section}" if other else ""
