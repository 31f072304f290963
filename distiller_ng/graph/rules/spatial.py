"""Pooling, resampling and padding: they leave channels where they are (layer 1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from distiller_ng.graph.labels import FIXED, Labels, known
from distiller_ng.graph.walker import Value, Walker, rule

_POOLS = [f"{kind}_pool{n}d" for n in (1, 2, 3) for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp")]
_INDEXED = [f"{kind}_pool{n}d_with_indices" for n in (1, 2, 3) for kind in ("max", "adaptive_max")]
_RESAMPLED = [f"upsample_{mode}" for mode in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d")]
_MORE = ["upsample_bicubic2d", "upsample_trilinear3d", "_upsample_nearest_exact2d", "_upsample_nearest_exact1d"]
_PADS = [f"{kind}_pad{n}d" for n in (1, 2, 3) for kind in ("reflection", "replication")]
#: How many dimensions at the end each operator works on.
_RANK = {"1d": 1, "2d": 2, "3d": 3}


@rule(*_POOLS, *_INDEXED, *_RESAMPLED, *_MORE, *_PADS, "grid_sampler", "max_unpool2d")
def spatial(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """Each channel by itself, across the last dimensions."""
    data = walker.labels(node.all_input_nodes[0])
    name = str(node.target).split(".")[1]
    last = next((rank for text, rank in _RANK.items() if text in name), len(data.shape) - 2)
    kept = range(len(data.shape) - last)
    if "max_unpool" in name:
        data = walker.merge([data, walker.labels(args["indices"])], data.shape, node, zero=data.zero)
    data = walker.only_along(data, kept, node, "it works across these dimensions")
    shape = walker.shape(node)
    keeps = "max_unpool" not in name and "grid" not in name
    result = Labels(data.array, shape, data.zero and keeps)
    several = isinstance(node.meta.get("val"), tuple | list)
    return (result, result) if several else result


@rule("pad", "constant_pad_nd")
def pad(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """Constant padding; padded channels can never be removed."""
    data = walker.labels(args["self"])
    amounts = list(args["pad"])
    array = data.array
    rank = array.ndim
    for position in range(len(amounts) // 2):
        dim = rank - 1 - position
        before, after = int(amounts[2 * position]), int(amounts[2 * position + 1])
        if (before, after) == (0, 0) or array.shape[dim] == 1:
            continue
        if before < 0 or after < 0 or str(args.get("mode", "constant")) != "constant":
            walker.coupling.fix(array, walker.why(node, "it is cut or mirrored across channels"))
            return walker.unlabelled(node)
        widths = [(before, after) if d == dim else (0, 0) for d in range(rank)]
        array = np.pad(known(array), widths, constant_values=FIXED)
    return Labels(array, walker.shape(node), data.zero and not args.get("value"))


@rule("pixel_shuffle")
def pixel_shuffle(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """r * r consecutive channels become one, r times larger each way."""
    data = walker.labels(args["self"])
    dim = len(data.shape) - 3
    data = walker.only_along(data, [dim], node, "it moves dimensions 1, 2 and 3")
    vector = data.vector(dim)
    shape = walker.shape(node)
    if vector is None:
        return Labels.none(shape)
    members = vector.reshape(shape[dim], -1)
    walker.coupling.union(members[:, :1].repeat(members.shape[1], axis=1), members)
    walker.coupling.explain(members, walker.why(node, "its r * r channels become one"))
    return Labels(members[:, 0].reshape((1,) * dim + (-1, 1, 1)), shape, data.zero)


@rule("pixel_unshuffle")
def pixel_unshuffle(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """Every channel becomes r * r consecutive ones."""
    data = walker.labels(args["self"])
    dim = len(data.shape) - 3
    data = walker.only_along(data, [dim], node, "it moves dimensions 1, 2 and 3")
    vector = data.vector(dim)
    shape = walker.shape(node)
    if vector is None:
        return Labels.none(shape)
    return Labels(vector.repeat(int(args["downscale_factor"]) ** 2).reshape((1,) * dim + (-1, 1, 1)), shape, data.zero)


@rule("channel_shuffle")
def channel_shuffle(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value:
    """Channels of ``groups`` groups take turns."""
    data = walker.labels(args["self"])
    if not data.varies(1):
        return data
    groups = int(args["groups"])
    data = walker.only_along(data, [1], node, "it moves dimension 1")
    grouped = data.array.reshape(groups, -1)
    walker.coupling.union(grouped[:1].repeat(groups, axis=0), grouped)
    walker.coupling.explain(grouped, walker.why(node, f"its {groups} groups must stay of one size"))
    return Labels(grouped.T.reshape(data.array.shape), data.shape, data.zero)
