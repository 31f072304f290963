"""The extension that says how many epochs a run has (layer 3)."""

from __future__ import annotations

from distiller_ng.core.policy import Policy
from distiller_ng.policies.extensions import EXTENSIONS
from distiller_ng.registry import RecipeTag

__all__ = ["EpochRange"]


@EXTENSIONS.register(
    "EpochRange",
    recipe_tag=RecipeTag("EpochRangeModifier", update_frequency=0.0, fixed_frequency=True, params=None),
)
class EpochRange(Policy):
    """Does nothing: the end of its window counts for ``max_epochs``, the number of epochs a loop runs.

    Source: SparseML's ``EpochRangeModifier``. A window from 0 to 2.3 makes a run of 3 epochs::

        extensions:
          run: {class: EpochRange}
        policies:
          - extension: {instance_name: run}
            starting_epoch: 0
            ending_epoch: 25
            frequency: 0
            trigger: step
    """
