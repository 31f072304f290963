"""Straight-through estimators: forward rounds, backward pretends it did not (layer 2).

Source: Y. Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation",
https://arxiv.org/abs/1308.3432.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["LinearQuantizeSTE", "mean_sign_ste", "round_ste", "sign_ste"]


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


def sign_ste(values: Tensor, clip: float = 1.0) -> Tensor:
    """``sign(values)`` with 1 at 0; the gradient passes where ``|values| <= clip`` (that of a clamp).

    Source: I. Hubara et al., "Binarized Neural Networks", https://arxiv.org/abs/1602.02830.

    >>> sign_ste(torch.tensor([-0.3, 0.0, 4.0]))
    tensor([-1.,  1.,  1.])
    """
    signs: Tensor = _SignSTE.apply(values, clip)  # type: ignore[no-untyped-call]
    return signs


def mean_sign_ste(values: Tensor) -> Tensor:
    """``sign(values) * mean(|values|)`` with a positive sign at 0; the gradient passes unchanged.

    Source: S. Zhou et al., "DoReFa-Net", https://arxiv.org/abs/1606.06160, equation 7.

    >>> mean_sign_ste(torch.tensor([-1.0, 0.0, 2.0]))
    tensor([-1.,  1.,  1.])
    """
    signs: Tensor = _MeanSignSTE.apply(values)  # type: ignore[no-untyped-call]
    return signs


class _SignSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, clip: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.clip = clip
        return _signs(values)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (values,) = ctx.saved_tensors
        return grads[0] * (values.abs() <= ctx.clip), None


class _MeanSignSTE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _signs(values) * values.abs().mean()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


def _signs(values: Tensor) -> Tensor:
    ones = torch.ones_like(values)
    return torch.where(values >= 0, ones, -ones)
