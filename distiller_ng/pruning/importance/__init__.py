"""Importance of whole channels for :class:`GroupPruner`, one a file (layer 2).

``IMPORTANCES`` has them by the name schedules use. Each gives one score for everything that goes with a channel.
"""

from distiller_ng.pruning.importance.activation import ActivationImportance
from distiller_ng.pruning.importance.base import IMPORTANCES, Importance, ImportanceLike, as_importance
from distiller_ng.pruning.importance.bn_scale import BNScaleImportance
from distiller_ng.pruning.importance.geometric_median import GeometricMedianImportance
from distiller_ng.pruning.importance.gradient import GradientMagnitudeImportance
from distiller_ng.pruning.importance.hessian_diagonal import HessianDiagonalImportance
from distiller_ng.pruning.importance.l1 import L1Importance
from distiller_ng.pruning.importance.l2 import L2Importance
from distiller_ng.pruning.importance.random import RandomImportance
from distiller_ng.pruning.importance.shapley import ShapleyImportance
from distiller_ng.pruning.importance.taylor import TaylorImportance

__all__ = [
    "IMPORTANCES",
    "ActivationImportance",
    "BNScaleImportance",
    "GeometricMedianImportance",
    "GradientMagnitudeImportance",
    "HessianDiagonalImportance",
    "Importance",
    "ImportanceLike",
    "L1Importance",
    "L2Importance",
    "RandomImportance",
    "ShapleyImportance",
    "TaylorImportance",
    "as_importance",
]
