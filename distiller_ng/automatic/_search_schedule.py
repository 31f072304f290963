"""The outcome of a search as a schedule (layer 4, above reports)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

from torch import nn

from distiller_ng.automatic._schedule_parts import FILTER_REMOVER, cosine, policy, quoted
from distiller_ng.automatic.candidates import LayerChoice
from distiller_ng.errors import ArgumentError
from distiller_ng.names import canonical_name, has_one_weight

__all__ = ["schedule_text"]

_FLOAT = 32
_MOST_STEPS = 30  # more decisions make pruning no gentler


def schedule_text(
    model: nn.Module,
    choices: Mapping[str, LayerChoice],
    epochs: int,
    *,
    group: str,
    coupled: Sequence[Sequence[str]],
    about: Sequence[str] = (),
) -> str:
    """YAML that prunes to the sparsities of ``choices`` in the first half of ``epochs``, and trains with their bits.

    ``{"fc.weight": LayerChoice(0.8)}`` gives one ``MagnitudePruner`` with ``final_sparsity: {0.8: [fc.weight]}``. Of
    coupled filters one is named, the others follow. Raises :class:`ArgumentError` for fewer than two epochs.
    """
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 2:
        message = f"epochs is a whole number from 2 on: pruning and fine-tuning take one each, got {epochs!r}"
        raise ArgumentError(message, argument=("epochs",))
    levels = _levels(choices, coupled)
    bits, left = _module_bits(model, choices)
    middle = max(1, epochs // 2)
    parts = ["\n".join(f"# {line}" for text in about for line in textwrap.wrap(text, 110)), "version: 1"]
    if levels:
        parts.append("\n".join(["pruners:", *(_filters(levels) if group == "filter" else _weights(levels))]))
    if levels and group == "filter":
        parts.append(FILTER_REMOVER)
    if bits:
        parts.append(_quantizer(bits, left))
    parts.append(cosine(epochs))
    parts.append("\n".join(["policies:", *_policies(levels, bool(bits), group, middle, epochs)]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _levels(choices: Mapping[str, LayerChoice], coupled: Sequence[Sequence[str]]) -> dict[float, list[str]]:
    """Which parameters have which sparsity: of coupled ones the first, lowest sparsity first."""
    found: dict[float, list[str]] = {}
    for names in coupled:
        level = min((choices[name].sparsity for name in names if name in choices), default=0.0)
        if level > 0:
            found.setdefault(level, []).append(names[0])
    return dict(sorted(found.items()))


def _module_bits(model: nn.Module, choices: Mapping[str, LayerChoice]) -> tuple[dict[int, list[str]], list[str]]:
    """Modules whose weight has fewer bits, by their number, and parameters that no quantizer of layers rounds."""
    layers = {canonical_name(name) for name, module in model.named_modules() if has_one_weight(module)}
    found: dict[int, list[str]] = {}
    left = []
    for name, choice in choices.items():
        module = name.removesuffix(".weight")
        if choice.bits != _FLOAT and name.endswith(".weight") and module in layers:
            found.setdefault(choice.bits, []).append(module)
        elif choice.bits != _FLOAT:
            left.append(name)
    return dict(sorted(found.items())), left


def _weights(levels: Mapping[float, Sequence[str]]) -> list[str]:
    lines = [
        "  found_levels:",
        "    class: MagnitudePruner",
        "    init_sparsity: 0.0",
        "    inter_func: cubic",
        "    final_sparsity:   # share of zeros at the end: [weights that get it]",
    ]
    return lines + [f"      {level:g}: [{', '.join(map(quoted, names))}]" for level, names in levels.items()]


def _filters(levels: Mapping[float, Sequence[str]]) -> list[str]:
    lines = []
    for number, (level, names) in enumerate(levels.items()):
        lines += [
            f"  found_{number}:",
            "    class: GroupPruner   # filters, with all that is coupled with them",
            "    importance: l1",
            f"    schedule: {{class: AGP, initial_sparsity: 0.0, final_sparsity: {level:g}}}",
            f"    weights: [{', '.join(map(quoted, names))}]",
        ]
    return lines


def _quantizer(bits: Mapping[int, Sequence[str]], left: Sequence[str]) -> str:
    lines = (
        [f"# Rounded by the search, but no layer's own weight, so not rounded here: {', '.join(left)}"] if left else []
    )
    lines += [
        "# Weights are rounded while the model trains; activations stay floating point.",
        "quantizers:",
        "  found_bits:",
        "    class: QuantAwareTrainRangeLinearQuantizer",
        "    bits_activations: null",
        "    bits_weights: null",
        "    bits_bias: null",
        "    mode: SYMMETRIC_RESTRICTED",
        "    per_channel_wts: true",
        "    quantize_inputs: false",
        "    overrides:",
    ]
    return "\n".join(
        lines + [f"      {quoted(name)}: {{bits_weights: {few}}}" for few, names in bits.items() for name in names]
    )


def _policies(levels: Mapping[float, Sequence[str]], rounds: bool, group: str, middle: int, epochs: int) -> list[str]:
    lines = []
    every: float = math.ceil(middle / _MOST_STEPS) if middle > 1 else 0.1
    end = (middle - 1) // every * every + 1 if middle > 1 else 1  # the last decision is the final level
    names = [f"found_{number}" for number in range(len(levels))] if group == "filter" else ["found_levels"]
    for name in names if levels else ():
        lines += policy("pruner", name, 0, end, every)
    if levels and group == "filter":
        lines += ["  - extension: {instance_name: thinner}", f"    epochs: [{middle}]"]
    if rounds:
        lines += policy("quantizer", "found_bits", middle if levels else 0, epochs, 1)
    return lines + policy("lr_scheduler", "cosine", 0, epochs, 1)
