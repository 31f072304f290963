"""Thinning: physically removing channels that were pruned (layer 2)."""

from distiller_ng.thinning.apply import ThinningReport
from distiller_ng.thinning.functions import contract_model, plan_thinning, remove_channels, remove_filters
from distiller_ng.thinning.plan import Cut, ThinningPlan

__all__ = [
    "Cut",
    "ThinningPlan",
    "ThinningReport",
    "contract_model",
    "plan_thinning",
    "remove_channels",
    "remove_filters",
]
