"""Quantization: aware and post-training, under Distiller's names (layer 2)."""

from distiller_ng.quantization.q_utils import *  # noqa: F403
from distiller_ng.quantization.q_utils import __all__ as _primitives

__all__ = [*_primitives]
