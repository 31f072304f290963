"""Train and compress an image classifier, from the command line.

    python compress_classifier.py --arch digits_cnn --compress ../../schedules/agp_digits_cnn.yaml --epochs 24

prunes a small network while it trains on handwritten digits (they come with scikit-learn). README.md beside this file
has more commands and their measured results; ``--help`` lists all flags.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import parser as example_parser

from distiller_ng.apputils import save_checkpoint
from distiller_ng.apputils.classifier_greedy import greedy
from distiller_ng.apputils.classifier_thinning import thinnify
from distiller_ng.apputils.guard import run_guarded
from distiller_ng.apputils.image_classifier import (
    ClassifierCompressor,
    acts_histogram_collection,
    acts_quant_stats_collection,
    export_onnx,
    init_classifier_compression_arg_parser,
    sensitivity_analysis,
)
from distiller_ng.reports import model_summary

logger = logging.getLogger("distiller_ng.app")


class ClassifierCompressorSampleApp(ClassifierCompressor):
    """The application with the jobs that are done instead of training."""

    def handle_subapps(self) -> bool:
        """Do the job that a flag such as ``--thinnify``, ``--summary`` or ``--evaluate`` asks for, if one does."""
        if self.args.save_untrained_model and self.logdir:
            name = f"{self.args.name}_untrained" if self.args.name else "untrained"
            save_checkpoint(0, self.args.arch, self.model, name=name, dir=self.logdir)
        if self.args.thinnify:
            thinnify(self.model, self.compression_scheduler.masks, self.args, self.logdir)
            self.test()
            return True
        if self.args.greedy:
            self.model = greedy(self.model, self.criterion, self.loggers, self.args, self.logdir)
            self.test()
            return True
        if self.args.summary:
            for what in self.args.summary:
                model_summary(self.model, what, self.args.dataset, self.logdir or "")
            return True
        if self.args.export_onnx:
            self.compression_scheduler.mask_all_weights()
            export_onnx(self.model, self.args, self.logdir)
            return True
        if self.args.qe_calibration and not self.args.evaluate:
            acts_quant_stats_collection(
                self.model, self.criterion, self.loggers, self.args, save_to_file=True, logdir=self.logdir
            )
            return True
        if self.args.activation_histograms:
            acts_histogram_collection(self.model, self.criterion, self.loggers, self.args, self.logdir)
            return True
        if self.args.sensitivity:
            self.load_datasets()
            sensitivity_analysis(
                self.model, self.criterion, self.test_loader, [self.pylogger], self.args, logdir=self.logdir
            )
            return True
        if self.args.evaluate:
            self.evaluate()
            return True
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code (2 for a user's mistake)."""
    parser = init_classifier_compression_arg_parser(include_ptq_lapq_args=True)
    args = example_parser.add_cmdline_args(parser).parse_args(arguments)
    return run_guarded(lambda: run(args))


def run(args: argparse.Namespace) -> ClassifierCompressorSampleApp:
    """One run; the finished application, for scripts that look at it."""
    app = ClassifierCompressorSampleApp(args, script_dir=Path(__file__).parent)
    if not app.handle_subapps():
        app.run_training_loop()
        app.test()
        logger.info("\n%s\n\nRun folder: %s", app.report(), app.logdir)
    return app


if __name__ == "__main__":
    sys.exit(main())
