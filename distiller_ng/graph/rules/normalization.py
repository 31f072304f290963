"""Normalization layers (layer 1)."""

from __future__ import annotations

from typing import Any

from torch import fx

from distiller_ng.graph.labels import Labels
from distiller_ng.graph.parameters import ParameterView
from distiller_ng.graph.rules.layers import refuse
from distiller_ng.graph.walker import Partition, Value, Walker, rule


@rule("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training", "native_batch_norm")
def per_channel(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """Every channel of dimension 1 by itself."""
    data = walker.labels(args["input"])
    data = walker.only_along(data, [1], node, "it normalizes dimension 1 only")
    vector = data.vector(1)
    for name in ("weight", "bias", "running_mean", "running_var"):
        argument = args.get(name)
        if argument is not None and vector is not None:
            view = walker.parameter(argument)
            if view is None:
                return refuse(walker, node, args)
            walker.axis(view, 0, vector)
    weight = walker.parameter(args.get("weight"))
    affine = weight is not None and weight.zero
    result = Labels(data.array, walker.shape(node), affine)
    return (
        result
        if str(node.target).startswith("aten.batch_norm") or "instance" in str(node.target)
        else (result, Labels.none((0,)), Labels.none((0,)))
    )


@rule("group_norm", "native_group_norm")
def group_norm(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """Channels are normalized in groups, so only whole groups can go."""
    data = walker.labels(args["input"])
    data = walker.only_along(data, [1], node, "it normalizes across the other dimensions")
    vector = data.vector(1)
    if vector is None:
        return data
    groups = args["num_groups"] if "num_groups" in args else args["group"]
    members = vector.reshape(int(groups), -1)
    walker.coupling.union(members[:, :1].repeat(members.shape[1], axis=1), members)
    walker.coupling.explain(members, walker.why(node, f"it is normalized in {groups} groups, which go as a whole"))
    for name in ("weight", "bias"):
        argument = args.get(name)
        if argument is not None:
            view = walker.parameter(argument)
            if view is None:
                return refuse(walker, node, args)
            walker.axis(view, 0, vector)
            if name == "weight":
                walker.partitions.append(Partition(view, members))
    return Labels(data.array, data.shape, args.get("weight") is not None)


@rule("layer_norm", "rms_norm", "native_layer_norm")
def layer_norm(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """The statistics run across the normalized dimensions, so none of their entries can go."""
    data = walker.labels(args["input"])
    count = len(args["normalized_shape"])
    dims = range(len(data.shape) - count, len(data.shape))
    reason = "the normalization's statistics run across these channels, without them every output would change"
    for dim in dims:
        if data.varies(dim):
            walker.coupling.fix(data.array, walker.why(node, reason))
    for name in ("weight", "bias"):
        view = walker.parameter(args.get(name))
        if view is not None and count == 1:
            walker.axis(view, 0, data.vector(len(data.shape) - 1) if len(data.varying) == 1 else None)
    result = Labels(data.array, data.shape, args.get("weight") is not None)
    return result if "native" not in str(node.target) else (result, Labels.none((1,)), Labels.none((1,)))


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """Directions divided by their norms: entries that are zero may go from a filter, whole filters may not."""
    direction, scale = walker.parameter(args["v"]), walker.parameter(args["g"])
    if direction is None or scale is None:
        return refuse(walker, node, args)
    text = (
        "weight_norm divides by the norm of a filter, so that a filter of zeros is no number; call remove_weight_norm"
    )
    for view in (direction, scale):
        walker.pin(view, [int(args["dim"]) % len(view.shape)], walker.why(node, text))
    return ParameterView.combined([direction, scale], direction.shape, zero=True)


@rule("local_response_norm")
def across(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """Neighbouring channels normalize each other."""
    return refuse(walker, node, args)
