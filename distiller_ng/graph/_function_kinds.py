"""Which of torch's functions are operations worth a name, and what they are called (layer 1)."""

from __future__ import annotations

__all__ = ["KINDS"]

_BINARY = {
    "add": "add",
    "sub": "sub",
    "subtract": "sub",
    "__rsub__": "sub",
    "rsub": "sub",
    "mul": "mul",
    "multiply": "mul",
    "div": "div",
    "divide": "div",
    "true_divide": "div",
    "__rdiv__": "div",
    "maximum": "maximum",
    "minimum": "minimum",
}
_PRODUCTS = {"matmul": "matmul", "mm": "matmul", "bmm": "bmm", "baddbmm": "baddbmm", "addmm": "addmm"}
_JOINING = {"cat": "cat", "concat": "cat", "concatenate": "cat", "stack": "stack", "hstack": "hstack"}
_OTHERS = (
    *("softmax", "log_softmax", "layer_norm", "group_norm", "instance_norm", "batch_norm", "rms_norm", "normalize"),
    *("mean", "sum", "chunk", "split", "interpolate", "scaled_dot_product_attention", "einsum", "linear"),
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "glu", "prelu", "softplus"),
    *("hardswish", "hardsigmoid", "hardtanh", "sigmoid", "tanh", "clamp"),
    *(f"{kind}_pool{dims}d" for kind in ("avg", "max", "adaptive_avg", "adaptive_max") for dims in (1, 2, 3)),
)
#: ``{name of a function, without the _ of one in place: name of the operation}``.
KINDS: dict[str, str] = {**_BINARY, **_PRODUCTS, **_JOINING, **{name: name for name in _OTHERS}}
