"""``distiller-ng plan``: what a schedule will do, and when (layer 5)."""

from __future__ import annotations

import argparse
import copy
from typing import ClassVar

from torch.optim import SGD

from distiller_ng.cli._models import add_model_arguments, add_teacher_argument, given_teachers, required_model
from distiller_ng.cli._numbers import above_zero, whole
from distiller_ng.cli._places import check_file_place
from distiller_ng.cli._printing import add_json_argument, print_json, print_result, writes_unicode
from distiller_ng.cli.base import COMMANDS, Command
from distiller_ng.config import file_config
from distiller_ng.config.policies import MAX_EPOCH
from distiller_ng.reports.schedule_plan import SchedulePlan, notes_text, schedule_plan
from distiller_ng.reports.schedule_timeline import ScheduleTimeline, schedule_timeline

__all__ = ["PlanCommand"]


@COMMANDS.register("plan")
class PlanCommand(Command):
    """Before training: what each policy does and when, what the model will cost after it, and a timeline.

    ``distiller-ng plan agp.yaml --arch resnet20_cifar --dataset cifar10 --picture plan.svg``
    """

    help: ClassVar[str] = "say what a schedule will do and when, before training; draw it"
    example: ClassVar[str] = (
        "distiller-ng plan agp.yaml --arch resnet20_cifar --epochs 90 --steps-per-epoch 390 --picture plan.svg"
    )

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """``plan FILE model [--epochs N] [--steps-per-epoch N] [--lr LR] [--picture PATH] [--details] [--json]``."""
        parser.add_argument("file", metavar="FILE", help="a schedule (.yaml) or a recipe (.yaml, .md)")
        parser.add_argument(
            "--epochs", type=whole(1, MAX_EPOCH), metavar="N", help="length of the run (default: of the schedule)"
        )
        parser.add_argument(
            "--steps-per-epoch", type=above_zero, default=100.0, metavar="N", help="optimizer steps (default: 100)"
        )
        parser.add_argument("--lr", type=above_zero, default=0.1, metavar="LR", help="to start from (default: 0.1)")
        parser.add_argument("--picture", metavar="PATH", help="also draw the timeline to this .svg or .png")
        parser.add_argument("--details", action="store_true", help="also list values, parameters and bits of layers")
        parser.add_argument("--recipe-args", metavar="ARGS", help="values of variables: name=value,... or JSON")
        parser.add_argument(
            "--allow-user-classes", action="store_true", help="import classes that are given as dotted paths"
        )
        add_json_argument(parser)
        add_model_arguments(parser)
        add_teacher_argument(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Print the plan."""
        check_file_place(options.picture, "--picture", (".svg", ".png"))
        plan, timeline = _planned(options)
        if options.picture:
            timeline.save(options.picture)
        if options.json:
            print_json({**plan.as_dict(), "timeline": timeline.as_dict()})
            return 0
        parts = [plan.table(), timeline.text(ascii_only=not writes_unicode(), notes=False)]
        parts += [plan.details()] if options.details else []
        parts += [notes] if (notes := notes_text((*plan.notes, *timeline.notes))) else []
        parts += [f"picture: {options.picture}"] if options.picture else []
        print_result("\n\n".join(parts))
        return 0


def _planned(options: argparse.Namespace) -> tuple[SchedulePlan, ScheduleTimeline]:
    given = required_model(options)
    example = given.example_or_none()
    original = copy.deepcopy(given.model)  # a quantizer changes the model when its schedule is loaded
    optimizer = SGD(given.model.parameters(), lr=options.lr, momentum=0.9)
    scheduler = file_config(
        given.model,
        optimizer,
        options.file,
        example_inputs=example,
        recipe_args=options.recipe_args,
        allow_user_classes=options.allow_user_classes,
        teachers=given_teachers(options),
    )
    steps = options.steps_per_epoch
    plan = schedule_plan(scheduler, steps, options.epochs, predict=True, original=original)
    return plan, schedule_timeline(scheduler, steps, options.epochs, optimizer=optimizer, plan=plan)
