"""Reductions and everything else that mixes the entries of a dimension (layer 1)."""

from __future__ import annotations

from typing import Any

from torch import fx

from distiller_ng.graph.labels import Labels
from distiller_ng.graph.parameters import ParameterView
from distiller_ng.graph.rules.elementwise import pointwise
from distiller_ng.graph.trace import op_name
from distiller_ng.graph.walker import Value, Walker, rule

_REDUCED = ("mean", "amax", "amin", "max", "min", "var", "std", "prod", "norm", "linalg_vector_norm", "logsumexp")
_MORE = ("argmax", "argmin", "any", "all", "median", "var_mean", "std_mean", "nansum", "nanmean", "aminmax")
#: Of weights; a range of values nearly always holds zero.
_ZEROS_ADD_NOTHING = ("sum", "amax", "amin", "max", "min", "norm", "linalg_vector_norm", "any", "aminmax")
_MIXED = ("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod", "sort", "topk", "logcumsumexp")


@rule("sum", *_REDUCED, *_MORE)
def reduce(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """Dimensions that are reduced keep their size, unless it is a sum over channels that are zero."""
    if "other" in args:  # torch.max(a, b)
        return pointwise(walker, node, args)
    rank = len(walker.shape(args["self"]))
    dims = _dims(args, rank)
    name = str(node.target).split(".")[1]
    view = walker.parameter(args["self"])
    if view is not None:
        return _of_weight(walker, node, view, dims)
    data = walker.labels(args["self"])
    if name == "sum" and data.zero and set(data.varying) <= set(dims):
        data = Labels.none(data.shape, zero=True)
    reason = walker.why(node, f"{name} runs across these channels")
    data = walker.coupling.tie(data, [d for d in dims if data.varies(d)], reason)
    shape = walker.shape(node)
    array = data.array
    if len(shape) != rank:
        array = array.reshape([size for d, size in enumerate(array.shape) if d not in dims])
    result = Labels(array, shape, data.zero and name in ("sum", "mean", "amax", "amin", "max", "min"))
    several = isinstance(node.meta.get("val"), tuple | list)
    return tuple(result for _ in node.meta["val"]) if several else result


def _of_weight(walker: Walker, node: fx.Node, view: ParameterView, dims: list[int]) -> Value:
    """A statistic of a weight, such as its quantizer's range; zeros change none of the kinds listed here."""
    name = op_name(node)
    if name not in _ZEROS_ADD_NOTHING:
        walker.pin(view, dims, walker.why(node, f"{name} of a weight depends on how many entries it has"))
    result = view.reduced(walker.shape(node), dims)
    if not isinstance(node.meta.get("val"), tuple | list):
        return result
    if name in ("aminmax", "var_mean", "std_mean"):
        return (result, result)
    return (result, Labels.none(result.shape))  # a value and its position


@rule(*_MIXED)
def mix(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """Every entry of the result depends on all entries along the dimension."""
    data = walker.labels(args["self"])
    dims = _dims(args, len(data.shape))
    name = str(node.target).split(".")[1]
    reason = walker.why(node, f"{name} runs across these channels")
    data = walker.coupling.tie(data, [d for d in dims if data.varies(d)], reason)
    shape = walker.shape(node)
    result = Labels(data.array, shape, data.zero and name in ("cumsum", "sort", "topk"))
    several = isinstance(node.meta.get("val"), tuple | list)
    return tuple(result for _ in node.meta["val"]) if several else result


def _dims(args: dict[str, Any], rank: int) -> list[int]:
    given = args.get("dim")
    if given is None or given == []:
        return list(range(rank))
    listed = given if isinstance(given, list | tuple) else [given]
    return [int(d) % max(rank, 1) for d in listed]
