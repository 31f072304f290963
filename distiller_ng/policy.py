"""Policies under Distiller's module name (re-exports)."""

from distiller_ng.policies import (
    LossComponent,
    LRPolicy,
    Policy,
    PolicyLoss,
    PruningPolicy,
    QuantizationPolicy,
    RegularizationPolicy,
    ScheduledTrainingPolicy,
)

__all__ = [
    "LRPolicy",
    "LossComponent",
    "Policy",
    "PolicyLoss",
    "PruningPolicy",
    "QuantizationPolicy",
    "RegularizationPolicy",
    "ScheduledTrainingPolicy",
]
