"""Replacement functions that several quantizers share (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from distiller_ng.quantization.activations import ClippedLinearQuantization
from distiller_ng.quantization.q_utils import QBits

__all__ = ["clip_to_one"]


def clip_to_one(module: nn.Module, name: str, qbits_map: Mapping[str, QBits]) -> nn.Module:
    """A ReLU as DoReFa and WRPN have it: clamped to ``0 .. 1`` and quantized."""
    bits = qbits_map[name].acts
    if bits is None:
        return module
    return ClippedLinearQuantization(bits, 1, dequantize=True, inplace=bool(getattr(module, "inplace", False)))
