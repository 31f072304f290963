"""Compress PyTorch models while they train: one YAML schedule says what (pruners, regularizers, learning rates) and when.

``import distiller_ng as distiller`` gives ported code Distiller's public names.
"""

from distiller_ng import (
    apputils,
    checkpoint,
    config,
    data_loggers,
    directives,
    learning_rate,
    models,
    modules,
    norms,
    policies,
    pruning,
    regularization,
    reports,
    thresholding,
    utils,
)
from distiller_ng.config import config_component_from_file_by_class, dict_config, file_config
from distiller_ng.core.context import StepContext
from distiller_ng.core.legacy import ScheduledTrainingPolicy
from distiller_ng.core.masker import ParameterMasker
from distiller_ng.core.masks import MaskRegistry, create_model_masks_dict
from distiller_ng.core.policy import LossComponent, Policy, PolicyLoss
from distiller_ng.core.position import TrainPosition
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.core.summary import CompressionSummary
from distiller_ng.core.window import PolicyWindow
from distiller_ng.directives import adjust_dropout, freeze_all, freeze_training
from distiller_ng.errors import (
    ArgumentError,
    CalibrationError,
    CheckpointError,
    DatasetError,
    DistillerError,
    ExportError,
    GraphError,
    LifecycleError,
    ScheduleError,
    ScheduleWarning,
    TargetError,
)
from distiller_ng.ops.masks import (
    create_mask_level_criterion,
    create_mask_sensitivity_criterion,
    create_mask_threshold_criterion,
    mask_tensor,
)
from distiller_ng.policies import LRPolicy, PruningPolicy, RegularizationPolicy
from distiller_ng.reports import (
    attributes_summary,
    attributes_summary_tbl,
    masks_sparsity_tbl_summary,
    model_performance_summary,
    model_performance_tbl_summary,
    model_summary,
    weights_sparsity_summary,
    weights_sparsity_tbl_summary,
)
from distiller_ng.thresholding import GroupThresholdMixin, group_threshold_mask
from distiller_ng.utils import *  # noqa: F403  the public helpers, by their __all__
from distiller_ng.utils import __all__ as _helpers

__version__ = "0.1.0"

__all__ = [
    *_helpers,
    "ArgumentError",
    "CalibrationError",
    "CheckpointError",
    "CompressionScheduler",
    "CompressionSummary",
    "DatasetError",
    "DistillerError",
    "ExportError",
    "GraphError",
    "GroupThresholdMixin",
    "LRPolicy",
    "LifecycleError",
    "LossComponent",
    "MaskRegistry",
    "ParameterMasker",
    "Policy",
    "PolicyLoss",
    "PolicyWindow",
    "PruningPolicy",
    "RegularizationPolicy",
    "ScheduleError",
    "ScheduleWarning",
    "ScheduledTrainingPolicy",
    "StepContext",
    "TargetError",
    "TrainPosition",
    "__version__",
    "adjust_dropout",
    "apputils",
    "attributes_summary",
    "attributes_summary_tbl",
    "checkpoint",
    "config",
    "config_component_from_file_by_class",
    "create_mask_level_criterion",
    "create_mask_sensitivity_criterion",
    "create_mask_threshold_criterion",
    "create_model_masks_dict",
    "data_loggers",
    "dict_config",
    "directives",
    "file_config",
    "freeze_all",
    "freeze_training",
    "group_threshold_mask",
    "learning_rate",
    "mask_tensor",
    "masks_sparsity_tbl_summary",
    "model_performance_summary",
    "model_performance_tbl_summary",
    "model_summary",
    "models",
    "modules",
    "norms",
    "policies",
    "pruning",
    "regularization",
    "reports",
    "thresholding",
    "utils",
    "weights_sparsity_summary",
    "weights_sparsity_tbl_summary",
]
