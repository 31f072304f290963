"""What an ATen operator is called in ONNX, and its attributes there (layer 1).

Names: https://onnx.ai/onnx/operators/. A linear layer is a Gemm whatever the rank of its input. Operators without a
counterpart keep their own name in camel case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import fx

from distiller_ng.graph._operator_macs import shape_of
from distiller_ng.graph.trace import arguments, op_name

__all__ = ["is_passed_through", "onnx_attributes", "onnx_type"]

_PASSED_THROUGH = frozenset({"contiguous", "detach", "alias", "clone", "lift_fresh", "lift_fresh_copy", "view_as_real"})
_DROPOUTS = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout"})


def _same(names: str, kind: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), kind)


_TYPES: dict[str, str] = {
    **_same("conv1d conv2d conv3d convolution", "Conv"),
    **_same("conv_transpose1d conv_transpose2d conv_transpose3d", "ConvTranspose"),
    **_same("linear addmm", "Gemm"),
    **_same("matmul mm bmm mv dot baddbmm addbmm", "MatMul"),
    **_same("batch_norm native_batch_norm _native_batch_norm_legit_no_training", "BatchNormalization"),
    **_same("layer_norm native_layer_norm", "LayerNormalization"),
    **_same("group_norm native_group_norm", "GroupNormalization"),
    **_same("instance_norm", "InstanceNormalization"),
    **_same("rms_norm", "RMSNormalization"),
    **_same("local_response_norm", "LRN"),
    **_same("max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices", "MaxPool"),
    **_same("max_pool3d_with_indices", "MaxPool"),
    **_same("avg_pool1d avg_pool2d avg_pool3d", "AveragePool"),
    **_same("relu", "Relu"),
    **_same("relu6 hardtanh clamp clamp_min clamp_max clip", "Clip"),
    **_same("leaky_relu", "LeakyRelu"),
    **_same("prelu _prelu_kernel", "PRelu"),
    **_same("silu", "Swish"),
    **_same("hardswish", "HardSwish"),
    **_same("hardsigmoid", "HardSigmoid"),
    **_same("log_softmax _log_softmax", "LogSoftmax"),
    **_same("softmax _softmax", "Softmax"),
    **_same("cat concat concatenate", "Concat"),
    **_same("stack", "ConcatFromSequence"),
    **_same("split split_with_sizes chunk tensor_split unsafe_split unsafe_chunk unbind", "Split"),
    **_same("view reshape _unsafe_view unflatten view_as _reshape_alias", "Reshape"),
    **_same("permute transpose t swapaxes movedim numpy_T mT", "Transpose"),
    **_same("slice narrow", "Slice"),
    **_same("select index_select embedding", "Gather"),
    **_same("gather take_along_dim", "GatherElements"),
    **_same("index", "GatherND"),
    **_same("scatter", "ScatterElements"),
    **_same("pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d", "Pad"),
    **_same("replication_pad1d replication_pad2d replication_pad3d", "Pad"),
    **_same("pixel_shuffle", "DepthToSpace"),
    **_same("pixel_unshuffle", "SpaceToDepth"),
    **_same("repeat tile", "Tile"),
    **_same("expand expand_as broadcast_to", "Expand"),
    **_same("rnn_tanh rnn_relu rnn_tanh_cell rnn_relu_cell", "RNN"),
    **_same("lstm lstm_cell", "LSTM"),
    **_same("gru gru_cell", "GRU"),
    **_same("scaled_dot_product_attention", "Attention"),
    **_same("mean", "ReduceMean"),
    **_same("sum", "ReduceSum"),
    **_same("prod", "ReduceProd"),
    **_same("amax max", "ReduceMax"),
    **_same("amin min", "ReduceMin"),
    **_same("norm linalg_vector_norm", "ReduceL2"),
    **_same("logsumexp", "ReduceLogSumExp"),
    **_same("maximum", "Max"),
    **_same("minimum", "Min"),
    **_same("rsub sub", "Sub"),
    **_same("argmax", "ArgMax"),
    **_same("argmin", "ArgMin"),
    **_same("topk", "TopK"),
    **_same("cumsum", "CumSum"),
    **_same("reciprocal", "Reciprocal"),
    **_same("gt", "Greater"),
    **_same("ge", "GreaterOrEqual"),
    **_same("lt", "Less"),
    **_same("le", "LessOrEqual"),
    **_same("eq", "Equal"),
    **_same("logical_not bitwise_not", "Not"),
    **_same("logical_and bitwise_and", "And"),
    **_same("logical_or bitwise_or", "Or"),
    **_same("to _to_copy type_as float", "Cast"),
    **_same("grid_sampler grid_sampler_2d grid_sampler_3d", "GridSample"),
}


def onnx_type(node: fx.Node) -> str:
    """``aten.conv2d.default`` -> ``"Conv"``, ``aten.add_.Tensor`` -> ``"Add"``."""
    name = op_name(node).rstrip("_")
    if name in _TYPES:
        return _TYPES[name]
    if name.startswith("adaptive_"):
        return _adaptive(node, "MaxPool" if "max" in name else "AveragePool")
    if name.startswith(("upsample", "_upsample")):
        return "Resize"
    if name in _DROPOUTS:
        return "Dropout"
    return "".join(part.capitalize() for part in name.split("_") if part)


def _adaptive(node: fx.Node, kind: str) -> str:
    """Pooling to one value a channel is global; to several it is a pooling whose window follows from the shapes."""
    size = arguments(node).get("output_size")
    sizes = list(size) if isinstance(size, Iterable) else [size]
    return f"Global{kind}" if all(item == 1 for item in sizes) else kind


def is_passed_through(node: fx.Node) -> bool:
    """Whether an operator hands on what it gets: copies, dropout in evaluation, a cast to the type a tensor has."""
    name = op_name(node).rstrip("_")
    if name in _DROPOUTS:
        return not any(arguments(node).get(key) for key in ("train", "training"))
    if name in ("to", "_to_copy", "type_as", "float"):
        before, after = node.all_input_nodes[0].meta.get("val"), node.meta.get("val")
        return getattr(before, "dtype", None) == getattr(after, "dtype", None)
    return name in _PASSED_THROUGH


def onnx_attributes(node: fx.Node) -> dict[str, Any]:
    """The operator's settings: in ONNX's words for convolutions and pooling, else its plain arguments by name."""
    args = arguments(node)
    describe = _DESCRIBED.get(onnx_type(node))
    if describe is not None:
        return describe(node, args)
    return {name: _plain(value) for name, value in args.items() if _is_plain(value)}


def _convolution(node: fx.Node, args: dict[str, Any]) -> dict[str, Any]:
    kernel = shape_of(args["weight"])[2:]
    padding = args["padding"]
    pads = padding if isinstance(padding, str) else _spread(padding, len(kernel)) * 2
    found: dict[str, Any] = {
        "kernel_shape": list(kernel),
        "group": int(args["groups"]),
        "strides": _spread(args["stride"], len(kernel)),
        "pads": pads,
        "dilations": _spread(args["dilation"], len(kernel)),
    }
    if "output_padding" in args:
        found["output_padding"] = _spread(args["output_padding"], len(kernel))
    return found


def _pooling(node: fx.Node, args: dict[str, Any]) -> dict[str, Any]:
    if "output_size" in args:
        return {"output_size": _plain(args["output_size"])}
    name = op_name(node)
    rank = next(size for size in (1, 2, 3) if f"{size}d" in name)
    kernel = _spread(args["kernel_size"], rank)
    found: dict[str, Any] = {"kernel_shape": kernel, "strides": _spread(args["stride"] or kernel, rank)}
    found["pads"] = _spread(args["padding"], rank) * 2
    found["ceil_mode"] = int(bool(args["ceil_mode"]))
    return found


def _concatenation(node: fx.Node, args: dict[str, Any]) -> dict[str, Any]:
    rank = len(shape_of(node))
    return {"axis": int(args["dim"]) % rank if rank else 0}


_DESCRIBED: dict[str, Callable[[fx.Node, dict[str, Any]], dict[str, Any]]] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), _convolution),
    **dict.fromkeys(("MaxPool", "AveragePool"), _pooling),
    "Concat": _concatenation,
}


def _spread(value: Any, rank: int) -> list[int]:
    items = [int(item) for item in value] if isinstance(value, list | tuple) else [int(value)]
    return items * rank if len(items) == 1 else items


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return isinstance(value, bool | int | float | str)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
