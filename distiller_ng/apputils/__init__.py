"""The image-classification application, its data sets and its helpers (layer 5).

``distiller.apputils.save_checkpoint``, ``load_checkpoint``, ``load_data`` and so on, as Distiller's scripts call them;
the application itself is :mod:`distiller_ng.apputils.image_classifier`.
"""

from distiller_ng.apputils import image_classifier
from distiller_ng.apputils.checkpoints import (
    load_checkpoint,
    load_lean_checkpoint,
    resume_checkpoint,
)
from distiller_ng.apputils.data_loaders import (
    SubsetSampler,
    classification_dataset_str_from_arch,
    classification_get_input_shape,
    classification_num_classes,
    dataset_summary,
    load_data,
)
from distiller_ng.apputils.log_setup import close_pylogger, config_pylogger, log_execution_env_state
from distiller_ng.apputils.trackers import PerformanceRecord, SparsityAccuracyTracker, TrainingPerformanceTracker
from distiller_ng.checkpoint import get_contents_table, save_checkpoint

__all__ = [
    "PerformanceRecord",
    "SparsityAccuracyTracker",
    "SubsetSampler",
    "TrainingPerformanceTracker",
    "classification_dataset_str_from_arch",
    "classification_get_input_shape",
    "classification_num_classes",
    "close_pylogger",
    "config_pylogger",
    "dataset_summary",
    "get_contents_table",
    "image_classifier",
    "load_checkpoint",
    "load_data",
    "load_lean_checkpoint",
    "log_execution_env_state",
    "resume_checkpoint",
    "save_checkpoint",
]
