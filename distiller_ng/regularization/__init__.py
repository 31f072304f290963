"""Regularizers, one a file (layer 2)."""

from distiller_ng.regularization.base import REGULARIZERS, Regularizer
from distiller_ng.regularization.group_lasso import GroupLassoRegularizer
from distiller_ng.regularization.group_variance import GroupVarianceRegularizer
from distiller_ng.regularization.l1 import L1Regularizer
from distiller_ng.regularization.l2 import L2Regularizer

__all__ = [
    "REGULARIZERS",
    "GroupLassoRegularizer",
    "GroupVarianceRegularizer",
    "L1Regularizer",
    "L2Regularizer",
    "Regularizer",
]
