"""What is known about the layers a first schedule may prune, and what the literature advises for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from distiller_ng.automatic._first_target import Technique
from distiller_ng.automatic._tensors import output_axes
from distiller_ng.automatic.candidates import Candidates
from distiller_ng.graph.inputs import ExampleInputs
from distiller_ng.names import canonical_name
from distiller_ng.reports.compute import layer_costs

__all__ = ["PAPERS", "Advice", "Unit", "advice_for", "units_of"]

#: What comments cite.
PAPERS: Mapping[str, str] = {
    "Zhu": "M. Zhu, S. Gupta: To prune, or not to prune, https://arxiv.org/abs/1710.01878",
    "Gale": "T. Gale et al.: The state of sparsity in deep neural networks, https://arxiv.org/abs/1902.09574",
    "Li": "H. Li et al.: Pruning filters for efficient ConvNets, https://arxiv.org/abs/1608.08710",
    "Fang": "G. Fang et al.: DepGraph, https://arxiv.org/abs/2301.12900",
    "Mishra": "A. Mishra et al.: Accelerating sparse deep neural networks, https://arxiv.org/abs/2104.08378",
    "Jacob": "B. Jacob et al.: Quantization and training ..., https://arxiv.org/abs/1712.05877",
    "Krishnamoorthi": "R. Krishnamoorthi: Quantizing deep convolutional networks, https://arxiv.org/abs/1806.08342",
    "Esser": "S. K. Esser et al.: Learned step size quantization, https://arxiv.org/abs/1902.08153",
}
_SMALL = 0.05  # of the weights: such a layer costs little when it stays as it is
_CAP, _FILTER_CAP, _LAST_CAP, _FIRST_FILTER_CAP = 0.95, 0.8, 0.8, 0.5


@dataclass(frozen=True, slots=True)
class Unit:
    """Parameters that get one level together: one weight, or the weights whose filters are tied.

    ``weights``: how many numbers they are. ``share``: of all weights of such layers. ``also``: other names of the same
    (tied) weights. ``kinds``: "first", "last", "depthwise", "shared" (one module that runs several times). ``outputs``:
    the dimension of the first one's filters: 0, in transposed convolutions ``[C_i, C_o, H, W]`` 1.
    """

    names: tuple[str, ...]
    weights: int
    share: float
    shape: tuple[int, ...]
    kinds: frozenset[str] = frozenset()
    also: tuple[str, ...] = ()
    outputs: int = 0

    @property
    def name(self) -> str:
        """The first of them: what the schedule names."""
        return self.names[0]


@dataclass(frozen=True, slots=True)
class Advice:
    """How far a unit may go, why if that is not everywhere the same, and the papers cited by the reason."""

    cap: float
    why: str = ""
    papers: tuple[str, ...] = field(default=())


def units_of(candidates: Candidates, inputs: ExampleInputs) -> list[Unit]:
    """Every unit, in the order of the model's parameters.

    The first and the last layer are those that run first and last on the example inputs.
    """
    parameters = candidates.parameters
    runs = _runs(candidates, inputs)
    total = sum(parameters[name].numel() for name in parameters.prunable())
    modules = {canonical_name(name): module for name, module in parameters.model.named_modules()}
    tied = _other_names(parameters.model, parameters.prunable())
    axes = output_axes(parameters.model)
    units = []
    for names in _joined(candidates.coupled):
        size = sum(parameters[name].numel() for name in names)
        kinds = {kind for name in names for kind in _kinds(name, runs, modules)}
        also = tuple(other for name in names for other in tied.get(name, ()))
        shape = tuple(parameters[names[0]].shape)
        units.append(Unit(names, size, size / max(total, 1), shape, frozenset(kinds), also, axes.get(names[0], 0)))
    return units


def advice_for(unit: Unit, technique: Technique, *, relaxed: bool = False) -> Advice:
    """What papers say about such a layer; ``relaxed``: only what would break the model is ruled out.

    ``digits_cnn``'s ``conv1`` (first, 0.4 % of the weights) under "weights": cap 0, as it stays dense.
    """
    if technique.group == "filter":
        return _advice_for_filters(unit, relaxed)
    cap = 0.5 if technique.pattern else _CAP
    if relaxed:
        return Advice(cap)
    if technique.pattern and "first" in unit.kinds:
        return Advice(0.0, "the first layer stays dense: runtimes leave it out of 2:4, it is too narrow", ("Mishra",))
    if "depthwise" in unit.kinds and unit.share < _SMALL:
        return Advice(0.0, "depthwise convolutions have few weights, each of which matters: stays dense", ("Zhu",))
    if "first" in unit.kinds and unit.share < _SMALL:
        return Advice(0.0, "the first layer has few weights, and everything reads its outputs: stays dense", ("Gale",))
    if "last" in unit.kinds and technique.pattern is None:
        return Advice(_LAST_CAP, "the last layer decides: never above 80 %", ("Gale",))
    return Advice(cap)


def _advice_for_filters(unit: Unit, relaxed: bool) -> Advice:
    if relaxed:
        return Advice(0.9)
    if "first" in unit.kinds:
        return Advice(_FIRST_FILTER_CAP, "the first layer feeds all others: at most half of it goes", ("Li",))
    if "depthwise" in unit.kinds:
        why = "a depthwise convolution loses exactly the channels of the layer before it"
        return Advice(_FILTER_CAP, why, ("Fang",))
    return Advice(_FILTER_CAP)


# -- facts -------------------------------------------------------------------------------------------------------------


def _runs(candidates: Candidates, inputs: ExampleInputs) -> list[str]:
    """Names of the layers with a cost in the order they run; one that runs twice stands there twice."""
    return [canonical_name(cost.name) for cost in layer_costs(candidates.model, inputs)]


def _joined(coupled: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Groups that share a parameter (one weight makes two families of channels) become one."""
    groups: list[list[str]] = []
    for names in coupled:
        mine = [group for group in groups if set(group) & set(names)]
        merged = list(dict.fromkeys(name for group in (*mine, list(names)) for name in group))
        place = groups.index(mine[0]) if mine else len(groups)
        groups = [group for group in groups if group not in mine]
        groups.insert(place, merged)
    return [tuple(group) for group in groups]


def _kinds(name: str, runs: list[str], modules: Mapping[str, nn.Module]) -> list[str]:
    layer = name.rpartition(".")[0]
    module = modules.get(layer)
    found = []
    inside = [place for place, other in enumerate(runs) if other == layer or other.startswith(f"{layer}.")]
    if inside and inside[0] == 0:
        found.append("first")
    if inside and inside[-1] == len(runs) - 1:
        found.append("last")
    if runs.count(layer) > 1:
        found.append("shared")
    if isinstance(module, nn.modules.conv._ConvNd) and 1 < module.groups == module.in_channels:
        found.append("depthwise")
    return found


def _other_names(model: nn.Module, prunable: Iterable[str]) -> dict[str, list[str]]:
    """Other names of tied parameters."""
    first = {id(p): canonical_name(n) for n, p in model.named_parameters()}
    mine, found = set(prunable), dict[str, list[str]]()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner, short = first[id(parameter)], canonical_name(name)
        if owner in mine and short != owner:
            found.setdefault(owner, []).append(short)
    return found
