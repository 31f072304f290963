"""Where training progress is written: console, CSV, JSON lines, TensorBoard (layer 2)."""

from distiller_ng.data_loggers.base import DataLogger, NullLogger, StatsGroup
from distiller_ng.data_loggers.console import PythonLogger
from distiller_ng.data_loggers.csv_files import CsvLogger
from distiller_ng.data_loggers.frontends import (
    log_activation_statistics,
    log_model_buffers,
    log_training_progress,
    log_weights_sparsity,
)
from distiller_ng.data_loggers.json_lines import JsonLinesLogger
from distiller_ng.data_loggers.tensorboard import TensorBoardLogger

__all__ = [
    "CsvLogger",
    "DataLogger",
    "JsonLinesLogger",
    "NullLogger",
    "PythonLogger",
    "StatsGroup",
    "TensorBoardLogger",
    "log_activation_statistics",
    "log_model_buffers",
    "log_training_progress",
    "log_weights_sparsity",
]
