"""Glue between one kind of component and the scheduler's hooks (layer 3)."""

from distiller_ng.core.legacy import ScheduledTrainingPolicy
from distiller_ng.core.policy import LossComponent, Policy, PolicyLoss
from distiller_ng.policies.knowledge_distillation import KnowledgeDistillationPolicy
from distiller_ng.policies.lr import LRPolicy
from distiller_ng.policies.mutual_distillation import MutualDistillationPolicy
from distiller_ng.policies.pruning import PruningArgs, PruningPolicy
from distiller_ng.policies.quantization import QuantizationPolicy
from distiller_ng.policies.regularization import RegularizationPolicy

__all__ = [
    "KnowledgeDistillationPolicy",
    "LRPolicy",
    "LossComponent",
    "MutualDistillationPolicy",
    "Policy",
    "PolicyLoss",
    "PruningArgs",
    "PruningPolicy",
    "QuantizationPolicy",
    "RegularizationPolicy",
    "ScheduledTrainingPolicy",
]
