"""``distiller-ng summary``: a model's layers as tables (layer 5)."""

from __future__ import annotations

import argparse
from typing import ClassVar

from distiller_ng.cli._models import add_model_arguments, required_model
from distiller_ng.cli._places import check_folder_place
from distiller_ng.cli._printing import add_json_argument, print_json, print_result
from distiller_ng.cli.base import COMMANDS, Command
from distiller_ng.reports.summary import PICTURES, SUMMARIES, model_summary
from distiller_ng.reports.table import Table

__all__ = ["SummaryCommand"]

_WITHOUT_INPUT = ("sparsity", "model", "modules")


@COMMANDS.register("summary")
class SummaryCommand(Command):
    """Tables of a model: MACs, sparsity, modules, connections; or a picture of it.

    ``distiller-ng summary compute sparsity --arch resnet20_cifar --checkpoint best.pth.tar``
    """

    help: ClassVar[str] = "print tables about a model: compute, sparsity, modules, connectivity; or draw it"
    example: ClassVar[str] = "distiller-ng summary compute sparsity --model mynet.py:MyNet --input-shape 1,3,32,32"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """``summary [WHAT...] model [--out-dir DIR] [--json]``."""
        kinds = [*SUMMARIES, *PICTURES]
        parser.add_argument("what", metavar="WHAT", nargs="*", help=f"{', '.join(kinds)} (default: compute)")
        parser.add_argument(
            "-o", "--out-dir", metavar="DIR", default="", help="also write CSV files, and pictures here"
        )
        add_json_argument(parser)
        add_model_arguments(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Print the tables."""
        check_folder_place(options.out_dir, "--out-dir")
        given = required_model(options)
        found: dict[str, Table | str] = {}
        for what in options.what or ["compute"]:
            needs_input = what in (*SUMMARIES, *PICTURES) and what not in _WITHOUT_INPUT
            example = given.example() if needs_input else None
            found[what] = model_summary(given.model, what, given.dataset, options.out_dir, dummy_input=example)
        if options.json:
            print_json({what: one.records() if isinstance(one, Table) else one for what, one in found.items()})
        else:
            print_result("\n\n".join(str(one) for one in found.values()))
        return 0
