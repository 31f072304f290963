"""What makes a model faster, where: each technique in the runtimes that could gain by it, measured in one run.

    python benchmarks/what_speeds_up.py [--quick] [--networks mlp ...] [--output benchmarks/results/what_speeds_up.json]

ResNet-20 (32 x 32), a perceptron of 784, 1024, 512 and 10, a transformer block of width 256 on 16 tokens, at batch 1
and 64, one thread. Every variant of a network is called once in each round, in an order drawn anew; figures are medians
of the ratio to the dense float32 model within a round, run eagerly and run by ONNX Runtime, and of milliseconds of
process time. Weights are random: how fast a layer is does not depend on what it has learned. ``--quick`` measures the
perceptron unless ``--networks`` says otherwise. ``docs/what-speeds-up-where.md`` shows the results.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _measuring import interleave, machine, ratio
from _networks import Block
from torch import Tensor, nn

import distiller_ng
from distiller_ng.errors import DistillerError
from distiller_ng.export import convert_precision, export_model, quantize_dynamic, save_sparse, sparse_linear_
from distiller_ng.export.benchmarking_runtimes import as_subject
from distiller_ng.models import create_model
from distiller_ng.policies.low_rank import low_rank_

BATCHES = (1, 64)
SPARSITY, RANK_SHARE, MACS, WIDTHS = 0.95, 0.2, 0.5, 8
Made = tuple[Callable[[Tensor], Any], int]  # how it runs, and bytes of its file


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet20": (lambda: create_model(False, "cifar10", "resnet20_cifar"), (3, 32, 32)),
    "mlp": (perceptron, (784,)),
    "transformer": (lambda: Block(256, 4), (16, 256)),
}


# -- models ------------------------------------------------------------------------------------------------------------


def pruned(model: nn.Module, **how: Any) -> nn.Module:
    """A copy with every prunable weight pruned by magnitude."""
    small = copy.deepcopy(model)
    definition = {"class": "MagnitudePruner", "weights": "__ALL_PRUNABLE__", **how}
    document = {
        "pruners": {"p": definition},
        "policies": [{"pruner": {"instance_name": "p"}, "starting_epoch": 0, "ending_epoch": 1, "frequency": 1}],
    }
    distiller_ng.apply(small, document, on_unmatched="warn")
    return small


def two_of_four(model: nn.Module) -> nn.Module:
    """A copy with the two largest of every four weights of a row, where rows have fours."""
    small = copy.deepcopy(model)
    for module in small.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight[0].numel() % 4 == 0:
            weight = module.weight.detach()
            fours = weight.permute(0, *range(2, weight.dim()), 1).reshape(-1, 4)
            kept = fours.abs().topk(2, dim=1).indices
            shape = weight.permute(0, *range(2, weight.dim()), 1).shape
            mask = torch.zeros_like(fours).scatter_(1, kept, 1.0).reshape(shape)
            weight.mul_(mask.permute(0, weight.dim() - 1, *range(1, weight.dim() - 1)))
    return small


def thinned(model: nn.Module, x: Tensor, round_to: int = 1) -> nn.Module:
    """A copy with half of the multiply-accumulates: channels of least importance are removed."""
    small = copy.deepcopy(model)
    distiller_ng.prune_structures(small, x, target={"macs": MACS}, round_to=round_to)
    return small


def low_rank(model: nn.Module) -> nn.Module:
    """A copy whose linear layers are products of a fifth of their rows in rank."""
    small = copy.deepcopy(model)
    low_rank_(small, preserve_ratio=RANK_SHARE)
    return small


# -- runtimes ----------------------------------------------------------------------------------------------------------


def eager(model: nn.Module) -> Made:
    tensors = [*model.parameters(), *model.buffers()]
    return model.eval(), sum(t.numel() * t.element_size() for t in tensors)


def in_file(target: str, suffix: str, model: nn.Module, x: Tensor, path: Path) -> Made:
    file = path.with_suffix(suffix)
    export_model(model, target, x, file, tolerance=None)
    return opened(file)


def opened(file: Path) -> Made:
    subject = as_subject(file.name, file, 1)
    return subject.model, subject.file_bytes


def quantized(target: str, suffix: str, model: Any, x: Tensor, path: Path) -> Made:
    """A model of :func:`distiller_ng.quantize` in a runtime."""
    file = path.with_suffix(suffix)
    options = {"batch_sizes": BATCHES} if target == "torchao" else {}
    report = model.convert(target, file, dummy_input=x, tolerance=None, **options)
    return (report.model, file.stat().st_size) if target == "torchao" else opened(file)


def dynamic(model: nn.Module, x: Tensor, path: Path) -> Made:
    file = path.with_suffix(".onnx")
    quantize_dynamic(model, x, path=file, tolerance=None)
    return opened(file)


def sparse_rows(model: nn.Module, x: Tensor, path: Path) -> Made:
    """Linear layers in compressed rows, where that was measured to be faster, for each size of a batch."""
    copies: dict[int, nn.Module] = {}
    for batch in BATCHES:
        copies[batch] = copy.deepcopy(model).eval()
        sparse_linear_(copies[batch], x[:1].expand(batch, *x.shape[1:]).contiguous())
    return lambda inputs: copies[len(inputs)](inputs), bytes_of_sparse_file(model, path)


def bytes_of_sparse_file(model: nn.Module, path: Path) -> int:
    file = path.with_suffix(".safetensors")
    save_sparse(model, file)
    return file.stat().st_size


def variants(model: nn.Module, x: Tensor, folder: Path, quick: bool) -> dict[str, Callable[[], Made]]:
    """What is measured on one network; the two first are what the others are compared with."""
    onnx = partial(in_file, "onnx", ".onnx")
    zeros, small, round_small = pruned(model, sparsity=SPARSITY), thinned(model, x), thinned(model, x, WIDTHS)
    integers = distiller_ng.quantize(model, [x, x + 0.1], effort="fast")
    made: dict[str, Callable[[], Made]] = {
        "dense/eager": lambda: eager(model),
        "dense/onnxruntime": lambda: onnx(model, x, folder / "dense"),
        "unstructured/eager": lambda: (eager(zeros)[0], bytes_of_sparse_file(zeros, folder / "zeros")),
        "unstructured/onnxruntime": lambda: onnx(zeros, x, folder / "zeros"),
        "structured/eager": lambda: eager(small),
        "structured/onnxruntime": lambda: onnx(small, x, folder / "small"),
        "structured_8/onnxruntime": lambda: onnx(round_small, x, folder / "round"),
        "bf16/eager": lambda: eager(convert_precision(model, "bf16").model),
        "int8/onnxruntime": lambda: quantized("onnx", ".onnx", integers, x, folder / "int8"),
    }
    if sum(isinstance(module, nn.Linear) for module in model.modules()) > 1:
        product = low_rank(model)
        made |= {
            "unstructured/sparse_linear": lambda: sparse_rows(zeros, x, folder / "rows"),
            "low_rank/eager": lambda: eager(product),
            "low_rank/onnxruntime": lambda: onnx(product, x, folder / "product"),
            "dynamic_int8/onnxruntime": lambda: dynamic(model, x, folder / "dynamic"),
        }
    return made if quick else made | more_variants(model, round_small, integers, x, folder)


def more_variants(
    model: nn.Module, small: nn.Module, integers: Any, x: Tensor, folder: Path
) -> dict[str, Callable[[], Made]]:
    """What takes longer to make: patterns, combinations and other runtimes."""
    both = distiller_ng.quantize(small, [x, x + 0.1], effort="fast")
    return {
        "n_of_m/onnxruntime": lambda: in_file("onnx", ".onnx", two_of_four(model), x, folder / "fours"),
        "structured_8_int8/onnxruntime": lambda: quantized("onnx", ".onnx", both, x, folder / "small_int8"),
        "dense/openvino": lambda: in_file("openvino", ".xml", model, x, folder / "dense_ov"),
        "int8/openvino": lambda: quantized("openvino", ".xml", integers, x, folder / "int8_ov"),
        "int8/torchao": lambda: quantized("torchao", ".pt2", integers, x, folder / "int8_ao"),
    }


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(name: str, folder: Path, seconds: float, quick: bool) -> Iterator[dict[str, Any]]:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = build().eval()
    made: dict[str, Made] = {}
    for key, make in variants(model, torch.randn(4, *shape), folder, quick).items():
        try:
            made[key] = make()
        except (DistillerError, ImportError, RuntimeError) as error:
            yield line(name, key, {"fails": f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"})
    found: dict[str, dict[str, Any]] = {key: {"mb": round(size / 1e6, 4)} for key, (_, size) in made.items()}
    for batch in BATCHES:
        x = torch.randn(batch, *shape)
        with torch.no_grad():
            times = interleave({key: partial(run, x) for key, (run, _) in made.items()}, seconds)
        for key in made:
            found[key][f"batch_{batch}"] = {
                "ms": float(f"{1e3 * statistics.median(times[key]):.4g}"),
                "over_eager": round(ratio(times, "dense/eager", key), 2),
                "over_onnxruntime": round(ratio(times, "dense/onnxruntime", key), 2),
                "rounds": len(times[key]),
            }
    for key, value in found.items():
        yield line(name, key, value)


def line(network: str, key: str, value: dict[str, Any]) -> dict[str, Any]:
    technique, _, runtime = key.partition("/")
    return {
        "metric": f"speed.{network}.{technique}.{runtime}",
        "value": value,
        "unit": "ms; times as fast as dense float32; MB",
        "peers": {},
        "goal": "none: it tells what to expect",
    }


def main() -> int:
    """Print one JSON object a line; with ``--output`` write them, in place of earlier lines of the same networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 50 seconds: one network, fewer runtimes, noisier")
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), help="only these")
    parser.add_argument("--output", type=Path, help="also write all results, with the machine, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    names = arguments.networks or (["mlp"] if arguments.quick else list(NETWORKS))
    for name in names:
        lines = []
        with tempfile.TemporaryDirectory() as folder:
            for found in measure(name, Path(folder), 1.5 if arguments.quick else 10.0, arguments.quick):
                lines.append(found)
                print(json.dumps(found), flush=True)
        if arguments.output:
            write(arguments.output, name, lines)
    return 0


def write(path: Path, network: str, lines: list[dict[str, Any]]) -> None:
    """Networks are compared with themselves alone, so that they may be measured one after another."""
    known = json.loads(path.read_text())["results"] if path.exists() else []
    kept = [one for one in known if one["metric"].split(".")[1] != network]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "results": [*kept, *lines]}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
