"""Reports: data first, then a printed table, CSV and JSON (layer 4)."""

from distiller_ng.reports.compute import model_performance_summary, model_performance_tbl_summary
from distiller_ng.reports.modules import (
    attributes_summary,
    attributes_summary_tbl,
    modules_summary,
    modules_tbl_summary,
)
from distiller_ng.reports.progress import TrainingProgress
from distiller_ng.reports.sparsity import (
    masks_sparsity_summary,
    masks_sparsity_tbl_summary,
    weights_sparsity_summary,
    weights_sparsity_tbl_summary,
)
from distiller_ng.reports.summary import SUMMARIES, model_summary
from distiller_ng.reports.table import Table

__all__ = [
    "SUMMARIES",
    "Table",
    "TrainingProgress",
    "attributes_summary",
    "attributes_summary_tbl",
    "masks_sparsity_summary",
    "masks_sparsity_tbl_summary",
    "model_performance_summary",
    "model_performance_tbl_summary",
    "model_summary",
    "modules_summary",
    "modules_tbl_summary",
    "weights_sparsity_summary",
    "weights_sparsity_tbl_summary",
]
