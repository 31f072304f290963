"""``distiller-ng benchmark``: how fast, how large (layer 5)."""

from __future__ import annotations

import argparse
import json
import zipfile
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from distiller_ng.apputils import classification_dataset_str_from_arch
from distiller_ng.cli._data import Evaluation, OwnEvaluation, add_data_arguments, add_evaluate_argument, evaluation
from distiller_ng.cli._examples import NEEDS_EXAMPLE, of_shape, own_example
from distiller_ng.cli._models import GivenModel, add_model_arguments, given_model
from distiller_ng.cli._numbers import above_zero, whole
from distiller_ng.cli._printing import add_json_argument, print_json, print_result
from distiller_ng.cli._run_dir import add_run_argument, given_run, keep_benchmark
from distiller_ng.cli.base import COMMANDS, Command
from distiller_ng.errors import ArgumentError, DistillerError
from distiller_ng.export import benchmark_model
from distiller_ng.export.benchmarking_runtimes import loaded
from distiller_ng.graph.inputs import ExampleInputs

__all__ = ["BenchmarkCommand"]


@COMMANDS.register("benchmark")
class BenchmarkCommand(Command):
    """Measure files side by side in their runtimes; with a model, against it.

    ``distiller-ng benchmark fp32.onnx int8.onnx --input-shape 1,3,32,32``
    """

    help: ClassVar[str] = "measure models side by side: latency, throughput, file size, memory"
    example: ClassVar[str] = "distiller-ng benchmark fp32.onnx int8.onnx --input-shape 1,3,32,32 --batches 1 64"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """``benchmark FILE... [model] [--batches N...] [--threads N] [--seconds S] [--no-memory]
        [--evaluate FUNCTION | --top1] [--run RUN_DIR] [--json]``."""
        parser.add_argument("files", metavar="FILE", nargs="*", help=".onnx, .xml (OpenVINO) or .pt2 (torchao)")
        parser.add_argument(
            "--batches", type=whole(1), nargs="+", default=[1, 128], metavar="N", help="(default: 1 128)"
        )
        parser.add_argument("--threads", type=whole(1), default=1, metavar="N", help="threads (default: 1)")
        parser.add_argument("--seconds", type=above_zero, default=2.0, metavar="S", help="for each batch size (2)")
        parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="default: wall")
        parser.add_argument("--no-memory", action="store_true", help="do not measure memory: no processes are started")
        add_evaluate_argument(parser, ", for each of them")
        parser.add_argument("--top1", action="store_true", help="top-1 of each on the test images of --dataset")
        add_run_argument(parser)
        add_json_argument(parser)
        add_model_arguments(parser)
        add_data_arguments(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Measure and print; the first one is what the others are compared with."""
        folder = given_run(options)
        measure = _measure(options)
        given = given_model(options)
        models: dict[str, Any] = {} if given is None else {given.name: given.model}
        for file in options.files:
            name = Path(file).name
            models[str(file) if name in models else name] = file
        if not models:
            raise ArgumentError("there is nothing to measure: give files (.onnx, .xml, .pt2), or a model")
        example = given.example() if given is not None else _of_files(options)
        for file in options.files:
            _check_file(Path(file).expanduser(), options.threads)
        result = benchmark_model(
            models,
            example,
            batches=options.batches,
            threads=options.threads,
            seconds=options.seconds,
            clock=options.clock,
            memory=not options.no_memory,
        )
        content = json.loads(result.to_json())
        if measure is not None:
            content["top1"] = {name: measure(_running(one, options))[0] for name, one in models.items()}
        if options.json:
            print_json(content)
        else:
            print_result(result)
            for name, value in content.get("top1", {}).items():
                print_result(f"top-1 {value:6.2f} %  {name}")
        if folder is not None:
            path = keep_benchmark(folder, content)
            if not options.json:
                print_result(f"kept in {path}")
        return 0


def _measure(options: argparse.Namespace) -> Evaluation | OwnEvaluation | None:
    """What measures top-1, if it is wanted: the user's function, or a data set, which needs no model then."""
    if options.evaluate is None and not options.top1:
        return None
    dataset = options.dataset
    if options.model is None and options.arch is None:
        options.dataset = None
    elif dataset is None and options.arch is not None:
        dataset = classification_dataset_str_from_arch(options.arch)
    return evaluation(options, GivenModel(nn.Identity(), "--top1", None, dataset))


def _of_files(options: argparse.Namespace) -> ExampleInputs:
    """What files are called with. Raises :class:`ArgumentError` where nothing says it."""
    if options.input_shape is not None and options.example is None:
        return of_shape(options.input_shape, nn.Identity())[0]
    found = own_example(options)
    if found is None:
        raise ArgumentError(NEEDS_EXAMPLE.replace("its input", "the models' input"))
    return found


def _running(model: Any, options: argparse.Namespace) -> Any:
    """A model as it is called: itself, or what a file runs in."""
    return model if isinstance(model, nn.Module) else loaded(Path(model).expanduser(), options.threads)


def _check_file(path: Path, threads: int) -> None:
    """Refuse a file that does not load, by its name; raises :class:`ArgumentError`."""
    if not path.is_file():
        raise ArgumentError(f"there is no file {str(path)!r}")
    if path.suffix == ".pt2":  # loading one compiles it, and torch logs a traceback for a damaged one
        if not zipfile.is_zipfile(path):
            raise ArgumentError(f"{path}: damaged, or no file of the torchao exporter")
        return
    try:
        loaded(path, threads)
    except (DistillerError, RuntimeError) as error:
        raise ArgumentError(f"{path}: {' '.join(str(error).split())}") from error
