"""SparseML's recipes: YAML, or Markdown with YAML front matter, that lists modifiers (layer 4)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any, ClassVar

from distiller_ng.config.frontends.base import FRONTENDS, Frontend
from distiller_ng.config.frontends.recipe.marks import RecipeMarks
from distiller_ng.config.frontends.recipe.modifiers import Layout, read_layout
from distiller_ng.config.frontends.recipe.newer import as_tagged
from distiller_ng.config.frontends.recipe.nodes import load_recipe_document
from distiller_ng.config.frontends.recipe.text import find_recipe, looks_like_recipe
from distiller_ng.config.frontends.recipe.timing import latest_epoch
from distiller_ng.config.frontends.recipe.translation import Translated, translate
from distiller_ng.config.frontends.recipe.variables import UNRESOLVED, RecipeArgs, check_overrides, parse_recipe_args
from distiller_ng.config.marks import Path, as_part
from distiller_ng.config.problems import TEXT_SOURCE, Report
from distiller_ng.config.spec import ModifierSpec, RecipeSpec, ScheduleSpec
from distiller_ng.core.context import Compat

__all__ = ["RecipeFrontend"]

#: The variable that asks for SparseML's own results where this library's differ.
STRICT = "strict_sparseml"


@FRONTENDS.register("recipe")
class RecipeFrontend(Frontend):
    """A recipe::

    num_epochs: 10
    training_modifiers:
      - !EpochRangeModifier
        start_epoch: 0
        end_epoch: eval(num_epochs)
    pruning_modifiers:
      - !GMPruningModifier
        params: __ALL_PRUNABLE__
        init_sparsity: 0.05
        final_sparsity: 0.85
        start_epoch: 0
        end_epoch: eval(num_epochs / 2)
        update_frequency: 0.5

    Each modifier becomes one component and one policy, named ``pruning_modifiers.0.GMPruning``; policies come in the
    order in which modifiers act: by their end (never last), then their start.
    """

    priority: ClassVar[int] = 100

    def accepts(self, path: FilePath | None, text: str) -> bool:
        """A Markdown file, a text with ``!SomeModifier`` tags or with a key such as ``training_modifiers:``."""
        return looks_like_recipe(path, text)

    def parse(self, text: str, *, source: str, recipe_args: RecipeArgs = None) -> ScheduleSpec:
        """The spec of a recipe; raises :class:`ScheduleError` for a text without modifiers.

        ``recipe_args``: values for the recipe's variables; raises :class:`ArgumentError` for one it does not have.
        """
        overrides = parse_recipe_args(recipe_args)
        path = None if source == TEXT_SOURCE else FilePath(source)
        found = find_recipe(path, text, source)
        document = load_recipe_document(found.text, source)
        marks = document.marks
        report = Report(source, marks, list(document.problems), [*found.warnings, *document.warnings])
        layout = read_layout(document.data, source, report)
        check_overrides(overrides, layout.scopes)
        for scope in layout.scopes:
            scope.overrides = {name: value for name, value in overrides.items() if name in scope.values}
            scope.check()
        translated = _translated(_resolved(layout, report), layout, report)
        renamed = {t.modifier.path: t.renamed for t in translated}
        compat, variables = _compat(layout, report), _variables(layout)
        return ScheduleSpec(
            source,
            tuple(t.component for t in translated if t.is_whole),
            tuple(t.policy for t in translated if t.is_whole),
            RecipeMarks(marks.keys, marks.values, marks.start, renamed),
            tuple(report.problems),
            tuple(report.warnings),
            text,
            compat,
            RecipeSpec(tuple(t.modifier for t in translated), dict(layout.metadata), variables),
        )


def _resolved(layout: Layout, report: Report) -> list[ModifierSpec]:
    """The modifiers with the values of variables in place."""
    found = []
    for modifier, scope in layout.modifiers:
        properties: dict[str, Any] = {}
        for name, value in modifier.properties.items():
            before = len(report.problems)
            settled = scope.settle(value, (*modifier.path, as_part(name)))
            properties[name] = settled if len(report.problems) == before else UNRESOLVED
        resolved = replace(modifier, properties=properties)
        found.append(as_tagged(resolved, report) if resolved.is_newer else resolved)
    return found


def _translated(modifiers: list[ModifierSpec], layout: Layout, report: Report) -> list[Translated]:
    """All of them, in the order in which they act."""
    ends = [latest_epoch(modifier.properties) for modifier in modifiers]
    run_end = float(max(ends, default=-1))
    translated = [translate(modifier, _name(modifier), run_end, report) for modifier in modifiers]
    known = [entry for entry in translated if entry is not None]
    if not layout.is_staged:
        return sorted(known, key=_order)
    stages: dict[str, list[Translated]] = {}
    for entry in sorted(known, key=_order):
        stages.setdefault(entry.modifier.stage, []).append(entry)
    ordered = sorted(
        stages.values(), key=lambda part: (max(t.timing.end for t in part), min(t.timing.start for t in part))
    )
    return [entry for part in ordered for entry in part]


def _order(entry: Translated) -> tuple[float, float, str]:
    return (*entry.timing.order, entry.modifier.tag)


def _name(modifier: ModifierSpec) -> str:
    """``pruning_modifiers.0.GMPruning``: stable for checkpoints while the recipe's layout is."""
    place: Path = modifier.path or (modifier.group,)
    if place and isinstance(place[0], int):
        place = (modifier.group, *place)
    return ".".join(map(str, place)) + (f".{_short(modifier.tag)}" if isinstance(place[-1], int) else "")


def _short(tag: str) -> str:
    return tag.removesuffix("Modifier") or tag


def _variables(layout: Layout) -> dict[str, Any]:
    """Resolved values of the recipe's own variables, as far as they have one."""
    top = layout.scopes[0]
    return {name: top.settle(value, (name,)) for name, value in top.values.items()}


def _compat(layout: Layout, report: Report) -> Compat | None:
    top = layout.scopes[0]
    if STRICT not in top.values:
        return None
    value = top.settle(top.overrides.get(STRICT, top.values[STRICT]), (STRICT,))
    if not isinstance(value, bool):
        report.error((STRICT,), f"{STRICT} is true or false, got {value!r}")
    return "sparseml" if value is True else None
