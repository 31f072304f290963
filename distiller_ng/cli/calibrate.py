"""``distiller-ng calibrate``: what activations look like, for quantization (layer 5)."""

from __future__ import annotations

import argparse
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from distiller_ng.apputils.classifier_batches import batches, run_model, to_device, unpacked
from distiller_ng.cli._data import add_data_arguments
from distiller_ng.cli._loaders import required_loaders
from distiller_ng.cli._models import add_model_arguments, required_model
from distiller_ng.cli._numbers import whole
from distiller_ng.cli._places import check_file_place
from distiller_ng.cli._printing import add_json_argument, print_json, print_result
from distiller_ng.cli._task import log_to_stderr
from distiller_ng.cli.base import COMMANDS, Command
from distiller_ng.data_loggers import collect_observed_ranges, collect_quant_stats
from distiller_ng.data_loggers.observers import OBSERVERS
from distiller_ng.data_loggers.quant_stats_file import save_quant_stats
from distiller_ng.ops.modules import model_device
from distiller_ng.ops.table import Table

__all__ = ["CalibrateCommand"]


@COMMANDS.register("calibrate")
class CalibrateCommand(Command):
    """Run the model on validation data and write the statistics of its activations, in Distiller's form.

    ``distiller-ng calibrate --arch digits_cnn --checkpoint best.pth.tar -o stats.yaml``
    """

    help: ClassVar[str] = "collect statistics of activations on validation data, for quantization"
    example: ClassVar[str] = (
        "distiller-ng calibrate --model mynet.py:MyNet --checkpoint best.pth.tar --loaders mydata.py:make_loaders "
        "-o stats.yaml\n  distiller-ng evaluate --model mynet.py:MyNet --checkpoint best.pth.tar "
        "--loaders mydata.py:make_loaders --quantize-eval --qe-stats-file stats.yaml"
    )

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """``calibrate model data -o PATH [--samples N] [--observer NAME] [--second-pass] [--json]``."""
        parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the file to write (.yaml)")
        parser.add_argument("--samples", type=whole(1), default=512, metavar="N", help="to look at (default: 512)")
        parser.add_argument(
            "--observer", choices=OBSERVERS.names(), help="choose ranges instead of taking minimum and maximum"
        )
        parser.add_argument(
            "--second-pass", action="store_true", help="go through the data again for an exact mean deviation"
        )
        add_json_argument(parser)
        add_model_arguments(parser)
        add_data_arguments(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Collect, write, and show the ranges."""
        check_file_place(options.output, "-o")
        given = required_model(options)
        seen = _Passes(required_loaders(options, given).valid, options.samples)
        with log_to_stderr():
            if options.observer:
                stats = collect_observed_ranges(given.model, seen, options.observer)
            else:
                stats = collect_quant_stats(given.model, seen, second_pass=options.second_pass)
        path = save_quant_stats(options.output, stats)
        rows = [(name, "output", entry["output"]) for name, entry in stats.items() if entry.get("output")]
        if options.json:
            ranges = {name: {"min": one["min"], "max": one["max"]} for name, _, one in rows}
            print_json({"path": str(path), "samples": seen.samples, "outputs": ranges})
            return 0
        cells = tuple((name, *(f"{one[key]:.4g}" if key in one else "" for key in _COLUMNS)) for name, _, one in rows)
        table = Table(f"Outputs, {seen.samples} samples", ("Module", *_COLUMNS), cells)
        print_result(f"{table}\n\n{path}")
        return 0


_COLUMNS = ("min", "max", "mean", "std")


class _Passes:
    """Runs a model on the first samples of a loader."""

    def __init__(self, loader: Any, limit: int) -> None:
        self.loader, self.limit, self.samples = loader, limit, 0

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> None:
        model.eval()
        self.samples = 0
        for batch in batches(self.loader, "validation"):
            inputs, target = unpacked(batch, "validation")
            left = self.limit - self.samples
            cut = _first(inputs, left)
            run_model(model, to_device(cut, model_device(model)), "validation")
            self.samples += min(left, len(target))
            if self.samples >= self.limit:
                return


def _first(inputs: Any, count: int) -> Any:
    def cut(one: Tensor) -> Tensor:
        return one[:count] if one.dim() else one

    return tree_map_only(Tensor, cut, inputs)
