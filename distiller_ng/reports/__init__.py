"""Reports: data first, then a printed table, CSV and JSON (layer 4)."""

from distiller_ng.reports.activation_histograms import ActivationHistograms, activation_histograms_summary
from distiller_ng.reports.compute import model_performance_summary, model_performance_tbl_summary
from distiller_ng.reports.connectivity import (
    connectivity_summary,
    connectivity_summary_verbose,
    connectivity_tbl_summary,
)
from distiller_ng.reports.modules import (
    attributes_summary,
    attributes_summary_tbl,
    modules_summary,
    modules_tbl_summary,
)
from distiller_ng.reports.pictures import (
    create_dot,
    create_png,
    draw_img_classifier_to_file,
    draw_model_to_file,
)
from distiller_ng.reports.progress import TrainingProgress
from distiller_ng.reports.schedule_plan import PlannedActions, SchedulePlan, schedule_plan
from distiller_ng.reports.schedule_timeline import PolicyTimeline, ScheduleTimeline, schedule_timeline
from distiller_ng.reports.size_and_speed import ModelFigures, size_and_speed, size_and_speed_tbl
from distiller_ng.reports.sparsity import (
    masks_sparsity_summary,
    masks_sparsity_tbl_summary,
    weights_sparsity_summary,
    weights_sparsity_tbl_summary,
)
from distiller_ng.reports.summary import PICTURES, SUMMARIES, model_summary
from distiller_ng.reports.table import Table

__all__ = [
    "PICTURES",
    "SUMMARIES",
    "ActivationHistograms",
    "ModelFigures",
    "PlannedActions",
    "PolicyTimeline",
    "SchedulePlan",
    "ScheduleTimeline",
    "Table",
    "TrainingProgress",
    "activation_histograms_summary",
    "attributes_summary",
    "attributes_summary_tbl",
    "connectivity_summary",
    "connectivity_summary_verbose",
    "connectivity_tbl_summary",
    "create_dot",
    "create_png",
    "draw_img_classifier_to_file",
    "draw_model_to_file",
    "masks_sparsity_summary",
    "masks_sparsity_tbl_summary",
    "model_performance_summary",
    "model_performance_tbl_summary",
    "model_summary",
    "modules_summary",
    "modules_tbl_summary",
    "schedule_plan",
    "schedule_timeline",
    "size_and_speed",
    "size_and_speed_tbl",
    "weights_sparsity_summary",
    "weights_sparsity_tbl_summary",
]
