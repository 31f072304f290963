"""SparseML's way of running recipes (its PyTorch API), on this library's components (layer 5).

Replace ``sparseml`` by ``distiller_ng.compat.sparseml`` in the imports::

    from distiller_ng.compat.sparseml.pytorch.optim import ScheduledModifierManager

    manager = ScheduledModifierManager.from_yaml("recipe.md")
    optimizer = manager.modify(model, optimizer, steps_per_epoch=len(loader))
"""

from distiller_ng.compat.sparseml._views import ModifierView
from distiller_ng.compat.sparseml.manager import ScheduledModifierManager

__all__ = ["ModifierView", "ScheduledModifierManager"]
