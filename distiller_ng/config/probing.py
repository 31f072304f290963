"""Finding everything that a constructor refuses, although it raises only its first complaint (layer 4)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from distiller_ng.config.arguments import WrittenArguments, nested_table
from distiller_ng.config.examples import element_of, examples_of
from distiller_ng.config.marks import Path, format_path
from distiller_ng.config.problems import shown
from distiller_ng.config.signatures import Argument
from distiller_ng.errors import ArgumentError, DistillerError, TargetError

__all__ = ["CONSTRUCTOR_ERRORS", "Complaint", "Prober"]

#: What constructors of other people raise for arguments they do not like.
CONSTRUCTOR_ERRORS = (
    DistillerError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
)

_TRIALS = 500  # constructor calls for one component; without wrong arguments it is one
_LEVELS = 150  # complaints in a row
_MOST = (5, 3, 2)  # how many examples of the first, second, later wrong argument must agree


@dataclass(frozen=True, slots=True)
class Complaint:
    """What is wrong with the value at ``argument`` (a path in the file, below the component).

    ``is_target``: a name that fits nothing. ``is_foreign``: an exception that is not ours.
    """

    argument: Path
    message: str
    value: str = ""
    is_target: bool = False
    is_foreign: bool = False


class _Complaints(dict[Path, Complaint]):
    """Complaints by place; ``is_complete`` if the trials behind them ended with something that was built."""

    is_complete = True


class Prober:
    """Constructs again and again with what was complained about replaced by examples, to learn what else is wrong.

    ``build`` takes a mapping of arguments and has no effect but its result; ``arguments`` are what it takes. A
    complaint met while an argument is replaced counts only if it is met whatever that argument is replaced by, and if
    it is about something the user wrote: else it may be the example's fault. After :meth:`run`, ``component`` and
    ``survivor`` hold what was built, and from which arguments, if leaving out arguments or entries was enough.

    With ``initial_sparsity: -1`` and ``final_sparsity: 0.2`` an initial sparsity of 1 makes the constructor complain
    about the final one, but 0 does not: there is one complaint. With ``final_sparsity: 3`` there are two.
    """

    def __init__(self, build: Callable[[Mapping[str, Any]], Any], arguments: Mapping[str, Argument]) -> None:
        self._build = build
        self._arguments = arguments
        self._left = _TRIALS
        self._level = 0
        self.component: Any = None
        self.survivor: WrittenArguments | None = None

    def run(self, written: WrittenArguments) -> list[Complaint]:
        """Everything the constructor complains about; empty if it takes the arguments as they are."""
        if not written.pending:
            try:  # the usual case, whose warnings are for the user
                self.component, self.survivor = self._build(written.values), written
            except CONSTRUCTOR_ERRORS:
                pass
            else:
                return []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return list((self._settle(written, list(written.pending), 0) or {}).values())

    # -- the search: None stands for a trial that says nothing ------------------------------------------------------

    def _settle(self, trial: WrittenArguments, pending: list[Path], depth: int) -> _Complaints | None:
        """Replace what is known to be wrong before the first trial."""
        if not pending:
            return self._try(trial, depth)
        first, *others = pending
        trials = self._with_entry(trial, first) if self._is_entry(trial, first) else self._with_argument(trial, first)
        return _agreed((self._settle(t, others, depth + 1) for t in trials), depth)

    def _try(self, trial: WrittenArguments, depth: int) -> _Complaints | None:
        if self._left == 0 or self._level == _LEVELS:
            return None
        self._left -= 1
        try:
            component = self._build(trial.values)
        except ArgumentError as error:
            self._level += 1
            try:
                return self._complaints(trial, error, depth)
            finally:
                self._level -= 1
        except CONSTRUCTOR_ERRORS as error:
            if trial.replaced:
                return None
            return _Complaints({(): Complaint((), f"{type(error).__name__}: {error}", is_foreign=True)})
        if not trial.has_examples and self.survivor is None:
            self.component, self.survivor = component, trial
        return _Complaints()

    def _complaints(self, trial: WrittenArguments, error: ArgumentError, depth: int) -> _Complaints | None:
        """This complaint, and those behind it."""
        path = error.argument
        if trial.is_made_up(path):
            return None
        found = _Complaints()
        if not trial.replaced or trial.holds(path):
            place = trial.original(path)
            value = shown(trial.at(path))
            found[place] = Complaint(place, str(error), value, isinstance(error, TargetError))
        further = self._behind(trial, path, depth) if path else None
        if further is None:
            found.is_complete = False
            return found or None
        for place, complaint in further.items():
            found.setdefault(place, complaint)
        found.is_complete = further.is_complete
        return found

    def _behind(self, trial: WrittenArguments, path: Path, depth: int) -> _Complaints | None:
        """What is complained about once the value at ``path`` is out of the way."""
        if self._is_entry(trial, path):
            container = trial.original(path[:1])
            common: _Complaints | None = None
            for changed in self._with_entry(trial, path):
                found = self._try(changed, depth)
                common = found if common is None else _in_both(common, found)
                if common is not None and container not in common:  # else the change may have spoilt the whole
                    return common
            if common is not None:
                return common
        return _agreed((self._try(t, depth + 1) for t in self._with_argument(trial, path)), depth)

    # -- changed arguments ------------------------------------------------------------------------------------------

    @staticmethod
    def _is_entry(trial: WrittenArguments, path: Path) -> bool:
        """Whether ``path`` lies inside a map or a list, other than a nested definition."""
        return len(path) > 1 and path[0] not in trial.nested

    def _with_entry(self, trial: WrittenArguments, path: Path) -> Iterator[WrittenArguments]:
        """Without one entry of a map or list, or with an example in its place."""
        dropped = trial.copy()
        if dropped.drop(path):
            yield dropped
        name, part = str(path[0]), path[1]
        value, argument = trial.values.get(name), self._arguments.get(name)
        for example in examples_of(element_of(argument.annotation), None) if argument is not None else ():
            if isinstance(value, Mapping) and part in value:
                changed: Any = {**value, part: example}
            elif isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
                changed = [*value[:part], example, *value[part + 1 :]]
            else:
                return
            yield trial.changed(path[:2], {**trial.values, name: changed})

    def _with_argument(self, trial: WrittenArguments, path: Path) -> Iterator[WrittenArguments]:
        """Without one argument (or one of a nested definition), or with examples of what it could be."""
        name = str(path[0])
        argument = self._arguments.get(name)
        if argument is None:
            return
        table, nested = nested_table(argument), trial.values.get(name)
        if table is not None and len(path) > 1 and isinstance(nested, Mapping) and nested.get("class") in table.names():
            inner = table.get(nested["class"]).arguments.get(str(path[1]))
            if inner is not None:
                for values, is_example in _with_examples(nested, inner):
                    yield trial.changed(path[:2], {**trial.values, name: values}, example=is_example)
                return
        for values, is_example in _with_examples(trial.values, argument):
            yield trial.changed((name,), values, example=is_example)


def _with_examples(values: Mapping[str, Any], argument: Argument) -> Iterator[tuple[dict[str, Any], bool]]:
    """The arguments without one of them if it is optional, and with examples of it (True)."""
    if not argument.required:
        yield {name: value for name, value in values.items() if name != argument.name}, False
    others = [value for name, value in values.items() if name != argument.name]
    for example in examples_of(argument.annotation, values.get(argument.name), others):
        yield {**values, argument.name: example}, True


def _agreed(branches: Iterable[_Complaints | None], depth: int) -> _Complaints | None:
    """What all branches that say something complain about."""
    common: _Complaints | None = None
    told = 0
    for found in branches:
        told += found is not None and found.is_complete
        common = found if common is None else _in_both(common, found)
        if (told and not common) or told == _MOST[min(depth, len(_MOST) - 1)]:
            break
    return common


def _in_both(first: _Complaints, second: _Complaints | None) -> _Complaints:
    if second is None:
        return first
    if first.is_complete != second.is_complete:  # a search that got stuck knows less
        return first if first.is_complete else second
    both = _Complaints({place: _merged(c, second[place]) for place, c in first.items() if place in second})
    both.is_complete = first.is_complete
    return both


def _merged(first: Complaint, second: Complaint) -> Complaint:
    """One complaint for two: messages that differ mention the examples, which the user has never seen."""
    if first.message == second.message:
        return first
    return replace(first, message=f"{format_path(first.argument)} cannot be {first.value}, whatever the others are")
