"""Where to clip a range before it is quantized: one file a method, registered in ``CLIPPINGS`` (layer 1)."""

from distiller_ng.ops.clipping.aciq import GaussClipping, LaplaceClipping
from distiller_ng.ops.clipping.aciq_alpha import aciq_alpha
from distiller_ng.ops.clipping.average import AverageClipping
from distiller_ng.ops.clipping.base import CLIPPINGS, Clipping
from distiller_ng.ops.clipping.kl import KlClipping, kl_range
from distiller_ng.ops.clipping.mse import MseClipping, mse_range, quantization_error
from distiller_ng.ops.clipping.n_std import StandardDeviationClipping
from distiller_ng.ops.clipping.none import NoClipping
from distiller_ng.ops.clipping.selection import clipping_named

__all__ = [
    "CLIPPINGS",
    "AverageClipping",
    "Clipping",
    "GaussClipping",
    "KlClipping",
    "LaplaceClipping",
    "MseClipping",
    "NoClipping",
    "StandardDeviationClipping",
    "aciq_alpha",
    "clipping_named",
    "kl_range",
    "mse_range",
    "quantization_error",
]
