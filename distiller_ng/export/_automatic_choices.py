"""What ``quantize`` decides without trying: modes of a target, and which operators stay in floating point (layer 4)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from distiller_ng.export._automatic_runtime import integer_depthwise_is_faster
from distiller_ng.graph.functional_calls import call_kind
from distiller_ng.graph.inputs import ExampleInputsLike
from distiller_ng.graph.trace import op_name, trace
from distiller_ng.names import canonical_name

__all__ = [
    "EFFORTS",
    "TARGETS",
    "AutomaticSettings",
    "depthwise_layers",
    "float_operators",
    "output_layers",
    "recurrent_layers",
]

TARGETS: dict[str, dict[str, str]] = {
    "x86": {"activations": "ASYMMETRIC_UNSIGNED", "weights": "SYMMETRIC_RESTRICTED"},
    "arm": {"activations": "ASYMMETRIC_SIGNED", "weights": "SYMMETRIC_RESTRICTED"},
}
EFFORTS = ("fast", "normal", "high")

_FLOAT_MODULES: tuple[type[nn.Module], ...] = (
    *(nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.modules.batchnorm._NormBase, nn.Softmax, nn.LogSoftmax),
    *(nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.SELU, nn.CELU, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardswish),
    *(nn.Hardsigmoid, nn.Softplus, nn.Softmin, nn.Softsign, nn.PReLU, nn.GLU),
)
_FLOAT_NAMES = ("norm", "gelu", "silu", "swish", "softmax", "mish")
_FLOAT_CALLS = frozenset(
    {
        *("softmax", "log_softmax", "layer_norm", "group_norm", "instance_norm", "batch_norm", "rms_norm", "normalize"),
        *("elu", "selu", "celu", "gelu", "silu", "mish", "glu", "prelu", "softplus", "hardswish", "hardsigmoid"),
        *("sigmoid", "tanh", "sub", "div", "sum", "maximum", "minimum", "scaled_dot_product_attention"),
    }
)
_SUMS = frozenset({"add", "mul", "mean"})


@dataclass(frozen=True)
class AutomaticSettings:
    """The arguments of ``quantize``, checked."""

    target: str = "x86"
    bits_weights: int = 8
    bits_activations: int | None = 8
    quantize_output: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)
    min_sqnr: float | None = None
    min_agreement: float | None = None
    effort: str = "normal"
    depthwise: str = "auto"
    seed: int = 0
    time_limit_s: float = 300.0

    def is_users(self, name: str) -> bool:
        """Whether the user's overrides say something about a module."""
        return any(_matches(pattern, name) for pattern in self.overrides)


def _matches(pattern: str, name: str) -> bool:
    try:
        return pattern == name or re.fullmatch(pattern, name) is not None
    except re.error:
        return False  # the quantizer refuses it


def float_operators(model: nn.Module, observed: Mapping[str, Any]) -> dict[str, str]:
    """``{name: reason}`` of operators, modules and functions, whose outputs stay in floating point.

    ``observed``: statistics, whose names include those of functions. Integers gain nothing there, since these operators
    compute in floating point in every runtime; a layer that reads their output quantizes it itself.
    """
    modules = {canonical_name(name): module for name, module in model.named_modules()}
    has_norms = any(
        isinstance(module, nn.LayerNorm) or "LayerNorm" in type(module).__name__ for module in modules.values()
    )
    has_norms = has_norms or any(call_kind(name.rpartition(".")[2]) == "layer_norm" for name in observed)
    found: dict[str, str] = {}
    for name in observed:
        module = modules.get(name)
        kind = "" if module is not None else call_kind(name.rpartition(".")[2]) or ""
        label = type(module).__name__ if module is not None else kind
        is_sum = label in ("EltwiseAdd", "EltwiseMult") or kind in _SUMS
        if (module is not None and (isinstance(module, _FLOAT_MODULES) or _is_named(label))) or kind in _FLOAT_CALLS:
            found[name] = f"{label} computes in floating point"
        elif is_sum and has_norms:
            found[name] = f"{label} next to layer norms, which compute in floating point"
    return found


def _is_named(label: str) -> bool:
    return any(part in label.lower() for part in _FLOAT_NAMES) and "Conv" not in label


def output_layers(model: nn.Module, example: ExampleInputsLike) -> list[str]:
    """Names of the modules that make what the model returns; functions that do are left out."""
    traced = trace(model, example)
    found = []
    for node in traced.outputs:
        while op_name(node).rstrip("_") in (
            "view",
            "reshape",
            "squeeze",
            "flatten",
            "unsqueeze",
            "contiguous",
            "select",
        ):
            sources = [source for source in node.all_input_nodes if source not in traced.tensors]
            if len(sources) != 1:
                break
            node = sources[0]
        name = traced.module_of(node)
        module = dict(model.named_modules()).get(name)
        if module is not None and name and not any(module.children()):
            found.append(canonical_name(name))
    return list(dict.fromkeys(found))


def recurrent_layers(model: nn.Module) -> dict[str, str]:
    """``{name: reason}`` of LSTMs and GRUs.

    As integers they are written out step by step, for one length: 20 steps of a GRU of 32 made a file 12 times as large
    and 5 times as slow at batch 1 where this was written, of an LSTM of 256 5 times and 1.7 times.
    """
    reason = "one operator in floating point, written out step by step in integers: larger and slower"
    reasons = {nn.LSTM: f"{reason} (see quantize_dynamic)", nn.GRU: reason}
    kinds = {canonical_name(name): type(module) for name, module in model.named_modules()}
    return {name: reasons[kind] for name, kind in kinds.items() if kind in reasons}


def depthwise_layers(
    model: nn.Module, shapes: Mapping[str, tuple[int, ...]], settings: AutomaticSettings
) -> dict[str, str]:
    """``{name: reason}`` of depthwise convolutions that are better left in floating point.

    ``shapes``: of each layer's input, one sample.
    """
    asks_nothing = settings.depthwise == "auto" and settings.target != "x86"
    if settings.depthwise == "int8" or settings.bits_activations is None or asks_nothing:
        return {}
    found: dict[str, str] = {}
    known: dict[tuple[Any, ...], bool | None] = {}
    for full, module in model.named_modules():
        name = canonical_name(full)
        if not isinstance(module, nn.Conv2d) or module.groups == 1 or module.weight.shape[1] != 1 or name not in shapes:
            continue
        if settings.depthwise == "float":
            found[name] = "depthwise convolution, left in floating point as asked"
            continue
        key = (tuple(module.weight.shape), tuple(module.stride), tuple(module.dilation), shapes[name])
        if key not in known:
            known[key] = integer_depthwise_is_faster(module, shapes[name])
        if known[key] is None:
            found[name] = "depthwise convolution: integers are slower on most processors (no runtime here to measure)"
        elif not known[key]:
            found[name] = "depthwise convolution: floating point measured faster here, in ONNX Runtime"
    return found
