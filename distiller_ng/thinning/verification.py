"""Comparing what a model returns before and after (layer 2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from distiller_ng.errors import GraphError
from distiller_ng.graph.inputs import ExampleInputs, flat_tensors
from distiller_ng.graph.trace import evaluating
from distiller_ng.thinning.cutting import tensors_of
from distiller_ng.thinning.plan import Cut

__all__ = ["outputs_of", "relative_error", "tolerance_of", "zeroed_outputs"]

#: Largest relative error between a thinned model and the one with the same channels zeroed.
TOLERANCE = 1e-4


@torch.no_grad()
def outputs_of(model: nn.Module, inputs: ExampleInputs) -> list[Tensor]:
    """Every tensor the model returns on the inputs, in eval mode; modes and random state are left as they were."""
    rng = torch.get_rng_state()
    try:
        torch.manual_seed(0)
        with evaluating(model):
            return [tensor.detach().clone() for tensor in flat_tensors(inputs.call(model))]
    finally:
        torch.set_rng_state(rng)


def relative_error(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """max |got - expected| / max |expected|, the largest over all tensors; infinite for other shapes or new NaNs."""
    if len(got) != len(expected):
        return float("inf")
    worst = 0.0
    for a, b in zip(got, expected, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if a.numel() == 0 or not (a.is_floating_point() or a.is_complex()):
            worst = max(worst, 0.0 if torch.equal(a, b) else float("inf"))
            continue
        wide_a, wide_b = a.double().nan_to_num(), b.double().nan_to_num()
        if not torch.equal(a.isnan(), b.isnan()):
            return float("inf")
        scale = max(float(wide_b.abs().max()), 1e-6)  # below that an output is nothing but rounding
        worst = max(worst, float((wide_a - wide_b).abs().max()) / scale)
    return worst


def tolerance_of(model: nn.Module) -> float:
    """1e-4, or what the model's precision allows if that is more: 16 rounding steps."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return max([TOLERANCE, *(16 * torch.finfo(kind).eps for kind in kinds if kind not in (torch.float8_e4m3fn,))])


@torch.no_grad()
def zeroed_outputs(model: nn.Module, inputs: ExampleInputs, cuts: Iterable[Cut]) -> list[Tensor]:
    """What the model returns with every cut entry of its parameters at zero; the parameters are put back."""
    tensors: Mapping[str, Tensor] = tensors_of(model)
    saved: list[tuple[Tensor, Tensor]] = []
    try:
        for cut in cuts:
            tensor = tensors[cut.tensor]
            if isinstance(tensor, nn.Parameter):
                saved.append((tensor, tensor.data))
                index = torch.tensor(cut.removed, device=tensor.device)
                tensor.data = tensor.data.index_fill(cut.dim, index, 0)
        return outputs_of(model, inputs)
    finally:
        for tensor, data in reversed(saved):
            tensor.data = data


def must_run(model: nn.Module, inputs: ExampleInputs) -> list[Tensor]:
    """:func:`outputs_of`, with a typed error where the model does not run on the inputs at all."""
    try:
        return outputs_of(model, inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise GraphError(
            f"{type(model).__name__} does not run on the example inputs: {error}. Give them as the training loop calls "
            "the model"
        ) from error
