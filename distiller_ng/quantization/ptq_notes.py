"""What the plan of post-training quantization warns of (layer 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from distiller_ng.errors import listed
from distiller_ng.ops.linear_quantization import LinearQuantMode
from distiller_ng.quantization._weights import is_quantizable
from distiller_ng.quantization.ptq_replacing import without_statistics
from distiller_ng.quantization.ptq_settings import ModuleQuantMode
from distiller_ng.quantization.q_utils import QBits

__all__ = ["accumulator_bits", "plan_notes"]


def plan_notes(
    model: nn.Module, qbits: Mapping[str, QBits], mode: ModuleQuantMode, bits_accum: int, *, has_stats: bool
) -> list[str]:
    """What stays in floating point without statistics, and layers whose accumulators are too narrow."""
    notes = []
    left = [name for name in without_statistics(model) if qbits.get(name, _NONE).acts is not None]
    if not has_stats and left:
        notes.append(f"without calibration statistics {listed(left, limit=4)} stay in floating point")
    narrow: dict[str, int] = {}
    for name, module in model.named_modules():
        bits = qbits.get(name, _NONE)
        if bits.acts is None or bits.wts is None or not is_quantizable(module) or isinstance(module, nn.Embedding):
            continue
        needed = accumulator_bits(module, bits.acts, bits.wts, mode)
        if needed > (bits_accum if bits.bias is None else bits.bias):
            narrow[name] = needed
    if narrow:
        notes.append(
            f"accumulators of {bits_accum} bits can saturate in {listed(narrow, limit=4)}, whose sums take up to "
            f"{max(narrow.values())} bits: raise bits_accum, or lower bits_activations or bits_parameters"
        )
    return notes


def accumulator_bits(layer: nn.Module, bits_activations: int, bits_weights: int, mode: ModuleQuantMode) -> int:
    """The bits that hold any sum a layer can come to, its bias apart.

    A 3x3 convolution of 16 channels adds 144 products; 8 bits unsigned times 8 bits symmetric make at most
    ``144 * 255 * 128``, which takes 24 bits with the sign.

    >>> unsigned = ModuleQuantMode.parse({"activations": "ASYMMETRIC_UNSIGNED", "weights": "SYMMETRIC"})
    >>> accumulator_bits(nn.Conv2d(16, 4, 3), 8, 8, unsigned)
    24
    """
    weight = layer._parameters.get("weight")
    if weight is None or weight.dim() < 2:
        return 0
    products = weight[:, 0].numel() if isinstance(layer, nn.modules.conv._ConvTransposeNd) else weight[0].numel()
    largest = products * _largest(bits_activations, mode.activations) * _largest(bits_weights, mode.weights)
    return math.ceil(math.log2(max(largest, 1) + 1)) + 1


_NONE = QBits(None, None, None)


def _largest(bits: int, mode: LinearQuantMode) -> int:
    """The largest magnitude of an integer with its zero point taken off."""
    if mode.is_symmetric:
        return int(2 ** (bits - 1)) - (mode is LinearQuantMode.SYMMETRIC_RESTRICTED)
    return int(2**bits - 1)
