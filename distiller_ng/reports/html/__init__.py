"""One page that shows what a run did and what it was worth: a single HTML file that needs no network."""

from distiller_ng.reports.html.report import write_html_report
from distiller_ng.reports.html.run_data import RunData, read_run

__all__ = ["RunData", "read_run", "write_html_report"]
