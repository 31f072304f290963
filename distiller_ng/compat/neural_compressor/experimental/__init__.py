"""Neural Compressor's ``experimental`` package: ``Distillation`` and ``common`` (layer 5)."""

from distiller_ng.compat.neural_compressor.experimental import common
from distiller_ng.compat.neural_compressor.experimental.distillation import Distillation

__all__ = ["Distillation", "common"]
