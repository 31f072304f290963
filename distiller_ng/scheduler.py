"""The scheduler and masks under Distiller's module name (re-exports)."""

from distiller_ng.core.masker import ParameterMasker
from distiller_ng.core.masks import MaskRegistry, create_model_masks_dict
from distiller_ng.core.scheduler import CompressionScheduler

__all__ = ["CompressionScheduler", "MaskRegistry", "ParameterMasker", "create_model_masks_dict"]
