"""The older QuantizationModifier's properties as a scheme (layer 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["LEGACY", "scheme_of_legacy"]

#: One of these says that a recipe means the older modifier.
LEGACY = (
    "submodules",
    "quantize_embeddings",
    "reduce_range",
    "quantize_linear_activations",
    "quantize_conv_activations",
    "quantize_embedding_activations",
    "activation_bits",
    "weight_bits",
    "exclude_batchnorm",
    "exclude_module_types",
    "custom_quantizable_module_types",
    "activation_qconfig_kwargs",
    "weight_qconfig_kwargs",
    "tensorrt",
)
_TYPES = {
    "quantize_linear_activations": ("Linear",),
    "quantize_conv_activations": (
        "Conv1d",
        "Conv2d",
        "Conv3d",
        "ConvTranspose1d",
        "ConvTranspose2d",
        "ConvTranspose3d",
    ),
    "quantize_embedding_activations": ("Embedding",),
}


def scheme_of_legacy(older: Mapping[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
    """Constructor arguments of a scheme quantizer.

    8 bits; inputs and, unless told otherwise, outputs asymmetric, weights symmetric for the whole tensor, those of
    embeddings asymmetric. ``reduce_range`` takes a bit from activations, ``tensorrt`` makes them symmetric.
    """
    tensorrt = bool(older.get("tensorrt", False))
    bits = int(older.get("activation_bits", 8)) - int(bool(older.get("reduce_range", False)))
    activations = {"num_bits": bits, "symmetric": tensorrt}
    weights = {"num_bits": int(older.get("weight_bits", 8)), "symmetric": True}
    scheme = {"input_activations": activations, "weights": weights, "output_activations": None}
    overrides: dict[str, Any] = {}
    for switch, types in _TYPES.items():
        if older.get(switch, not tensorrt):
            overrides |= {kind: {**scheme, "output_activations": activations} for kind in types}
    ignore = list(older.get("exclude_module_types") or [])
    if older.get("quantize_embeddings", True) is False:
        ignore.append("Embedding")
        overrides.pop("Embedding", None)
    else:
        embedding = {**scheme, **overrides.get("Embedding", {}), "weights": {**weights, "symmetric": False}}
        overrides["Embedding"] = embedding
    for name in ("activation_qconfig_kwargs", "weight_qconfig_kwargs", "custom_quantizable_module_types"):
        if older.get(name):
            note(f"{name} is ignored: it belongs to torch's own quantization, which is not used")
    if older.get("exclude_batchnorm", True) is False:
        note("exclude_batchnorm: false is ignored: batch norms are folded into the layers before them")
    found: dict[str, Any] = {"scheme": scheme, "scheme_overrides": overrides, "strict": False}
    if ignore:
        found["ignore"] = ignore
    if older.get("submodules"):
        found["submodules"] = list(older["submodules"])
    return found
