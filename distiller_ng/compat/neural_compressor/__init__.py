"""Neural Compressor's way of distilling (its 1.x API), on this library's losses (layer 5).

Replace ``neural_compressor`` by ``distiller_ng.compat.neural_compressor`` in the imports; all names are here, too::

    from distiller_ng.compat.neural_compressor import Distillation, DistillationConf, common

    distiller = Distillation("distillation.yaml")
    distiller.student_model, distiller.teacher_model = student, teacher
    best = distiller.fit().model
"""

from distiller_ng.compat.neural_compressor.conf.config import DistillationConf
from distiller_ng.compat.neural_compressor.experimental import Distillation, common
from distiller_ng.compat.neural_compressor.experimental.common import (
    Model,
    PyTorchIntermediateLayersKnowledgeDistillationLoss,
    PyTorchKnowledgeDistillationLoss,
)

__all__ = [
    "Distillation",
    "DistillationConf",
    "Model",
    "PyTorchIntermediateLayersKnowledgeDistillationLoss",
    "PyTorchKnowledgeDistillationLoss",
    "common",
]
