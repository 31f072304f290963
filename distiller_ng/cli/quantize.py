"""``distiller-ng quantize``: post-training quantization, written for a runtime (layer 5)."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

from torch import nn

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
from distiller_ng.errors import ArgumentError
from distiller_ng.export import EXPORTERS, ExportReport, export_model
from distiller_ng.export.automatic import quantize
from distiller_ng.graph.inputs import ExampleInputs
from distiller_ng.ops.scores import Scores
from distiller_ng.quantization.base import quantization_of
from distiller_ng.quantization.calibration_batches import CalibrationBatches
from distiller_ng.quantization.exporters import check_exporter

__all__ = ["QuantizeCommand"]

_CALIBRATED = ("onnx", "openvino", "torchao")  # runtimes whose kernels need rounded activations
#: Options that choose grids, and what they are when nobody gave them.
_CHOICES = {
    **{"bits_weights": 8, "bits_activations": 8, "weights_only": False, "effort": "normal"},
    **{"min_sqnr": None, "min_agreement": None},
}


@COMMANDS.register("quantize")
class QuantizeCommand(Command):
    """Calibrate, quantize, and write the model for a runtime; what was quantized in training keeps its grids.

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
        batches = calibration_batches(options, given)
        was_trained = quantization_of(given.model) is not None
        done = (_as_trained if was_trained else _after_training)(given.model, batches, options)
        accuracy = None
        if measure is not None and before is not None:
            accuracy = {"model": _named(before), "file": _named(measure(done.report.model))}
        content = {**done.facts, "export": report_data(done.report), "accuracy": accuracy}
        if folder is not None:
            keep_quantization(folder, content)
        if options.json:
            print_json(content)
        else:
            print_result(f"{done.summary}\n\n{done.report}")
            if accuracy is not None:
                first, last = (accuracy[which]["top1"] for which in ("model", "file"))
                print_result(f"top-1 {first:.2f} % -> {last:.2f} %, the file in its runtime")
        return 0


class _Done(NamedTuple):
    """What was written, what is told about how, and the same as data."""

    report: ExportReport
    summary: str
    facts: dict[str, Any]


def _after_training(model: nn.Module, batches: Iterable[Any], options: argparse.Namespace) -> _Done:
    quantized = quantize(
        model,
        batches,
        bits_weights=options.bits_weights,
        bits_activations=None if options.weights_only else options.bits_activations,
        effort=options.effort,
        samples=options.samples,
        min_sqnr=options.min_sqnr,
        min_agreement=options.min_agreement,
    )
    report = quantized.convert(options.to, options.output)
    steps = {"sqnr_db": quantized.sqnr_db, "agreement": quantized.agreement, "steps": list(quantized.steps)}
    return _Done(report, quantized.summary(), {**steps, "layers": quantized.layers.records()})


def _as_trained(model: nn.Module, batches: Iterable[Any], options: argparse.Namespace) -> _Done:
    """A model that a schedule quantized keeps its grids; activations that have none get theirs from the data.

    Raises :class:`ArgumentError` for options that would choose other grids.
    """
    for name, usual in _CHOICES.items():
        if getattr(options, name) != usual:
            raise ArgumentError(
                f"--{name.replace('_', '-')} does not go with this checkpoint: it was quantized in training, and its "
                "own bits are kept. Leave the option out, or give a checkpoint of the floating point model"
            )
    data = CalibrationBatches.of(batches, model, limit=options.samples)
    first = data[0]
    extra = {"calibration_data": data} if options.to in _CALIBRATED else {}
    report = export_model(model, options.to, ExampleInputs(first.args, first.kwargs), options.output, **extra)
    how = "quantized in training: its own scales are kept"
    if extra:
        how += ", activations that had none are calibrated"
    return _Done(report, how, {"sqnr_db": None, "agreement": None, "steps": [how], "layers": report.table().records()})


def _named(scores: Scores) -> dict[str, float]:
    return dict(zip(("top1", "top5", "loss"), scores, strict=True))
