"""Thinning: physically removing channels that were pruned (layer 2)."""

from distiller_ng.thinning.apply import ThinningReport
from distiller_ng.thinning.functions import contract_model, plan_thinning, remove_channels, remove_filters
from distiller_ng.thinning.plan import Cut, ThinningPlan
from distiller_ng.thinning.recipes import ThinningRecipe, execute_thinning_recipes_list, get_normalized_recipe

__all__ = [
    "Cut",
    "ThinningPlan",
    "ThinningRecipe",
    "ThinningReport",
    "contract_model",
    "execute_thinning_recipes_list",
    "get_normalized_recipe",
    "plan_thinning",
    "remove_channels",
    "remove_filters",
]
