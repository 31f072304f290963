"""Thinning a fresh model by the recipes of a Distiller checkpoint (layer 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from distiller_ng.checkpoint.record import TRANSFORMS, StructuralTransform
from distiller_ng.errors import CheckpointError, DistillerError
from distiller_ng.thinning.recipes import ThinningRecipe, execute_thinning_recipes_list

__all__ = ["DistillerThinning"]


@TRANSFORMS.register("distiller_thinning")
class DistillerThinning(StructuralTransform):
    """``config`` is ``{"recipes": [{"modules": {...}, "parameters": {...}}]}``, with lists of the kept indices.

    Tensors that are small already are left alone, so loading again changes nothing.
    """

    stage: ClassVar[int] = 0

    def apply(self, model: nn.Module, config: Mapping[str, Any], metadata: Mapping[str, Any]) -> nn.Module:
        """Thin ``model`` in place; raises :class:`CheckpointError` where a recipe does not fit it."""
        recipes = [ThinningRecipe(recipe["modules"], recipe["parameters"]) for recipe in config["recipes"]]
        try:
            execute_thinning_recipes_list(model, None, recipes)
        except DistillerError as error:
            raise CheckpointError(f"Distiller's thinning recipes do not fit the model: {error}") from error
        return model
