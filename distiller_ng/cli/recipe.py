"""``distiller-ng recipe``: recipes as schedules, and the reverse (layer 5)."""

from __future__ import annotations

import argparse
from typing import ClassVar

from distiller_ng.cli._places import check_file_place
from distiller_ng.cli._printing import print_text
from distiller_ng.cli.base import COMMANDS, Command
from distiller_ng.config.api import read_schedule
from distiller_ng.config.dumping import schedule_text
from distiller_ng.config.frontends.recipe.reverse import as_recipe
from distiller_ng.config.frontends.recipe.writing import recipe_text
from distiller_ng.config.problems import emit
from distiller_ng.errors import ScheduleError
from distiller_ng.ops.files import write_text_atomically

__all__ = ["RecipeCommand"]


@COMMANDS.register("recipe")
class RecipeCommand(Command):
    """``translate FILE``: print the schedule that a recipe amounts to, or with ``--to recipe`` the recipe.

    ``distiller-ng recipe translate recipe.md --args num_epochs=20 > schedule.yaml``
    """

    help: ClassVar[str] = "translate SparseML recipes to schedules and back"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """``translate FILE [--to schedule|recipe] [--args ...] [--output PATH]``."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        translate = actions.add_parser("translate", help="print the equivalent schedule (or recipe)")
        translate.add_argument("file", metavar="FILE", help="a recipe (.yaml, .yml, .md), or a schedule")
        translate.add_argument("--to", choices=("schedule", "recipe"), default="schedule", help="default: schedule")
        translate.add_argument("--args", metavar="ARGS", help="values of variables: name=value,... or JSON")
        translate.add_argument("--output", metavar="PATH", help="write to this file instead of printing")

    def run(self, options: argparse.Namespace) -> int:
        """Translate."""
        check_file_place(options.output, "--output")
        spec = read_schedule(options.file, recipe_args=options.args)
        emit(spec.warnings)
        if spec.problems:
            raise ScheduleError(sorted(spec.problems, key=lambda problem: (problem.line, problem.column)))
        text = schedule_text(spec) if options.to == "schedule" else recipe_text(as_recipe(spec))
        if options.output:
            write_text_atomically(options.output, text)
        else:
            print_text(text)
        return 0
