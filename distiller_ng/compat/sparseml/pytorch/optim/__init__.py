"""SparseML's ``sparseml.pytorch.optim``."""

from distiller_ng.compat.sparseml.manager import ScheduledModifierManager

__all__ = ["ScheduledModifierManager"]
