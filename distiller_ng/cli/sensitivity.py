"""``distiller-ng sensitivity``: how much each parameter tolerates (layer 5)."""

from __future__ import annotations

import argparse
from typing import Any, ClassVar

from distiller_ng.apputils.classifier_sensitivity import sensitivity_levels
from distiller_ng.cli._data import add_data_arguments, add_evaluate_argument, evaluation
from distiller_ng.cli._models import add_model_arguments, required_model
from distiller_ng.cli._numbers import whole
from distiller_ng.cli._places import PICTURES, check_file_place
from distiller_ng.cli._printing import add_json_argument, print_json, print_result
from distiller_ng.cli._ranks import progress_of, ranks
from distiller_ng.cli.base import COMMANDS, Command
from distiller_ng.names import ALL_PRUNABLE
from distiller_ng.ops.optional import check_drawing
from distiller_ng.ops.table import Table
from distiller_ng.reports.sensitivity import (
    GROUPS,
    perform_sensitivity_analysis,
    sensitivities_to_csv,
    sensitivities_to_png,
)

__all__ = ["SensitivityCommand"]

_RANGE = (0.0, 0.95, 0.05)
_BITS = (8, 6, 4, 3, 2)


@COMMANDS.register("sensitivity")
class SensitivityCommand(Command):
    """Measure the model with one parameter pruned, or rounded, at a time, and write what was found.

    ``distiller-ng sensitivity --arch resnet20_cifar --checkpoint best.pth.tar --csv sensitivity.csv``
    """

    help: ClassVar[str] = "measure how much each parameter tolerates: sparsities, filters, channels, bits"
    example: ClassVar[str] = (
        "distiller-ng sensitivity --arch resnet20_cifar --checkpoint best.pth.tar --group filter --png sensitivity.png"
    )
    shares_ranks: ClassVar[bool] = True

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """``sensitivity model [--group GROUP] [--sense-range ...] [--csv PATH] [--png PATH] [--results-file PATH]``."""
        parser.add_argument("--group", choices=GROUPS, default="element", help="what is taken away (default: element)")
        parser.add_argument(
            "--params", nargs="+", metavar="NAME", default=[ALL_PRUNABLE], help="names or re: patterns (default: all)"
        )
        parser.add_argument(
            "--sense-range",
            type=float,
            nargs=3,
            default=list(_RANGE),
            metavar=("START", "STOP", "STEP"),
            help="the sparsities; STOP is not among them (default: 0.0 0.95 0.05)",
        )
        parser.add_argument("--bits", type=int, nargs="+", metavar="N", default=list(_BITS), help="with --group bits")
        parser.add_argument("--csv", metavar="PATH", help="write parameter,sparsity,top1,top5,loss")
        parser.add_argument("--png", metavar="PATH", help="draw a line for each parameter")
        parser.add_argument("--results-file", metavar="PATH", help="JSON to go on from after an interruption")
        parser.add_argument("--processes", type=whole(1), default=1, metavar="N", help="that many measure at once")
        add_evaluate_argument(parser)
        add_json_argument(parser)
        add_model_arguments(parser)
        add_data_arguments(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Measure, write, print; under ``torchrun`` the ranks share the measurements, and the first one writes."""
        check_file_place(options.csv, "--csv")
        check_file_place(options.png, "--png", PICTURES)
        check_file_place(options.results_file, "--results-file")
        if options.png:
            check_drawing("drawing sensitivities")
        levels = options.bits if options.group == "bits" else sensitivity_levels(*options.sense_range)
        given = required_model(options)
        measure = evaluation(options, given)
        with ranks() as first, progress_of("distiller_ng.reports.sensitivity.analysis"):
            found = perform_sensitivity_analysis(
                given.model,
                options.params,
                levels,
                measure,
                options.group,
                results_file=options.results_file,
                processes=options.processes,
            )
        if first:
            _write(found, options)
        return 0


def _write(found: dict[str, dict[float, tuple[float, float, float]]], options: argparse.Namespace) -> None:
    if options.csv:
        sensitivities_to_csv(found, options.csv)
    if options.png:
        sensitivities_to_png(found, options.png)
    if options.json:
        print_json({name: [[level, *scores] for level, scores in row.items()] for name, row in found.items()})
    else:
        print_result(_table(found))


def _table(found: dict[str, dict[float, tuple[float, float, float]]]) -> Table:
    """Top-1 of every parameter at every level."""
    levels = list(next(iter(found.values())))
    rows: list[tuple[Any, ...]] = [(name, *(f"{row[at][0]:.2f}" for at in levels)) for name, row in found.items()]
    return Table("Top-1 (%)", ("Parameter", *(f"{level:g}" for level in levels)), tuple(rows))
