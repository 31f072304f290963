"""Which policies set learning rates (layer 3)."""

from __future__ import annotations

from distiller_ng.core.policy import Policy
from distiller_ng.policies.learning_rate_function import LearningRateFunction
from distiller_ng.policies.learning_rate_steps import LearningRate
from distiller_ng.policies.lr import LRPolicy
from distiller_ng.policies.set_learning_rate import SetLearningRate

__all__ = ["RATE_POLICIES"]

#: For ``isinstance``: those of schedules, and those of recipes.
RATE_POLICIES: tuple[type[Policy], ...] = (LRPolicy, LearningRateFunction, LearningRate, SetLearningRate)
