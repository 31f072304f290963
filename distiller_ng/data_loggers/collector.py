"""Distiller's module path for the activation collectors (layer 2)."""

from distiller_ng.data_loggers._inplace import InplaceError
from distiller_ng.data_loggers.activation_histograms import ActivationHistogramsCollector
from distiller_ng.data_loggers.activation_stats import ActivationStatsCollector, CollectorDirection
from distiller_ng.data_loggers.collecting import collect_histograms, collect_quant_stats, collect_raw_outputs
from distiller_ng.data_loggers.collector_sets import (
    CollectorSet,
    create_activation_stats_collectors,
    save_collectors_data,
)
from distiller_ng.data_loggers.contexts import collector_context, collectors_context
from distiller_ng.data_loggers.observed_ranges import ObservedRangesCollector, collect_observed_ranges
from distiller_ng.data_loggers.quant_calibration import QuantCalibrationStatsCollector
from distiller_ng.data_loggers.quant_stats_file import load_quant_stats, save_quant_stats
from distiller_ng.data_loggers.raw_activations import RawActivationsCollector
from distiller_ng.data_loggers.records_stats import RecordsActivationStatsCollector
from distiller_ng.data_loggers.summary_stats import SummaryActivationStatsCollector

__all__ = [
    "ActivationHistogramsCollector",
    "ActivationStatsCollector",
    "CollectorDirection",
    "CollectorSet",
    "InplaceError",
    "ObservedRangesCollector",
    "QuantCalibrationStatsCollector",
    "RawActivationsCollector",
    "RecordsActivationStatsCollector",
    "SummaryActivationStatsCollector",
    "collect_histograms",
    "collect_observed_ranges",
    "collect_quant_stats",
    "collect_raw_outputs",
    "collector_context",
    "collectors_context",
    "create_activation_stats_collectors",
    "load_quant_stats",
    "save_collectors_data",
    "save_quant_stats",
]
