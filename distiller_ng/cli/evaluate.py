"""``distiller-ng evaluate``: accuracy and loss of a model, also quantized, also with early exits (layer 5)."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import ClassVar

from distiller_ng.apputils.classifier_exits import add_early_exit_arguments
from distiller_ng.apputils.image_classifier import ClassifierCompressor
from distiller_ng.cli._data import add_data_arguments
from distiller_ng.cli._models import add_model_arguments, required_model
from distiller_ng.cli._places import check_folder_place
from distiller_ng.cli._printing import add_json_argument, print_json, print_result
from distiller_ng.cli._task import add_loss_argument, application_arguments, checked_file, given_task, log_to_stderr
from distiller_ng.cli.base import COMMANDS, Command
from distiller_ng.quantization.ptq_arguments import add_post_train_quant_args

__all__ = ["EvaluateCommand"]


@COMMANDS.register("evaluate")
class EvaluateCommand(Command):
    """Measure on the test data; with ``--quantize-eval`` a quantized copy.

    ``distiller-ng evaluate --model mynet.py:MyNet --checkpoint best.pth.tar --loaders mydata.py:make_loaders``
    """

    help: ClassVar[str] = "measure a model on its test data: top-1, top-5, loss"
    example: ClassVar[str] = (
        "distiller-ng evaluate --model mynet.py:MyNet --checkpoint best.pth.tar --loaders mydata.py:make_loaders\n"
        "  distiller-ng evaluate --arch digits_cnn --checkpoint best.pth.tar --quantize-eval --qe-stats-file stats.yaml"
    )

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """``evaluate model data [--quantize-eval --qe-...] [--earlyexit_thresholds T...] [--out-dir DIR] [--json]``."""
        add_loss_argument(parser)
        parser.add_argument(
            "--confusion", dest="display_confusion", action="store_true", help="show which is taken for which"
        )
        parser.add_argument(
            "--out-dir", dest="output_dir", metavar="DIR", help="write a run folder there (default: nothing is written)"
        )
        parser.add_argument("--name", metavar="NAME", help="of the run folder")
        add_json_argument(parser)
        add_model_arguments(parser)
        add_data_arguments(parser)
        add_early_exit_arguments(parser)
        add_post_train_quant_args(parser, calibrate_and_evaluate=True)

    def run(self, options: argparse.Namespace) -> int:
        """Measure and print."""
        check_folder_place(options.output_dir, "--out-dir")
        if options.qe_stats_file:
            checked_file(options.qe_stats_file, "--qe-stats-file")
        given = required_model(options)
        with log_to_stderr():
            args = application_arguments(options, given)
            args.evaluate = True
            folder = None if options.output_dir is None else Path.cwd()
            app = ClassifierCompressor(args, folder, task=given_task(options, given))
            app.load_datasets()
            top1, top5, loss = app.evaluate()
        exits = None if app.exits is None else app.exits.statistics()
        if options.json:
            found = {"model": given.name, "checkpoint": options.checkpoint, "top1": top1, "top5": top5, "loss": loss}
            early = {} if exits is None else {"early_exit": exits.as_dict()}
            print_json({**found, "quantized": bool(options.quantize_eval), "folder": app.logdir, **early})
            return 0
        lines = [] if math.isnan(top1) else [f"top-1  {top1:6.2f} %", f"top-5  {top5:6.2f} %"]
        lines += [f"loss   {loss:8.4f}"]
        lines += [f"\n{exits}"] if exits is not None else []
        lines += [f"\nRun folder: {app.logdir}"] if app.logdir else []
        print_result("\n".join(lines))
        return 0
