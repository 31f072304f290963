"""What follows a module, for post-training quantization: statistics of what is fused with it (layer 2).

A module whose output only an activation reads needs no finer range than that activation lets through, and a batch norm
folded into a layer makes its output the layer's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from distiller_ng.graph.summary_graph import AdjacentsEntry
from distiller_ng.modules._recurrent import RecurrentCell, RecurrentStack
from distiller_ng.names import canonical_name

__all__ = ["Fusion", "clip_statistics", "clipped", "fold_statistics_", "functional_operations", "fusions"]

_BOUNDS = {"Relu": (0.0, None), "Tanh": (-4.0, 4.0), "Sigmoid": (-6.0, 6.0)}
_ARITHMETIC = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "MatMul", "Gemm", "Concat", "Softmax", "LogSoftmax", "LayerNormalization"),
        *("AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum", "Resize", "Sigmoid", "Tanh", "HardSigmoid"),
        *("HardSwish", "Gelu", "Erf", "Exp", "Sqrt", "Pow"),
    }
)


_UNITS = (nn.MultiheadAttention, RecurrentStack, RecurrentCell)


class Fusion(NamedTuple):
    """``producer``'s output may be limited to ``low .. high``; ``follower`` is the one activation that reads it.

    ``follower`` is None for functions, activations behind a split, and modules that are called more than once.
    """

    producer: str
    low: float | None
    high: float | None
    follower: str | None
    kind: str


def fusions(model: nn.Module, adjacency: Mapping[str, AdjacentsEntry]) -> Iterator[Fusion]:
    """Every module whose output goes to one activation, or through one split to activations, and nowhere else."""
    modules = {canonical_name(name): module for name, module in model.named_modules(remove_duplicate=False)}
    entries = {canonical_name(name): entry for name, entry in adjacency.items()}
    calls = Counter(canonical_name(entry.module) for entry in entries.values())
    for name, entry in entries.items():
        if name not in modules or calls[name] != 1 or entry.escapes or len(entry.successors) != 1:
            continue
        follower = canonical_name(entry.successors[0].name)
        behind = entries.get(follower)
        if behind is None or len(behind.predecessors) != 1 or behind.joined:
            continue
        if behind.op_meta.type == "Split":
            bounds = _behind_split(behind)
            if bounds is not None:
                yield Fusion(name, *bounds, None, "Split")
            continue
        owner = canonical_name(behind.module)
        # A module that is called elsewhere too reads other tensors as well, and has to stay.
        alone = follower if follower in modules and calls[owner] == 1 else None
        if isinstance(modules.get(owner), nn.ReLU6):
            yield Fusion(name, 0.0, 6.0, alone, "Relu6")
        elif behind.op_meta.type in _BOUNDS:
            low, high = _BOUNDS[behind.op_meta.type]
            yield Fusion(name, low, high, alone, behind.op_meta.type)


def _behind_split(split: AdjacentsEntry) -> tuple[float | None, float | None] | None:
    kinds = {successor.type for successor in split.successors}
    if split.escapes or not kinds:
        return None
    if kinds == {"Relu"} or kinds == {"Tanh"}:
        return _BOUNDS[next(iter(kinds))]
    return _BOUNDS["Sigmoid"] if kinds <= {"Sigmoid", "Tanh"} else None


def clipped(entry: Mapping[str, Any], low: float | None, high: float | None) -> dict[str, Any]:
    """Statistics of one tensor with its ranges limited to ``low .. high``; the distribution stays.

    ``{"min": -5, "max": 5, "avg_min": -3, "avg_max": 3}`` limited from 0 on: 0, 5, 0, 3. Where nothing of the range is
    left, both ends are the bound.
    """
    result = dict(entry)
    for key in ("min", "max", "avg_min", "avg_max"):
        value = result.get(key)
        if value is None:
            continue
        value = value if low is None or value >= low else low
        result[key] = value if high is None or value <= high else high
    return result


def clip_statistics(stats: dict[str, dict[str, Any]], found: list[Fusion]) -> None:
    """Limit the output statistics of every producer, and the input statistics of its activation, in place."""
    for fusion in found:
        entry = stats.get(fusion.producer)
        if entry is None or "output" not in entry:
            continue
        entry["output"] = clipped(entry["output"], fusion.low, fusion.high)
        reader = stats.get(fusion.follower or "")
        if reader is not None and "inputs" in reader:
            reader["inputs"] = {**reader["inputs"], 0: dict(entry["output"])}


def fold_statistics_(stats: dict[str, dict[str, Any]], pairs: list[tuple[str, str]]) -> None:
    """A layer's output is that of the batch norm folded into it, whose entry goes; ``pairs`` of (layer, norm)."""
    for layer, norm in pairs:
        gone = stats.pop(norm, None)
        if gone is not None and "output" in gone and layer in stats:
            stats[layer]["output"] = gone["output"]


def functional_operations(model: nn.Module, adjacency: Mapping[str, AdjacentsEntry]) -> list[str]:
    """``name (type)`` of arithmetic that belongs to no module of its own, nor to attention or recurrent layers."""
    leaves = {
        canonical_name(name)
        for name, module in model.named_modules(remove_duplicate=False)
        if name and (isinstance(module, _UNITS) or next(module.children(), None) is None)
    }
    return [
        f"{name} ({entry.op_meta.type})"
        for name, entry in adjacency.items()
        if entry.op_meta.type in _ARITHMETIC and canonical_name(entry.module or name) not in leaves
    ]
