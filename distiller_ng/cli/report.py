"""``distiller-ng report``: one HTML page about runs (layer 5)."""

from __future__ import annotations

import argparse
from typing import ClassVar

from distiller_ng.cli._places import check_file_place
from distiller_ng.cli._printing import print_result
from distiller_ng.cli.base import COMMANDS, Command
from distiller_ng.reports.html import write_html_report

__all__ = ["ReportCommand"]


@COMMANDS.register("report")
class ReportCommand(Command):
    """One self-contained page about one run, or a comparison of several.

    ``distiller-ng report logs/agp___2026.11.21-102036 logs/thinned___2026.11.21-102045 -o report.html``
    """

    help: ClassVar[str] = "write one HTML page about runs: accuracy, curves, layers, models in their runtimes"
    example: ClassVar[str] = "distiller-ng report runs/dense runs/pruned -o report.html"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """``report RUN_DIR... [-o PATH] [--title TEXT]``."""
        parser.add_argument(
            "runs", metavar="RUN_DIR", nargs="+", help="folder of a run: of the application, or of distiller.record_run"
        )
        parser.add_argument("-o", "--output", metavar="PATH", default="report.html", help="default: report.html")
        parser.add_argument("--title", default="", help="heading of the page")

    def run(self, options: argparse.Namespace) -> int:
        """Write the page and say where it is."""
        check_file_place(options.output, "-o")
        print_result(write_html_report(options.runs, options.output, title=options.title))
        return 0
