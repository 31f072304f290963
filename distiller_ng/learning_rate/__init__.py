"""Learning-rate schedulers: torch's by name, two of our own, and absolute values for any of them (layer 2)."""

from distiller_ng.learning_rate.base import LR_SCHEDULERS, LRDriver, Unit
from distiller_ng.learning_rate.definition import LRDefinition, allowed_arguments, resolve, variants
from distiller_ng.learning_rate.live import LiveLR, as_driver
from distiller_ng.learning_rate.multi_step_multi_gamma import MultiStepMultiGammaLR
from distiller_ng.learning_rate.polynomial import PolynomialLR
from distiller_ng.learning_rate.scheduled import ScheduledLR

__all__ = [
    "LR_SCHEDULERS",
    "LRDefinition",
    "LRDriver",
    "LiveLR",
    "MultiStepMultiGammaLR",
    "PolynomialLR",
    "ScheduledLR",
    "Unit",
    "allowed_arguments",
    "as_driver",
    "resolve",
    "variants",
]
