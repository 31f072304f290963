"""``distiller-ng search``: sparsities and bits for each layer within a budget (layer 5)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import ClassVar

from distiller_ng.automatic.candidates import GROUPS
from distiller_ng.automatic.search import search_compression
from distiller_ng.automatic.search_picture import layers_table, overview_table, pareto_table, search_to_picture
from distiller_ng.automatic.search_result import SearchResult
from distiller_ng.cli._data import add_data_arguments, add_evaluate_argument, evaluation
from distiller_ng.cli._models import add_model_arguments, required_model
from distiller_ng.cli._numbers import whole
from distiller_ng.cli._places import PICTURES, check_file_place, check_new_file
from distiller_ng.cli._printing import add_json_argument, print_json, print_result, print_text
from distiller_ng.cli._ranks import progress_of, ranks
from distiller_ng.cli.base import COMMANDS, Command
from distiller_ng.config.policies import MAX_EPOCH
from distiller_ng.errors import ArgumentError
from distiller_ng.names import ALL_PRUNABLE
from distiller_ng.ops.files import write_text_atomically
from distiller_ng.ops.optional import check_drawing

__all__ = ["SearchCommand"]


@COMMANDS.register("search")
class SearchCommand(Command):
    """Try many combinations of levels within a budget, and write the best as a schedule.

    ``distiller-ng search --model mynet.py:MyNet --budget macs=0.5 --group filter -o found.yaml``
    """

    help: ClassVar[str] = "search sparsities and bits for each layer within a budget of MACs, size or latency"
    example: ClassVar[str] = (
        "distiller-ng search --model mynet.py:MyNet --checkpoint net.pt --input-shape 1,3,32,32 --budget macs=0.5 "
        "--group filter --evaluate mydata.py:accuracy -o found.yaml"
    )
    shares_ranks: ClassVar[bool] = True

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """``search model --budget NAME=SHARE ... [--group GROUP] [--bits N ...] [-o FILE] [--picture PATH]``."""
        parser.add_argument(
            "--budget",
            required=True,
            nargs="+",
            metavar="NAME=SHARE",
            help="what may remain of macs, size, params or latency, e.g. macs=0.5 size=0.2; all of them hold",
        )
        parser.add_argument(
            "--group",
            choices=GROUPS,
            default="element",
            help="single weights become zero, or whole filters are removed (default: element)",
        )
        parser.add_argument("--bits", type=int, nargs="+", metavar="N", default=[], help="of weights, e.g. 4 8")
        parser.add_argument(
            "--params", nargs="+", metavar="NAME", default=[ALL_PRUNABLE], help="names or re: patterns (default: all)"
        )
        parser.add_argument("--max-sparsity", type=float, metavar="S", help="of one layer (default: 0.95, filters 0.9)")
        parser.add_argument(
            "--population", type=whole(2), default=16, metavar="N", help="candidates of a generation (default: 16)"
        )
        parser.add_argument(
            "--generations", type=whole(0), default=10, metavar="N", help="after the first (default: 10)"
        )
        parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of chance (default: 0)")
        add_evaluate_argument(parser)
        parser.add_argument("--results-file", metavar="PATH", help="JSON to go on from after an interruption")
        parser.add_argument("--processes", type=whole(1), default=1, metavar="N", help="that many evaluate at once")
        parser.add_argument("-o", "--output", metavar="FILE", help="write a schedule with what was found")
        parser.add_argument(
            "--epochs", type=whole(2, MAX_EPOCH), default=20, metavar="N", help="of the schedule (default: 20)"
        )
        parser.add_argument("--force", action="store_true", help="overwrite FILE")
        parser.add_argument("--picture", metavar="PATH", help="draw accuracy over cost to this .png or .svg")
        add_json_argument(parser)
        add_model_arguments(parser)
        add_data_arguments(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Search, write, print; under ``torchrun`` the ranks share the evaluations, and the first one writes."""
        budget = _budgets(options.budget)
        _check_places(options)
        given = required_model(options)
        measure = evaluation(options, given)
        example = given.example()
        with ranks() as first, progress_of("distiller_ng.automatic.search"):
            found = search_compression(
                given.model,
                example,
                measure,
                budget,
                group=options.group,
                params=options.params,
                bits=options.bits,
                population=options.population,
                max_sparsity=options.max_sparsity,
                generations=options.generations,
                seed=options.seed,
                results_file=options.results_file,
                processes=options.processes,
            )
        if first:
            _write(found, options)
        return 0


def _budgets(texts: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in texts:
        name, share = _budget(text)
        if name in found:
            raise ArgumentError(f"--budget {text}: there is a budget of {name} already")
        found[name] = share
    return found


def _budget(text: str) -> tuple[str, float]:
    name, equals, number = (part.strip() for part in text.partition("="))
    if not equals:
        raise ArgumentError(f"--budget {text}: write macs=0.5, size=0.2, params=0.3 or latency=0.5")
    try:
        return name, float(number[:-1]) / 100 if number.endswith("%") else float(number)
    except ValueError:
        raise ArgumentError(f"--budget {text}: {number!r} is not a number, e.g. {name}=0.5") from None


def _check_places(options: argparse.Namespace) -> None:
    """Before minutes are spent on searching."""
    check_new_file(options.output, "-o", force=options.force)
    check_file_place(options.picture, "--picture", PICTURES)
    check_file_place(options.results_file, "--results-file")
    if options.picture is not None:
        check_drawing("drawing a search")


def _write(found: SearchResult, options: argparse.Namespace) -> None:
    if options.output is not None:
        write_text_atomically(options.output, found.schedule_text(options.epochs))
    if options.picture is not None:
        search_to_picture(found, options.picture)
    if options.json:
        print_json(found.as_dict())
        return
    tables = [overview_table(found), layers_table(found), pareto_table(found)]
    print_text("\n".join(f"{table}\n" for table in tables))
    if options.output is not None:
        print_result(f"\nwrote {options.output}: a schedule for {options.epochs} epochs with these levels")
