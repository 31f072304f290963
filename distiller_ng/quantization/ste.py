"""Straight-through estimators: forward rounds, backward pretends it did not (layer 2).

Source: Y. Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation",
https://arxiv.org/abs/1308.3432.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["LinearQuantizeSTE", "round_ste"]


class LinearQuantizeSTE(torch.autograd.Function):
    """Quantize with Distiller's reciprocal scale, optionally back to real values; the gradient passes unchanged.

    ``LinearQuantizeSTE.apply(input, scale, zero_point, dequantize, inplace)``. Values outside the range are not
    clamped here: clamp first, and the clamp's gradient masks them. Scale and zero point get no gradient.

    >>> LinearQuantizeSTE.apply(torch.tensor([0.3, 0.7]), 2.0, 0.0, True, False)
    tensor([0.5000, 0.5000])
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, scale: float | Tensor, zero_point: float | Tensor, dequantize: bool, inplace: bool
    ) -> Tensor:
        """Round to the grid; with ``inplace`` in the memory of ``input``."""
        if inplace:
            ctx.mark_dirty(input)
            output = input.mul_(scale).sub_(zero_point).round_()
            return output.add_(zero_point).div_(scale) if dequantize else output
        output = torch.round(scale * input - zero_point)
        return (output + zero_point) / scale if dequantize else output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """The output's gradient for ``input``, nothing for the rest."""
        return grads[0], None, None, None, None


def round_ste(values: Tensor) -> Tensor:
    """``round(values)`` (half to even) with the gradient of the identity; plain tensor operations, so it compiles.

    >>> round_ste(torch.tensor([0.4, 1.5]))
    tensor([0., 2.])
    """
    return values + (torch.round(values) - values).detach()
