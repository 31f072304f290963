"""Knowledge distillation: losses, one a file, teachers, and what a schedule can define (layer 2)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from distiller_ng.knowledge_distillation.arguments import add_distillation_args
from distiller_ng.knowledge_distillation.attention_transfer import AttentionTransfer
from distiller_ng.knowledge_distillation.base import (
    DISTILLATION_LOSSES,
    DistillationLoss,
    ElementwiseLoss,
    create_loss,
)
from distiller_ng.knowledge_distillation.cache import CachedTeacher, WithSampleIds, cache_teacher
from distiller_ng.knowledge_distillation.cosine import CosineDistance
from distiller_ng.knowledge_distillation.cross_entropy import SoftCrossEntropy
from distiller_ng.knowledge_distillation.distiller import DISTILLERS, Distiller, KnowledgeDistiller
from distiller_ng.knowledge_distillation.euclidean import EuclideanDistance
from distiller_ng.knowledge_distillation.fsp import FlowOfSolution
from distiller_ng.knowledge_distillation.kl_divergence import KLDivergence
from distiller_ng.knowledge_distillation.l1 import MeanAbsoluteError
from distiller_ng.knowledge_distillation.mean_squared_error import MeanSquaredError
from distiller_ng.knowledge_distillation.mutual import MutualDistiller
from distiller_ng.knowledge_distillation.pkd import PatientDistance
from distiller_ng.knowledge_distillation.relation import Relation
from distiller_ng.knowledge_distillation.weights import DistillationLossWeights

__all__ = [
    "DISTILLATION_LOSSES",
    "DISTILLERS",
    "AttentionTransfer",
    "CachedTeacher",
    "CosineDistance",
    "DistillationLoss",
    "DistillationLossWeights",
    "Distiller",
    "ElementwiseLoss",
    "EuclideanDistance",
    "FlowOfSolution",
    "KLDivergence",
    "KnowledgeDistiller",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "MutualDistiller",
    "PatientDistance",
    "Relation",
    "SoftCrossEntropy",
    "WithSampleIds",
    "add_distillation_args",
    "cache_teacher",
    "create_loss",
]


def __getattr__(name: str) -> Any:
    """Distiller has its policy here, too; ours is a layer higher and is looked up only when a script asks for it."""
    if name == "KnowledgeDistillationPolicy":
        return getattr(import_module("distiller_ng.policies.knowledge_distillation"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
