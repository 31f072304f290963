"""How much faster a candidate runs than the model it came from, timed in turn with it (layer 4)."""

from __future__ import annotations

import torch
from torch import nn

from distiller_ng.graph.inputs import ExampleInputs
from distiller_ng.graph.trace import evaluating
from distiller_ng.ops.timing import interleave, ratio

__all__ = ["latency_share"]

_SECONDS = 0.2
_LEAST_ROUNDS = 15


def latency_share(
    candidate: nn.Module, original: nn.Module, inputs: ExampleInputs, *, seconds: float = _SECONDS
) -> float:
    """Latency of one eager forward pass in evaluation mode, as a share of the original's.

    The median over rounds in which the two take turns, so that other load on the machine hits both. ``inputs`` decide
    the batch; ``seconds``: how long to measure the two.
    """

    def on_gpu() -> None:
        if torch.cuda.is_available() and any(p.is_cuda for p in original.parameters()):
            torch.cuda.synchronize()

    def step(model: nn.Module) -> None:
        inputs.call(model)
        on_gpu()

    with evaluating(candidate), evaluating(original), torch.no_grad():
        steps = {"candidate": lambda: step(candidate), "original": lambda: step(original)}
        times = interleave(steps, seconds, _LEAST_ROUNDS, clock="wall", warmups=3)
    return ratio(times, "candidate", "original")
