"""``distiller-ng quantize``: post-training quantization, written for a runtime (layer 5)."""

from __future__ import annotations

import argparse
from typing import ClassVar

from distiller_ng.cli._data import (
    add_data_arguments,
    add_evaluate_argument,
    calibration_batches,
    evaluation,
)
from distiller_ng.cli._models import add_model_arguments, required_model
from distiller_ng.cli._numbers import whole
from distiller_ng.cli._places import check_file_place
from distiller_ng.cli._printing import add_json_argument, print_json, print_result
from distiller_ng.cli._run_dir import add_run_argument, given_run, keep_quantization
from distiller_ng.cli.base import COMMANDS, Command
from distiller_ng.cli.export import report_data
from distiller_ng.export import EXPORTERS
from distiller_ng.export.automatic import quantize
from distiller_ng.ops.scores import Scores
from distiller_ng.quantization.exporters import check_exporter

__all__ = ["QuantizeCommand"]


@COMMANDS.register("quantize")
class QuantizeCommand(Command):
    """Calibrate, quantize, and write the model for a runtime.

    ``distiller-ng quantize --arch resnet20_cifar --checkpoint best.pth.tar --to onnx -o int8.onnx``
    """

    help: ClassVar[str] = "quantize a trained model without training and write it for a runtime"
    example: ClassVar[str] = (
        "distiller-ng quantize --model mynet.py:MyNet --checkpoint net.pt --loader mydata.py:batches -o int8.onnx"
    )

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """``quantize model [--to TARGET] -o PATH [--bits-weights N] [--bits-activations N] [--effort E] [--json]``."""
        parser.add_argument("--to", default="onnx", choices=EXPORTERS.names(), help="the runtime (default: onnx)")
        parser.add_argument("-o", "--output", required=True, metavar="PATH", help="the file to write")
        parser.add_argument(
            "--loader",
            metavar="PKG.MOD:FUNCTION",
            help="batches to calibrate with: your function that returns them (else those of --loaders or --dataset)",
        )
        parser.add_argument("--bits-weights", type=whole(2), default=8, metavar="N", help="2 to 8 (default: 8)")
        parser.add_argument("--bits-activations", type=whole(2), default=8, metavar="N", help="default: 8")
        parser.add_argument("--weights-only", action="store_true", help="activations stay in floating point")
        parser.add_argument("--effort", choices=("fast", "normal", "high"), default="normal", help="default: normal")
        add_evaluate_argument(parser, ", of the model and of the file in its runtime")
        parser.add_argument("--samples", type=whole(1), default=512, metavar="N", help="to calibrate with (512)")
        parser.add_argument("--min-sqnr", type=float, metavar="DB", help="more bits for layers until this is met")
        parser.add_argument("--min-agreement", type=float, metavar="F", help="the same for equal top-1 decisions, 0..1")
        add_run_argument(parser)
        add_json_argument(parser)
        add_model_arguments(parser)
        add_data_arguments(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Quantize, write, and say what was done."""
        check_exporter(options.to)
        check_file_place(options.output, "-o")
        folder = given_run(options)
        given = required_model(options)
        measure = None if options.evaluate is None else evaluation(options, given)
        before = None if measure is None else measure(given.model)  # what is wrong with it shows before the work
        quantized = quantize(
            given.model,
            calibration_batches(options, given),
            bits_weights=options.bits_weights,
            bits_activations=None if options.weights_only else options.bits_activations,
            effort=options.effort,
            samples=options.samples,
            min_sqnr=options.min_sqnr,
            min_agreement=options.min_agreement,
        )
        report = quantized.convert(options.to, options.output)
        accuracy = None
        if measure is not None and before is not None:
            accuracy = {"model": _named(before), "file": _named(measure(report.model))}
        steps = {"sqnr_db": quantized.sqnr_db, "agreement": quantized.agreement, "steps": list(quantized.steps)}
        layers = quantized.layers.records()
        content = {**steps, "layers": layers, "export": report_data(report), "accuracy": accuracy}
        if folder is not None:
            keep_quantization(folder, content)
        if options.json:
            print_json(content)
        else:
            print_result(f"{quantized.summary()}\n\n{report}")
            if accuracy is not None:
                first, last = (accuracy[which]["top1"] for which in ("model", "file"))
                print_result(f"top-1 {first:.2f} % -> {last:.2f} %, the file in its runtime")
        return 0


def _named(scores: Scores) -> dict[str, float]:
    return dict(zip(("top1", "top5", "loss"), scores, strict=True))
