"""A first schedule as commented YAML."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from distiller_ng.automatic._first_target import Technique
from distiller_ng.automatic._first_windows import Windows
from distiller_ng.automatic._schedule_parts import FILTER_REMOVER, cosine, policy, quoted

__all__ = ["Entry", "Sheet", "schedule_text"]

_WIDTH = 110


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in the schedule (or left out of it, level 0): what is done with it, and why."""

    name: str
    level: float
    comment: str


@dataclass(frozen=True, slots=True)
class Sheet:
    """Everything the text says. ``batch_norms``: whether the model has any whose statistics can be frozen;
    ``activations``: any modules whose outputs can be rounded."""

    technique: Technique
    windows: Windows
    entries: Sequence[Entry]
    header: Sequence[str] = ()
    papers: Mapping[str, str] = field(default_factory=dict)
    rounded: str = ""
    batch_norms: bool = False
    activations: bool = True

    @property
    def levels(self) -> dict[float, list[Entry]]:
        """The pruned entries by their level, lowest first, in model order."""
        found: dict[float, list[Entry]] = {}
        for entry in self.entries:
            if entry.level > 0:
                found.setdefault(entry.level, []).append(entry)
        return dict(sorted(found.items()))


def schedule_text(sheet: Sheet) -> str:
    """The file; every line a comment, or YAML that :func:`distiller_ng.file_config` loads."""
    parts = [_comment(sheet.header, ""), "version: 1"]
    if sheet.levels:
        parts.append(_pruners(sheet))
    if sheet.windows.thin is not None and sheet.levels:
        parts.append(FILTER_REMOVER)
    if sheet.windows.quantize is not None:
        parts.append(_quantizer(sheet))
    parts += [cosine(sheet.windows.epochs), _policies(sheet)]
    if sheet.papers:
        parts.append(_comment(["Papers:", *(f"  [{key}] {text}" for key, text in sheet.papers.items())], ""))
    return "\n\n".join(part for part in parts if part) + "\n"


# -- definitions -------------------------------------------------------------------------------------------------------


_WHAT = {
    False: "WHAT IS PRUNED, and how far: 0.8 means that 80 % of a layer's weights become zero.",
    True: "WHAT IS PRUNED, and how far: final_sparsity 0.5 means that half of a layer's filters go, step by step. Each "
    "level has a pruner.",
}


def _pruners(sheet: Sheet) -> str:
    kept = [entry for entry in sheet.entries if entry.level == 0]
    lines = [_comment([_WHAT[sheet.technique.group == "filter"]], ""), "pruners:"]
    if sheet.technique.group == "filter":
        lines += _filter_pruners(sheet)
    elif sheet.technique.pattern is not None:
        lines += _pattern_pruner(sheet)
    else:
        lines += _weight_pruner(sheet)
    if kept:
        lines += ["", _comment(["Not pruned:"], "  ")]
        lines += [_comment([f"{entry.name}: {entry.comment}"], "  ", hanging=2) for entry in kept]
    return "\n".join(lines)


def _weight_pruner(sheet: Sheet) -> list[str]:
    lines = [
        "  smallest_weights:",
        "    class: MagnitudePruner      # in each layer, the weights nearest to zero go first",
        "    init_sparsity: 0.0",
        "    inter_func: cubic           # quickly at first, slowly at the end: gradual pruning [Zhu]",
        "    final_sparsity:             # share of zeros at the end: [weights that get it]",
    ]
    for level, entries in sheet.levels.items():
        lines.append(f"      {level:g}:")
        lines += _named(entries, "        ")
    return lines


def _pattern_pruner(sheet: Sheet) -> list[str]:
    pattern = sheet.technique.pattern
    final = next(iter(sheet.levels))
    return [
        f"  pattern_{str(pattern).replace(':', '_')}:",
        "    class: MagnitudePruner",
        f"    pattern: '{pattern}'              # of each 4 neighbours along the inputs, the 2 smallest go [Mishra]",
        f"    schedule: {{class: AGP, initial_sparsity: 0.0, final_sparsity: {final:g}}}   # step by step [Zhu]",
        "    weights:",
        *_named(sheet.levels[final], "      "),
    ]


def _filter_pruners(sheet: Sheet) -> list[str]:
    lines = []
    told = (
        "   # filters with all that is tied to them [Fang]",
        "   # those of smallest weights first [Li]",
        "   # [Zhu]",
    )
    for level, entries in sheet.levels.items():
        lines += [
            f"  {_filters_name(level)}:",
            f"    class: GroupPruner{told[0]}",
            f"    importance: l1{told[1]}",
            f"    schedule: {{class: AGP, initial_sparsity: 0.0, final_sparsity: {level:g}}}{told[2]}",
            "    weights:",
            *_named(entries, "      "),
        ]
        told = ("", "", "")  # once is enough
    return lines


_ENDS = "The first and the last layer get 8 bits too: that is what they keep where others have 4 [Esser]."


def _quantizer(sheet: Sheet) -> str:
    what = "weights and activations are rounded" if sheet.activations else "weights are rounded"
    return "\n".join(
        [
            _comment(
                [f"8 BITS: {what} while the model trains, so that it learns to live with it [Jacob]. {_ENDS}"], ""
            ),
            *([_comment([sheet.rounded], "")] if sheet.rounded else []),
            "quantizers:",
            "  int8:",
            "    class: QuantAwareTrainRangeLinearQuantizer",
            "    bits_weights: 8",
            f"    bits_activations: {'8' if sheet.activations else 'null'}",
            "    per_channel_wts: true       # a scale for each filter; depthwise layers need it [Krishnamoorthi]",
            "    mode: {weights: SYMMETRIC_RESTRICTED, activations: ASYMMETRIC_UNSIGNED}   # what x86 runs fastest",
        ]
    )


# -- policies ----------------------------------------------------------------------------------------------------------


def _policies(sheet: Sheet) -> str:
    windows, last = sheet.windows, sheet.windows.epochs
    lines = [
        "# WHEN. Epochs count from 0, and ending_epoch is the first one in which the policy does not act.",
        "policies:",
    ]
    if sheet.levels and windows.prune is not None:
        start, end, every = windows.prune
        lines += [_comment([_prune_words(windows)], "  ", hanging=2)]
        for name in _pruner_names(sheet):
            lines += policy("pruner", name, start, end, every)
    if sheet.levels and windows.thin is not None:
        after = f", then {last - windows.thin} epochs of fine-tuning" if windows.thin < last else ""
        lines += [
            f"  # Epoch {windows.thin}: the pruned filters are removed{after}.",
            "  - extension: {instance_name: thinner}",
            f"    epochs: [{windows.thin}]",
        ]
    if windows.quantize is not None:
        lines += _quantize_policy(sheet)
    lines += policy("lr_scheduler", "cosine", 0, last, 1)
    return "\n".join(lines)


def _prune_words(windows: Windows) -> str:
    start, end, every = windows.prune or (0, 0, 1)
    heal = "" if windows.thin is not None else f", and from {end:g} on the remaining weights are fine-tuned"
    rate = f"a step every {every:g} epochs" if every != 1 else "a step each epoch"
    return f"Up to epoch {start:g} the model trains as it is; from {start:g} to {end:g} it is pruned, {rate}{heal}."


def _quantize_policy(sheet: Sheet) -> list[str]:
    windows = sheet.windows
    start, freeze = windows.quantize, windows.freeze
    frozen = {
        "ranges": ("disable_observer_epoch", sheet.activations),
        "batch norms": ("freeze_bn_epoch", sheet.batch_norms),
    }
    still = " and ".join(what for what, (_, there) in frozen.items() if there)
    settings = ", ".join(f"{key}: {freeze}" for key, there in frozen.values() if there)
    lines = [f"  # From epoch {start} on everything is rounded."]
    if freeze is None or not settings:
        lines.append("  - quantizer: {instance_name: int8}")
    else:
        lines[0] = (
            f"  # From epoch {start} on everything is rounded; from {freeze} on {still} no longer move, so\n"
            "  # that the weights settle [Krishnamoorthi]."
        )
        lines += [
            "  - quantizer:",
            "      instance_name: int8",
            f"      args: {{{settings}}}",
        ]
    return [*lines, f"    starting_epoch: {start}", f"    ending_epoch: {windows.epochs}", "    frequency: 1"]


def _pruner_names(sheet: Sheet) -> list[str]:
    if sheet.technique.group == "filter":
        return [_filters_name(level) for level in sheet.levels]
    return [f"pattern_{sheet.technique.pattern.replace(':', '_')}"] if sheet.technique.pattern else ["smallest_weights"]


def _filters_name(level: float) -> str:
    return f"filters_{round(level * 100)}"


# -- words -------------------------------------------------------------------------------------------------------------


def _named(entries: Iterable[Entry], indent: str) -> list[str]:
    lines = []
    for entry in entries:
        if entry.comment:
            lines.append(_comment([entry.comment], indent))
        lines.append(f"{indent}- {quoted(entry.name)}")
    return lines


def _comment(paragraphs: Iterable[str], indent: str, *, hanging: int = 0) -> str:
    lines: list[str] = []
    for paragraph in paragraphs:
        inside = len(paragraph) - len(paragraph.lstrip())
        wrapped = textwrap.wrap(
            paragraph.strip(),
            _WIDTH - len(indent) - inside,
            subsequent_indent=" " * hanging,
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines += [f"{indent}# {' ' * inside}{line}" for line in wrapped] or [f"{indent}#"]
    return "\n".join(lines)
