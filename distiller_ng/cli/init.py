"""``distiller-ng init``: a first schedule for a model of one's own (layer 5)."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from distiller_ng.automatic._first_target import TECHNIQUES
from distiller_ng.automatic.first import FirstSchedule, first_schedule
from distiller_ng.cli._data import Evaluation, OwnEvaluation, add_data_arguments, add_evaluate_argument, evaluation
from distiller_ng.cli._models import GivenModel, add_model_arguments, required_model
from distiller_ng.cli._numbers import above_zero, whole
from distiller_ng.cli._places import check_new_file
from distiller_ng.cli._printing import add_json_argument, print_json, print_result, print_text, say
from distiller_ng.cli.base import COMMANDS, Command
from distiller_ng.config.policies import MAX_EPOCH
from distiller_ng.errors import DatasetError

__all__ = ["InitCommand"]

_LEVELS = (0.3, 0.5, 0.7)


@COMMANDS.register("init")
class InitCommand(Command):
    """Measure what each layer tolerates, share the target out, try the result on a copy, write it with comments.

    ``distiller-ng init --model mynet.py:MyNet --checkpoint net.pt --target macs=0.5 -o first.yaml``
    """

    help: ClassVar[str] = "write a commented first schedule for your model that reaches a size, MACs or latency"
    example: ClassVar[str] = (
        "distiller-ng init --model mynet.py:MyNet --checkpoint net.pt --input-shape 1,3,32,32 --target macs=0.5 "
        "--evaluate mydata.py:accuracy -o first.yaml"
    )

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """``init model --target BUDGET=SHARE [--technique NAME] [--epochs N] [--evaluate FUNCTION] [-o FILE]``."""
        parser.add_argument(
            "--target",
            required=True,
            metavar="BUDGET=SHARE",
            help="what shall remain: size=0.3, macs=0.5 or latency=0.5 of what it is now",
        )
        names = "; ".join(f"{name}: {one.what}" for name, one in TECHNIQUES.items())
        parser.add_argument("--technique", metavar="NAME", help=f"default: what fits the target. {names}")
        parser.add_argument(
            "--epochs", type=whole(1, MAX_EPOCH), default=20, metavar="N", help="of the training (default: 20)"
        )
        parser.add_argument("-o", "--output", metavar="FILE", help="write it there (default: standard output)")
        parser.add_argument("--force", action="store_true", help="overwrite FILE")
        add_evaluate_argument(
            parser,
            ". Without it, --loaders and --dataset the change of the outputs on random input stands in for accuracy",
        )
        parser.add_argument(
            "--levels",
            type=float,
            nargs="+",
            default=list(_LEVELS),
            metavar="S",
            help="each layer is measured with these shares of it gone (default: 0.3 0.5 0.7)",
        )
        parser.add_argument(
            "--time-budget",
            type=above_zero,
            default=120.0,
            metavar="SECONDS",
            help="for measuring; fewer levels if need be, at least one (default: 120)",
        )
        parser.add_argument("--processes", type=whole(1), default=1, metavar="N", help="that many measure at once")
        parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of random input (default: 0)")
        add_json_argument(parser)
        add_model_arguments(parser)
        add_data_arguments(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Write the schedule; say what it promises."""
        check_new_file(options.output, "-o", force=options.force)
        place = None if options.output is None else Path(options.output)
        given = required_model(options)
        with _progress():
            made = first_schedule(
                given.model,
                given.example(),
                target=options.target,
                technique=options.technique,
                epochs=options.epochs,
                evaluate=_evaluation(options, given),
                levels=options.levels,
                seconds=options.time_budget,
                processes=options.processes,
                seed=options.seed,
                model_name=given.name,
            )
        if place is not None:
            made.save(place, overwrite=options.force)
        if options.json:
            print_json(made.as_dict())
        elif place is None:
            print_text(made.text)
            say(str(made))
        else:
            print_result(f"{made}\n{_written(made, options)}")
        return 0


def _evaluation(options: argparse.Namespace, given: GivenModel) -> Evaluation | OwnEvaluation | None:
    """What measures the model; None where the user named no data and none is at hand."""
    named = options.evaluate or options.loaders
    if named is None and given.dataset is None:
        return None
    try:
        return evaluation(options, given)
    except DatasetError as error:
        if named or options.dataset or options.data:
            raise
        say(f"measuring without data, as there is none: {error}")
        return None


def _written(made: FirstSchedule, options: argparse.Namespace) -> str:
    """Where it is, and what to do next."""
    model = f"--model {options.model}" if options.model else f"--arch {options.arch}"
    if options.input_shape:
        model += f" --input-shape {','.join(map(str, options.input_shape))}"
    elif options.example or options.loaders:
        model += f" --example {options.example or options.loaders}"
    return "\n".join(
        [
            f"wrote {options.output}; it loads without a problem. Next:",
            f"  distiller-ng plan {options.output} {model} --epochs {made.epochs}",
            "  and train with it: the loop is at the top of the file",
        ]
    )


@contextmanager
def _progress() -> Iterator[None]:
    """What takes time, to standard error."""
    logger = logging.getLogger("distiller_ng.automatic")
    handler, level = logging.StreamHandler(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
