"""``distiller-ng lint``: everything that is wrong with schedules (layer 5)."""

from __future__ import annotations

import argparse
from typing import ClassVar

from distiller_ng.cli._models import add_model_arguments, add_teacher_argument, given_model, given_teachers
from distiller_ng.cli._printing import add_json_argument, print_json, print_result
from distiller_ng.cli.base import COMMANDS, Command
from distiller_ng.config.checking import check_schedule

__all__ = ["LintCommand"]


@COMMANDS.register("lint")
class LintCommand(Command):
    """Check schedules and recipes, all problems at once, each with its file, line and column.

    ``distiller-ng lint schedules/*.yaml --arch resnet20_cifar --dataset cifar10``; without a model names and shapes are
    not checked, and the output says so. Status 1 if there is any problem (``--strict``: or warning).
    """

    help: ClassVar[str] = "check schedules and recipes: all problems, each with its line and column"
    example: ClassVar[str] = "distiller-ng lint agp.yaml --model mynet.py:MyNet --input-shape 1,3,32,32"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """``lint FILE... [model] [--teacher NAME=WHERE] [--strict] [--recipe-args ARGS] [--json]``."""
        parser.add_argument("files", metavar="FILE", nargs="+", help="a schedule (.yaml) or a recipe (.yaml, .md)")
        parser.add_argument("--strict", action="store_true", help="warnings end in status 1, too")
        parser.add_argument("--recipe-args", metavar="ARGS", help="values of variables: name=value,... or JSON")
        parser.add_argument(
            "--allow-user-classes", action="store_true", help="import classes that are given as dotted paths"
        )
        add_json_argument(parser)
        add_model_arguments(parser)
        add_teacher_argument(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Check and print; 1 if anything is wrong."""
        given, teachers = given_model(options), given_teachers(options)
        checks = [
            check_schedule(
                file,
                None if given is None else given.model,
                example_inputs=None if given is None else given.example_or_none(),
                allow_user_classes=options.allow_user_classes,
                teachers=teachers,
                recipe_args=options.recipe_args,
            )
            for file in options.files
        ]
        if options.json:
            print_json([check.as_dict() for check in checks])
        else:
            for check in checks:
                print_result(check if str(check) else f"{check.source}: no problems")
        failed = any(check.problems or (options.strict and check.warnings) for check in checks)
        return 1 if failed else 0
