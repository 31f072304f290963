"""One decision of the second-order pruners, against its bare linear algebra and the sequential recursions.

    python benchmarks/second_order.py [--quick] [--output benchmarks/results/second_order.json]

OBS: one million weights, 256 gradients, blocks of 50. Ours is the whole decision (Fisher blocks from gradients one by
one, inverse, scores, masks, moved weights); the floor is one bare batched product of all gradients and one batched
``torch.linalg.inv`` of the result (the same with Cholesky factors stands beside it); the recursion is the rank-1
update of all inverse blocks for each gradient, as published. M-FAC: 64 gradients, blocks of 2,000 and one block; its
floor is what no decision can do without: the gradients stored, ``G G^T`` by block, its inverse, that times ``G``, and a
product of the inverse Fisher matrix with a vector; its recursion that over gradients, as published. Gradients are
made before and not timed. Everything in one process, interleaved, CPU time of one thread. ``--quick`` takes a quarter
of the weights.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _measuring import Step, interleave, ratio, run_benchmark
from torch import Tensor, nn

from distiller_ng.core.context import StepContext
from distiller_ng.core.masks import MaskRegistry
from distiller_ng.core.position import TrainPosition
from distiller_ng.core.window import PolicyWindow
from distiller_ng.names import ParameterIndex
from distiller_ng.ops.fisher import GramFisher, WoodburyFisher, inverse_fisher
from distiller_ng.pruning import MFACPruner, OBSPruner
from distiller_ng.pruning._gradient_buffer import GradientBuffer

WIDTH, QUICK_WIDTH = 1000, 500
COUNT, BLOCK, DAMP = 256, 50, 1e-7
FEW, WIDE, MFAC_DAMP = 64, 2000, 1e-5
SCALES = (0.1, 0.01, 0.001)


class Prepared(GradientBuffer):
    """Gradients that are there already."""

    def __init__(self, gradients: Tensor) -> None:
        super().__init__()
        self._gradients = gradients

    @property
    def count(self) -> int:
        return len(self._gradients)

    def last(self, count: int) -> Iterator[Mapping[str, Tensor]]:
        width = round(self._gradients.shape[1] ** 0.5)
        for gradient in self._gradients[:count]:
            yield {"weight": gradient.view(width, width)}


def decision(pruner: OBSPruner | MFACPruner, gradients: Tensor) -> Callable[[], None]:
    """A whole decision on a linear layer, whose weights are put back."""
    width = round(gradients.shape[1] ** 0.5)
    model = nn.Linear(width, width, bias=False)
    start = model.weight.detach().clone()
    parameters = ParameterIndex(model)
    pruner.bind(parameters)
    pruner.buffer = Prepared(gradients)

    def decide() -> None:
        model.weight.data.copy_(start)
        window, position = PolicyWindow.from_range(0, 1, 1), TrainPosition(0)
        ctx = StepContext(
            model=model, parameters=parameters, masks=MaskRegistry(parameters), window=window, position=position
        )
        for group in pruner.groups(parameters):
            pruner.compute_masks(group, ctx)
        pruner.update_weights_(ctx)

    return decide


def gram(gradients: Tensor, block: int, damp: float) -> Tensor:
    """``damp I + G^T G / m`` by block in one product."""
    parts = gradients.view(len(gradients), -1, block)
    matrix = torch.bmm(parts.permute(1, 2, 0), parts.permute(1, 0, 2)).div_(len(gradients))
    matrix.diagonal(dim1=1, dim2=2).add_(damp)
    return matrix


def inverted(matrix: Tensor, *, by_cholesky: bool) -> Tensor:
    """Inverse blocks, 1,024 at a time, which is faster than all at once."""
    for part in matrix.split(1024):
        part.copy_(torch.cholesky_inverse(torch.linalg.cholesky(part)) if by_cholesky else torch.linalg.inv(part))
    return matrix


def rank_one(gradients: Tensor, block: int, damp: float) -> Tensor:
    """The published recursion: ``F^-1 -= (F^-1 g)(F^-1 g)^T / (m + g^T F^-1 g)`` for each gradient."""
    count, blocks = len(gradients), gradients.shape[1] // block
    inverse = (torch.eye(block) / damp).repeat(blocks, 1, 1)
    for gradient in gradients:
        column = gradient.view(blocks, block, 1)
        product = torch.bmm(inverse, column)
        scale = (count + torch.bmm(column.mT, product)).sqrt_()
        product /= scale
        inverse.baddbmm_(product, product.mT, alpha=-1)
    return inverse


def mfac_recursion(gradients: Tensor, block: int, damp: float) -> Tensor:
    """The recursion over gradients: ``v_i = F_{i-1}^-1 g_i``; returns the diagonal of the inverse."""
    count = len(gradients)
    parts = gradients.view(count, -1, block)
    made, norms = torch.zeros_like(parts), torch.zeros(count, parts.shape[1])
    for i in range(count):
        vector = parts[i] / damp
        for j in range(i):
            inner = (made[j] * parts[i]).sum(dim=1) / norms[j]
            vector = vector - inner.unsqueeze(1) * made[j]
        made[i] = vector
        norms[i] = count + (vector * parts[i]).sum(dim=1)
    return 1 / damp - (made.square() / norms.unsqueeze(2)).sum(dim=0)


def mfac_floor(gradients: Tensor, block: int, damp: float) -> Tensor:
    """The gradients stored, ``G G^T``, its inverse, that times ``G``, and ``F^-1`` times a vector."""
    stored = gradients.view(len(gradients), -1, block).permute(1, 0, 2).contiguous()
    matrix = torch.bmm(stored, stored.mT)
    matrix.diagonal(dim1=1, dim2=2).add_(len(gradients) * damp)
    made = torch.bmm(torch.linalg.inv(matrix), stored)
    vector = gradients[0].view(-1, block)
    parts = [v - rows.T @ (other @ v) for rows, other, v in zip(stored, made, vector, strict=True)]
    return torch.stack(parts) / damp


def once(step: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    begin = time.process_time()
    step()
    return time.process_time() - begin


def obs(width: int, seconds: float, rounds: int) -> dict[str, Any]:
    """Time of a decision."""
    gradients = 0.1 * torch.randn(COUNT, width**2, generator=torch.Generator().manual_seed(0))
    pruner = OBSPruner("p", sparsity=0.5, num_grads=COUNT, fisher_block_size=BLOCK, damp=DAMP)
    steps = {
        "ours": decision(pruner, gradients),
        "inv": lambda: inverted(gram(gradients, BLOCK, DAMP), by_cholesky=False),
        "cholesky": lambda: inverted(gram(gradients, BLOCK, DAMP), by_cholesky=True),
    }
    times = interleave(steps, seconds, rounds)
    recursion = once(lambda: rank_one(gradients, BLOCK, DAMP))
    ours = statistics.median(times["ours"])
    value, faster = ratio(times, "ours", "inv"), recursion / ours
    return {
        "metric": f"obs_decision/{width**2}_weights_{COUNT}_gradients_block_{BLOCK}",
        "value": round(value, 3),
        "unit": "ratio of CPU time to the bare product and batched inverse of all blocks",
        "peers": {
            "ours_s": round(ours, 3),
            "bare_product_and_inv_s": round(statistics.median(times["inv"]), 3),
            "bare_product_and_cholesky_inverse_s": round(statistics.median(times["cholesky"]), 3),
            "ratio_to_cholesky": round(ratio(times, "ours", "cholesky"), 3),
            "rank_1_recursion_s": round(recursion, 3),
            "times_faster_than_recursion": round(faster, 2),
        },
        "goal": "<= 1.25, and >= 5 times faster than the sequential rank-1 recursion",
        "met": value <= 1.25 and faster >= 5,
    }


def errors() -> Iterator[dict[str, Any]]:
    """Largest relative error of 40 inverse blocks against float64, at several scales of gradients."""
    size = 40 * BLOCK
    for name, count, block in (("obs", COUNT, BLOCK), ("mfac", FEW, size)):
        found, recursive = [], []
        for scale in SCALES:
            gradients = scale * torch.randn(count, size, generator=torch.Generator().manual_seed(1))
            exact = torch.linalg.inv(gram(gradients.double(), block, DAMP))
            form = GramFisher if count >= block else WoodburyFisher
            fisher = form(size, block, count, DAMP, torch.float32)
            for gradient in gradients:
                fisher.add(gradient)
            fisher.invert()
            columns = torch.eye(block).repeat(1, size // block)
            ours = torch.stack([fisher.multiply(column).view(-1, block) for column in columns], dim=2)
            found.append(_error(ours, exact))
            recursive.append(_error(rank_one(gradients, block, DAMP), exact))
        yield {
            "metric": f"{name}_error_of_inverse",
            "value": float(f"{max(found):.2e}"),
            "unit": f"relative Frobenius error against float64, damp {DAMP:g}, largest of gradient scales {SCALES}",
            "peers": {"rank_1_recursion_float32": float(f"{max(recursive):.2e}")},
            "goal": "< 1e-5",
            "met": max(found) < 1e-5,
        }


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def mfac(width: int, seconds: float, rounds: int) -> Iterator[dict[str, Any]]:
    """Time of a decision with blocks of 2,000 and without blocks."""
    gradients = 0.1 * torch.randn(FEW, width**2, generator=torch.Generator().manual_seed(0))
    for block in (WIDE, None):
        pruner = MFACPruner("p", sparsity=0.5, num_grads=FEW, fisher_block_size=block, damp=MFAC_DAMP)
        wide = block or width**2
        steps: dict[str, Step] = {
            "ours": decision(pruner, gradients),
            "floor": partial(mfac_floor, gradients, wide, MFAC_DAMP),  # type: ignore[dict-item]
        }
        times = interleave(steps, seconds, rounds)
        recursion = once(partial(mfac_recursion, gradients, wide, MFAC_DAMP))
        ours, value = statistics.median(times["ours"]), ratio(times, "ours", "floor")
        yield {
            "metric": f"mfac_decision/{width**2}_weights_{FEW}_gradients_block_{block or 'full'}",
            "value": round(value, 3),
            "unit": "ratio of CPU time to the floor",
            "peers": {
                "ours_s": round(ours, 3),
                "floor_s": round(statistics.median(times["floor"]), 3),
                "recursion_s": round(recursion, 3),
                "times_faster_than_recursion": round(recursion / ours, 2),
            },
            "goal": "<= 1.25",
            "met": value <= 1.25,
        }


def memory(size: int) -> Iterator[dict[str, Any]]:
    """Peak memory of the Fisher matrix itself over the smaller of its two forms."""
    for count, block in ((FEW, WIDE), (COUNT, BLOCK)):
        least = size * min(count, block) * 4
        value = _peak(size, count, block) / least
        yield {
            "metric": f"fisher_memory/{size}_weights_{count}_gradients_block_{block}",
            "value": round(value, 3),
            "unit": "peak resident memory over min(products, gradients) in float32",
            "peers": {"min_products_gradients_MB": round(least / 1e6)},
            "goal": "< 1.5",
            "met": value < 1.5,
        }


def _peak(size: int, count: int, block: int) -> float:
    """Bytes by which the process grew at most while a Fisher matrix was made, inverted and used (Linux)."""
    gradient = torch.randn(size)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    fisher = inverse_fisher(size, count, damp=DAMP, block_size=block)
    for _ in range(count):
        fisher.add(gradient.normal_(std=0.1))
    fisher.invert()
    fisher.diagonal(), fisher.multiply(gradient)
    return _status("VmHWM") - before


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line.split()[1] for line in lines if line.startswith(name)))


def measured(quick: bool) -> Iterator[dict[str, Any]]:
    """Everything, one after the other."""
    width, seconds, rounds = (QUICK_WIDTH, 1.0, 3) if quick else (WIDTH, 60.0, 7)
    yield obs(width, seconds, rounds)
    yield from mfac(width, seconds, rounds)
    yield from errors()
    yield from memory(width**2)


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__, measured))
