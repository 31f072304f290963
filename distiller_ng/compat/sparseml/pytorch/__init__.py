"""SparseML's ``sparseml.pytorch``."""

from distiller_ng.compat.sparseml.pytorch import optim

__all__ = ["optim"]
