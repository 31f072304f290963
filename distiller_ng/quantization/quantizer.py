"""The base of quantizers under Distiller's module name (re-exports)."""

from distiller_ng.quantization._weights import ParamToQuantize
from distiller_ng.quantization.base import QUANTIZERS, Quantizer
from distiller_ng.quantization.q_utils import FP_BKP_PREFIX, QBits

__all__ = ["FP_BKP_PREFIX", "QUANTIZERS", "ParamToQuantize", "QBits", "Quantizer"]
