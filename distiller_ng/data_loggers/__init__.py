"""Where training progress is written, and what is collected of a model's activations (layer 2)."""

from distiller_ng.data_loggers._inplace import InplaceError
from distiller_ng.data_loggers.activation_histograms import ActivationHistogramsCollector
from distiller_ng.data_loggers.activation_stats import ActivationStatsCollector, CollectorDirection
from distiller_ng.data_loggers.base import DataLogger, NullLogger, StatsGroup
from distiller_ng.data_loggers.collecting import collect_histograms, collect_quant_stats, collect_raw_outputs
from distiller_ng.data_loggers.collector_sets import (
    CollectorSet,
    create_activation_stats_collectors,
    save_collectors_data,
)
from distiller_ng.data_loggers.console import PythonLogger
from distiller_ng.data_loggers.contexts import collector_context, collectors_context
from distiller_ng.data_loggers.csv_files import CsvLogger
from distiller_ng.data_loggers.frontends import (
    log_activation_statistics,
    log_model_buffers,
    log_training_progress,
    log_weights_sparsity,
)
from distiller_ng.data_loggers.json_lines import JsonLinesLogger
from distiller_ng.data_loggers.observed_ranges import ObservedRangesCollector, collect_observed_ranges
from distiller_ng.data_loggers.observers import OBSERVERS, Observer
from distiller_ng.data_loggers.quant_calibration import QuantCalibrationStatsCollector
from distiller_ng.data_loggers.quant_stats_file import load_quant_stats, save_quant_stats
from distiller_ng.data_loggers.raw_activations import RawActivationsCollector
from distiller_ng.data_loggers.records_stats import RecordsActivationStatsCollector
from distiller_ng.data_loggers.summary_stats import SummaryActivationStatsCollector
from distiller_ng.data_loggers.tensorboard import TensorBoardLogger

__all__ = [
    "OBSERVERS",
    "ActivationHistogramsCollector",
    "ActivationStatsCollector",
    "CollectorDirection",
    "CollectorSet",
    "CsvLogger",
    "DataLogger",
    "InplaceError",
    "JsonLinesLogger",
    "NullLogger",
    "ObservedRangesCollector",
    "Observer",
    "PythonLogger",
    "QuantCalibrationStatsCollector",
    "RawActivationsCollector",
    "RecordsActivationStatsCollector",
    "StatsGroup",
    "SummaryActivationStatsCollector",
    "TensorBoardLogger",
    "collect_histograms",
    "collect_observed_ranges",
    "collect_quant_stats",
    "collect_raw_outputs",
    "collector_context",
    "collectors_context",
    "create_activation_stats_collectors",
    "load_quant_stats",
    "log_activation_statistics",
    "log_model_buffers",
    "log_training_progress",
    "log_weights_sparsity",
    "save_collectors_data",
    "save_quant_stats",
]
