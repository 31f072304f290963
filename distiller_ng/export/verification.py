"""Comparing what a runtime computes from a file with what the model computes (layer 4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.errors import ExportError
from distiller_ng.graph.inputs import ExampleInputs, flat_tensors
from distiller_ng.graph.trace import evaluating
from distiller_ng.names import unwrap
from distiller_ng.quantization.exporters import Agreement

__all__ = ["agreement_of", "check_agreement", "compare", "simulated_outputs"]


def compare(
    model: nn.Module,
    runtime: Callable[..., Any],
    inputs: ExampleInputs,
    *,
    steps: Sequence[float | None] = (),
    tolerance: float | None = None,
) -> Agreement:
    """How the outputs of ``runtime`` (called like the model) differ from the model's, over all outputs the worst.

    ``steps``: the step of each output's grid, None for floating point. ``tolerance`` is the largest accepted noise, the
    RMS of the difference over the RMS of the model's output. Raises :class:`ExportError` above it, and when the outputs
    are not alike in number and shape.
    """
    expected = simulated_outputs(model, inputs)
    got = flat_tensors(runtime(*inputs.args, **inputs.kwargs))
    shapes = [[tuple(one.shape) for one in outputs] for outputs in (expected, got)]
    if shapes[0] != shapes[1]:
        raise ExportError(f"the runtime returns shapes {shapes[1]}, the model {shapes[0]}")
    found = agreement_of(expected, got, steps)
    if tolerance is not None:
        check_agreement(found, tolerance)
    return found


def simulated_outputs(model: nn.Module, inputs: ExampleInputs) -> list[Tensor]:
    """What the model itself computes in evaluation mode; the model is left as it was."""
    plain = unwrap(model)
    rng = torch.get_rng_state()
    try:
        with torch.no_grad(), evaluating(plain):
            return [_plain(one) for one in flat_tensors(inputs.call(plain))]
    finally:
        torch.set_rng_state(rng)


def agreement_of(expected: Sequence[Tensor], got: Sequence[Tensor], steps: Sequence[float | None] = ()) -> Agreement:
    """The worst of all outputs: ``[1, 0]`` against ``[1, 0.1]`` differ by 0.1, a noise of 0.1, 20 dB."""
    largest, noise, in_steps, top1 = 0.0, 0.0, None, None
    for place, (one, other) in enumerate(zip(expected, got, strict=True)):
        one, other = _plain(one).double(), _plain(other).double()
        if not one.numel():
            continue
        same = (one == other) | (one.isnan() & other.isnan())
        difference = torch.where(same, 0.0, (one - other).abs()).nan_to_num(nan=math.inf)
        worst = float(difference.max())
        largest = max(largest, worst)
        noise = max(noise, _ratio(difference, one))
        if place < len(steps) and steps[place] is not None:
            in_steps = max(in_steps or 0.0, worst / float(steps[place] or 1.0))
        if top1 is None and one.dim() in (2, 3) and one.shape[-1] > 1:
            top1 = float((one.argmax(-1) == other.argmax(-1)).double().mean())
    decibels = math.inf if noise == 0 else -math.inf if math.isinf(noise) else -20 * math.log10(noise)
    samples = int(expected[0].shape[0]) if expected and expected[0].dim() else 1
    return Agreement(largest, noise, decibels, top1, in_steps, samples)


def check_agreement(found: Agreement, tolerance: float) -> None:
    """Raise :class:`ExportError` for more noise than ``tolerance``."""
    if found.noise > tolerance:
        raise ExportError(
            f"the file does not compute what the model computes, so it was not kept: noise {found.noise:.3g}, allowed "
            f"{tolerance:g} ({found}). On processors without VNNI instructions try reduce_range=True; use example "
            "inputs like those of calibration; or raise tolerance"
        )


def _ratio(difference: Tensor, signal: Tensor) -> float:
    error = float(difference.square().mean().sqrt())
    power = float(signal.nan_to_num(posinf=0.0, neginf=0.0).square().mean().sqrt())
    return 0.0 if error == 0 else math.inf if power == 0 else error / power


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().as_subclass(Tensor).cpu()
