"""``distiller-ng thin``: physically remove filters and channels (layer 5)."""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

from torch import nn

from distiller_ng.apputils.classifier_loops import test
from distiller_ng.apputils.thin_model import ThinnedModel, thin_model
from distiller_ng.checkpoint import save_checkpoint
from distiller_ng.cli._data import add_data_arguments
from distiller_ng.cli._loaders import required_loaders
from distiller_ng.cli._models import GivenModel, add_model_arguments, required_model
from distiller_ng.cli._numbers import fraction, whole
from distiller_ng.cli._places import check_file_place
from distiller_ng.cli._printing import add_json_argument, print_json, print_result
from distiller_ng.cli._task import add_loss_argument, log_to_stderr, named_loss
from distiller_ng.cli.base import COMMANDS, Command
from distiller_ng.errors import ArgumentError
from distiller_ng.graph.inputs import ExampleInputs
from distiller_ng.pruning.importance.base import IMPORTANCES
from distiller_ng.quantization.exporters import check_exporter, export_model

__all__ = ["ThinCommand"]


@COMMANDS.register("thin")
class ThinCommand(Command):
    """Remove what is zero, which changes no result, or the least important channels down to a budget.

    ``distiller-ng thin --arch digits_cnn --checkpoint best.pth.tar -o small.pth.tar``
    """

    help: ClassVar[str] = "remove zero filters and channels, or prune down to a budget; writes the smaller model"
    example: ClassVar[str] = (
        "distiller-ng thin --model mynet.py:MyNet --input-shape 1,3,32,32 --checkpoint best.pth.tar -o small.pth.tar\n"
        "  distiller-ng thin --arch resnet20_cifar --checkpoint best.pth.tar --macs 0.5 -o half.onnx"
    )

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """``thin model -o PATH [--macs F] [--parameters F] [--latency F] [--importance NAME] [--json]``."""
        parser.add_argument("-o", "--output", required=True, metavar="FILE", help="a checkpoint (.pth.tar), or .onnx")
        group = parser.add_argument_group("Budget", "what shall remain; without one only what is zero goes")
        group.add_argument("--macs", type=fraction, metavar="F", help="of the multiply-accumulates, e.g. 0.5")
        group.add_argument("--parameters", type=fraction, metavar="F", help="of the parameters")
        group.add_argument("--latency", type=fraction, metavar="F", help="of the time of a forward pass, measured here")
        group.add_argument("--latency-batch", type=whole(1), default=1, metavar="N", help="samples at once (1)")
        group.add_argument("--importance", choices=IMPORTANCES.names(), default="l1", help="which go first (l1)")
        group.add_argument("--round-to", type=whole(1), default=1, metavar="N", help="widths are multiples of it (1)")
        add_loss_argument(parser)
        add_json_argument(parser)
        add_model_arguments(parser)
        add_data_arguments(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Thin, write, compare."""
        path = _checked_output(options.output)
        given = required_model(options)
        budgets = {"macs": options.macs, "params": options.parameters, "latency": options.latency}
        target = {name: value for name, value in budgets.items() if value is not None}
        with log_to_stderr():
            inputs = given.example()
            result = thin_model(
                given.model,
                inputs,
                target=target,
                importance=options.importance,
                round_to=options.round_to,
                batch=options.latency_batch,
            )
            accuracy = _accuracy(options, given, result)
            _write(result.model, path, inputs)
        if options.json:
            figures = {"before": asdict(result.before), "after": asdict(result.after)}
            print_json({"path": str(path), **figures, "ratios": result.ratios(), **(accuracy or {"top1": None})})
            return 0
        lines = [str(result)]
        if accuracy is not None:
            (name, found), *_ = accuracy.items()
            unit, digits = (" %", 2) if name == "top1" else ("", 4)
            before, after = (f"{found[when]:.{digits}f}{unit}" for when in ("before", "after"))
            lines.append(f"{'top-1' if unit else name} {before} -> {after} on the test data")
        if result.after.parameters == result.before.parameters:
            lines.append("Nothing was removed: no filter or channel is zero. To prune to a budget: --macs 0.5")
        elif target:
            lines.append("The smaller model needs training again: distiller-ng train --checkpoint FILE")
        print_result("\n\n".join([*lines, str(path)]))
        return 0


def _checked_output(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.name.endswith((".pth.tar", ".onnx")):
        raise ArgumentError(f"-o {text}: write a checkpoint, NAME.pth.tar, or NAME.onnx")
    check_file_place(text, "-o")
    if path.suffix == ".onnx":
        check_exporter("onnx")
    return path


def _accuracy(
    options: argparse.Namespace, given: GivenModel, result: ThinnedModel
) -> dict[str, dict[str, float]] | None:
    """Top-1 of both in percent, or the loss of what is no classifier, where the command line names data."""
    if options.loaders is None and options.dataset is None:
        return None
    loader = required_loaders(options, given).test
    criterion = named_loss(options.loss) or nn.CrossEntropyLoss()
    models = {"before": given.model, "after": result.model}
    scores = {when: test(loader, model, criterion) for when, model in models.items()}
    has_top1 = not math.isnan(scores["before"][0])
    return {"top1" if has_top1 else "loss": {when: one[0 if has_top1 else 2] for when, one in scores.items()}}


def _write(model: nn.Module, path: Path, inputs: ExampleInputs) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".onnx"):
        export_model(model, "onnx", inputs, path)
        return
    arch = getattr(model, "arch", None)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = save_checkpoint(0, arch if isinstance(arch, str) else type(model).__name__, model, dir=folder)
        os.replace(written, path)
