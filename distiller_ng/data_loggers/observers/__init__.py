"""Observers: each chooses from the activations of a calibration run which range to quantize (layer 2)."""

from distiller_ng.data_loggers.observers.base import OBSERVERS, Observer, observer_named
from distiller_ng.data_loggers.observers.ema import EMAObserver
from distiller_ng.data_loggers.observers.histogram import HistogramObserver
from distiller_ng.data_loggers.observers.kl import KLObserver
from distiller_ng.data_loggers.observers.min_max import MinMaxObserver
from distiller_ng.data_loggers.observers.mse import MSEObserver
from distiller_ng.data_loggers.observers.percentile import PercentileObserver

__all__ = [
    "OBSERVERS",
    "EMAObserver",
    "HistogramObserver",
    "KLObserver",
    "MSEObserver",
    "MinMaxObserver",
    "Observer",
    "PercentileObserver",
    "observer_named",
]
