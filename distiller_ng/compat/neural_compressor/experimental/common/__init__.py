"""Neural Compressor's ``common`` package: the wrapper of models and the criteria (layer 5)."""

from distiller_ng.compat.neural_compressor.experimental.common import criterion
from distiller_ng.compat.neural_compressor.experimental.common.criterion import (
    PyTorchIntermediateLayersKnowledgeDistillationLoss,
    PyTorchKnowledgeDistillationLoss,
)
from distiller_ng.compat.neural_compressor.experimental.common.model import Model

__all__ = [
    "Model",
    "PyTorchIntermediateLayersKnowledgeDistillationLoss",
    "PyTorchKnowledgeDistillationLoss",
    "criterion",
]
