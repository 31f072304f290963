"""How much each parameter tolerates: pruned or rounded alone, at several levels, with everything else as it is."""

from distiller_ng.reports.sensitivity.analysis import perform_sensitivity_analysis
from distiller_ng.reports.sensitivity.changes import GROUPS
from distiller_ng.reports.sensitivity.output import sensitivities_to_csv, sensitivities_to_png

__all__ = ["GROUPS", "perform_sensitivity_analysis", "sensitivities_to_csv", "sensitivities_to_png"]
