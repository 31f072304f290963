"""``distiller-ng export``: models for real runtimes (layer 5)."""

from __future__ import annotations

import argparse
from typing import Any, ClassVar

from distiller_ng.cli._models import add_model_arguments, required_model
from distiller_ng.cli._places import check_file_place
from distiller_ng.cli._printing import add_json_argument, print_json, print_result
from distiller_ng.cli.base import COMMANDS, Command
from distiller_ng.export import EXPORTERS, ExportReport, export_model

__all__ = ["ExportCommand", "report_data"]

_NOT_TRACED = ("sparse", "packed")


@COMMANDS.register("export")
class ExportCommand(Command):
    """Write a model for a runtime and compare the file with it.

    ``distiller-ng export --to onnx --arch resnet20_cifar --checkpoint best.pth.tar -o model.onnx``
    """

    help: ClassVar[str] = "write a model for a runtime: ONNX, OpenVINO, torchao, sparse or packed files"
    example: ClassVar[str] = "distiller-ng export --to onnx --arch resnet20_cifar --checkpoint best.pth.tar -o net.onnx"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """``export --to TARGET model -o PATH [--json]``."""
        parser.add_argument("--to", required=True, choices=EXPORTERS.names(), help="the runtime")
        parser.add_argument("-o", "--output", required=True, metavar="PATH", help="the file to write")
        add_json_argument(parser)
        add_model_arguments(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Write it, and say what was written."""
        check_file_place(options.output, "-o")
        given = required_model(options)
        is_traced = options.to not in _NOT_TRACED
        example: Any = given.example() if is_traced else given.example_or_none() or ()
        report = export_model(given.model, options.to, example, options.output)
        if options.json:
            print_json(report_data(report))
        else:
            print_result(report)
        return 0


def report_data(report: ExportReport) -> dict[str, Any]:
    """An export's report as plain values."""
    agreement = report.agreement
    return {
        "target": report.target,
        "paths": [str(path) for path in report.paths],
        "bytes": report.bytes,
        "float_bytes": report.float_bytes,
        "layers": report.table().records(),
        "notes": list(report.notes),
        "agreement": None
        if agreement is None
        else {"max_abs": agreement.max_abs, "sqnr_db": agreement.sqnr_db, "top1": agreement.top1},
    }
