"""One policy in a person's words: what kind of thing it does, and what comes of it (layer 4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from distiller_ng.core.entries import Entry
from distiller_ng.errors import listed
from distiller_ng.knowledge_distillation.weights import Weight, weight_at
from distiller_ng.policies.knowledge_distillation import KnowledgeDistillationPolicy
from distiller_ng.policies.layer_pruning import LayerPruning
from distiller_ng.policies.layer_thinning import LayerThinning
from distiller_ng.policies.low_rank_thinning import LowRankThinning
from distiller_ng.policies.mutual_distillation import MutualDistillationPolicy
from distiller_ng.policies.pruning import PruningPolicy
from distiller_ng.policies.quantization import QuantizationPolicy
from distiller_ng.policies.rates import RATE_POLICIES
from distiller_ng.policies.regularization import RegularizationPolicy
from distiller_ng.policies.structure_remover import StructureRemover
from distiller_ng.pruning.bernoulli import BernoulliFilterPruner
from distiller_ng.pruning.constant import ConstantPruner
from distiller_ng.pruning.group_pruner import GroupPruner
from distiller_ng.pruning.random_level import RandomLevelStructureParameterPruner
from distiller_ng.reports._plan_curves import Curve

__all__ = ["Kind", "LayerBits", "Told", "kind_of", "layer_bits", "short_names", "told"]

#: What a policy is for.
Kind: TypeAlias = Literal[
    "pruning", "regularization", "learning rate", "quantization", "distillation", "thinning", "other"
]

_KINDS: tuple[tuple[type | tuple[type, ...], Kind], ...] = (
    (PruningPolicy, "pruning"),
    (RegularizationPolicy, "regularization"),
    (RATE_POLICIES, "learning rate"),
    (QuantizationPolicy, "quantization"),
    ((KnowledgeDistillationPolicy, MutualDistillationPolicy), "distillation"),
    ((StructureRemover, LayerThinning, LayerPruning, LowRankThinning), "thinning"),
)
_BY_CHANCE = (BernoulliFilterPruner, RandomLevelStructureParameterPruner)
_NOT_TOLD = (
    "class",
    "modifier",
    "start_epoch",
    "end_epoch",
    "update_frequency",
    "params",
    "weights",
    "arch",
    "dataset",
)
_REMOVES = {
    "remove_filters": "pruned filters are removed",
    "remove_channels": "pruned channels are removed",
    "contract_model": "pruned filters and channels are removed",
}


@dataclass(frozen=True, slots=True)
class LayerBits:
    """Bits of one layer's weights, biases and activations; None: floating point."""

    layer: str
    weights: int | None
    bias: int | None
    activations: int | None


@dataclass(frozen=True, slots=True)
class Told:
    """The class that does it, its ``effect`` in one sentence, and ``mark``: that in a few characters."""

    class_name: str
    effect: str
    mark: str = ""


def kind_of(entry: Entry, curves: Sequence[Curve]) -> Kind:
    """What a policy is for; extensions that want a sparsity prune."""
    found = next((kind for classes, kind in _KINDS if isinstance(entry.policy, classes)), None)
    return found or ("pruning" if curves else "other")


def layer_bits(entry: Entry) -> tuple[LayerBits, ...]:
    """The layers a quantizer gives fewer bits; empty for other policies."""
    if not isinstance(entry.policy, QuantizationPolicy):
        return ()
    rows = entry.policy.quantizer.plan().rows
    return tuple(LayerBits(r.module or "model", r.weights, r.bias, r.activations) for r in rows if r.is_quantized)


def short_names(names: Sequence[str]) -> list[str]:
    """Names without the part that says which modifier of which group of a recipe it is, where they stay different.

    >>> short_names(["pruning_modifiers.0.GMPruning", "decay"])
    ['GMPruning', 'decay']
    """
    short = [name.rpartition(".")[2] if "_modifiers." in name else name for name in names]
    counted = Counter(short)
    return [one if counted[one] == 1 else name for one, name in zip(short, names, strict=True)]


def told(entry: Entry, kind: Kind, curves: Sequence[Curve], weights: int) -> Told:
    """The words for one policy; ``weights``: how many values it has to do with."""
    effect, mark = _TELLERS.get(kind, _other)(entry, curves, weights)
    return Told(_class_of(entry), effect, mark)


# -- by kind -----------------------------------------------------------------------------------------------------------


def _pruning(entry: Entry, curves: Sequence[Curve], weights: int) -> tuple[str, str]:
    pruner = getattr(entry.policy, "pruner", None)
    if isinstance(pruner, GroupPruner) and pruner.target is not None:
        ((quantity, share),) = list(pruner.target.items())[:1]
        name = {"macs": "MACs", "params": "parameters"}.get(quantity, quantity)
        return f"masks channels until {_percent(share)} of the {name} are left", f"{_percent(share)} of {name}"
    if isinstance(pruner, ConstantPruner):
        return f"keeps what is zero when it begins at zero ({weights:,} weights)", "keeps zeros"
    wanted = [curve for curve in curves if curve.of in ("sparsity", "channels")]
    if not wanted:
        decides = "chance decides" if isinstance(pruner, _BY_CHANCE) else "the weights decide"
        return f"{decides} how many of {weights:,} weights become zero", decides.replace(" decides", "").replace(
            " decide", ""
        )
    what = _structures(entry, wanted)
    levels = sorted({_path(curve) for curve in wanted})
    shown = levels[0] if len(levels) == 1 else f"{levels[0]} ... {levels[-1]} by layer"
    together = ", all layers ranked together" if wanted[0].together else ""
    again = ", then dense again" if all(curve.values[-1][1] == 0 for curve in wanted) else ""
    tensors = _count(sum(len(curve.parameters) for curve in wanted), "tensor")
    return f"{shown} of {what} in {tensors} become zero{again}{together}", f"{shown}{again}"


def _structures(entry: Entry, curves: Sequence[Curve]) -> str:
    if curves[0].of == "channels":
        return "the channels"
    if not isinstance(entry.policy, PruningPolicy):
        return "the weights"
    pruner = entry.policy.pruner
    dims = {pruner.structure_dim(name) for name in pruner.names}
    return "the filters" if dims == {0} else "the channels" if dims == {1} else "the weights"


def _path(curve: Curve) -> str:
    first, last = curve.values[0][1], curve.values[-1][1]
    top = max(value for _, value in curve.values)
    steps = dict.fromkeys(_percent(value) for value in (first, top if last < top else last))
    return " to ".join(steps)


def _quantizing(entry: Entry, curves: Sequence[Curve], weights: int) -> tuple[str, str]:
    layers = layer_bits(entry)
    if not layers:
        return "no layer of this model is quantized", "nothing"
    parts, marks = [], []
    for attribute, letter in (("weights", "W"), ("activations", "A")):
        counted = Counter(bits for layer in layers if (bits := getattr(layer, attribute)) is not None)
        parts += [f"{attribute} of {_count(number, 'layer')} to {bits} bits" for bits, number in counted.items()]
        marks += [letter + "/".join(str(bits) for bits in sorted(counted))] if counted else []
    policy = entry.policy
    for name, said in (("disable_observer_epoch", "ranges fixed"), ("freeze_bn_epoch", "batch norms frozen")):
        epoch = getattr(policy, name, None)
        parts += [f"{said} from epoch {epoch:g}"] if epoch is not None else []
    return "; ".join(parts), " ".join(marks)


def _distilling(entry: Entry, curves: Sequence[Curve], weights: int) -> tuple[str, str]:
    distiller: Any = getattr(entry.policy, "distiller", None)
    names = [str(source.name) for source in getattr(distiller, "sources", ())]
    if not names:
        return "two models learn from each other", "mutual"
    begin, end = entry.window.first, max(entry.window.first, entry.window.last_epoch or entry.window.first)
    shares = [
        f"{said} {_moving(getattr(distiller.loss_weights, field), begin, end)}"
        for field, said in (("student", "labels"), ("distill", "teacher"), ("teacher", "teacher's own loss"))
        if getattr(distiller.loss_weights, field) != 0
    ]
    pairs = len(distiller.pairs)
    features = f"; {_count(pairs, 'pair')} of layers compared" if pairs else ""
    logits = f"; temperature {distiller.temperature:g}" if distiller.logits is not None else ""
    teachers = listed(names)
    return f"learns from {teachers}: loss weights {', '.join(shares)}{logits}{features}", f"teacher {teachers}"


def _moving(weight: Weight, begin: float, end: float) -> str:
    first, last = weight_at(weight, begin), weight_at(weight, end)
    return f"{first:g}" if first == last else f"{first:g} to {last:g}"


def _thinning(entry: Entry, curves: Sequence[Curve], weights: int) -> tuple[str, str]:
    policy = entry.policy
    if isinstance(policy, StructureRemover):
        return f"{_REMOVES[policy.thinning_func_str]} for good: the model becomes smaller", "removes"
    if isinstance(policy, LayerThinning):
        at = [f"{epoch:g}" for epoch in policy.update_epochs]
        when = f"at epoch {listed(at)}" if at else "at the end of training"
        return f"pruned {policy.structure_type}s are removed {when}: the model becomes smaller", "removes"
    if isinstance(policy, LowRankThinning):
        return "linear layers become products of two narrow ones: the model becomes smaller", "low rank"
    return "layers are left out", "left out"


def _other(entry: Entry, curves: Sequence[Curve], weights: int) -> tuple[str, str]:
    shown = {key: value for key, value in entry.settings.items() if key not in _NOT_TOLD and value is not None}
    text = ", ".join(f"{key} {_plain(value)}" for key, value in shown.items())
    return text if len(text) <= 160 else f"{text[:157]}...", ""


_TELLERS: Mapping[Kind, Callable[[Entry, Sequence[Curve], int], tuple[str, str]]] = {
    "pruning": _pruning,
    "quantization": _quantizing,
    "distillation": _distilling,
    "thinning": _thinning,
}


def _class_of(entry: Entry) -> str:
    written = entry.settings.get("class")
    if isinstance(written, str):
        return written.rpartition(".")[2]
    policy = entry.policy
    part = next(
        (found for key in ("pruner", "regularizer", "quantizer", "distiller") if (found := getattr(policy, key, None))),
        policy,
    )
    driver = getattr(policy, "lr_scheduler", None)
    return str(getattr(driver, "class_name", type(driver).__name__)) if driver is not None else type(part).__name__


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_plain(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
