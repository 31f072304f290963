"""Quantizers and modules that clip, under Distiller's module name (re-exports)."""

from distiller_ng.quantization.clipped_activations import ClippedLinearQuantization, LearnedClippedLinearQuantization
from distiller_ng.quantization.dorefa import DorefaQuantizer
from distiller_ng.quantization.pact import PACTQuantizer
from distiller_ng.quantization.weight_functions import dorefa_quantize_param, wrpn_quantize_param
from distiller_ng.quantization.wrpn import WRPNQuantizer

__all__ = [
    "ClippedLinearQuantization",
    "DorefaQuantizer",
    "LearnedClippedLinearQuantization",
    "PACTQuantizer",
    "WRPNQuantizer",
    "dorefa_quantize_param",
    "wrpn_quantize_param",
]
