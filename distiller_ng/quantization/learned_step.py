"""LSQ: the step of the quantization is learned with the weights (layer 2).

Source: S. K. Esser et al., "Learned Step Size Quantization", ICLR 2020, https://arxiv.org/abs/1902.08153. With
``v = x / s``: ``y = round(clamp(v, Qn, Qp)) * s``. The gradient of ``x`` passes where ``Qn <= v <= Qp``; that of ``s``
is ``round(v) - v`` there and ``Qn`` or ``Qp`` outside, scaled by ``1 / sqrt(n * Qp)`` for ``n`` values that share the
step, so that steps and weights learn at the same pace.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.fake_quantize import fake_quantize_with
from distiller_ng.ops.linear_quantization import (
    LinearQuantMode,
    QuantizationParameters,
    along_axis,
    check_axis,
    check_bits,
    quantized_range,
    storage_dtype,
)
from distiller_ng.quantization._replicas import mean_of_replicas
from distiller_ng.quantization.ste import round_ste

__all__ = ["LSQActivation", "lsq_initial_step", "lsq_parameters", "lsq_quantize"]

_NEVER_NEGATIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Softmax, nn.Hardsigmoid, nn.Softplus)
_SMALLEST_STEP = 1e-12


def lsq_quantize(
    values: Tensor,
    step: Tensor,
    num_bits: int,
    *,
    signed: bool = True,
    axis: int | None = None,
    values_per_step: int | None = None,
    training: bool = True,
) -> Tensor:
    """``values`` quantized with a learned ``step`` (one value, or ``[C]`` along ``axis``), same shape and dtype.

    ``values_per_step`` is the ``n`` of the gradient scale; by default the values that share a step. Without
    ``training`` the result is the same, from the one operator that exporters understand.

    >>> lsq_quantize(torch.tensor([0.3, 9.0]), torch.tensor([0.25]), 3).tolist()
    [0.25, 0.75]
    """
    axis = check_axis(axis, values.dim())
    params = lsq_parameters(step, num_bits, signed=signed, axis=axis)
    if not training:
        return fake_quantize_with(values, params)
    shared = values_per_step or values.numel() // max(step.numel(), 1)
    pace = 1.0 / math.sqrt(max(shared, 1) * max(params.qmax, 1))
    # The value of the step with a scaled gradient; a step pushed below zero by the optimizer stays usable.
    slowed = step * pace + (step - step * pace).detach()
    width = along_axis(slowed.clamp(min=_SMALLEST_STEP), values.dim(), axis)
    wide = values if values.dtype == torch.float64 else values.float()
    place = (wide / width).clamp(params.qmin, params.qmax)
    return (round_ste(place) * width).to(values.dtype)


def lsq_parameters(
    step: Tensor, num_bits: int, *, signed: bool = True, axis: int | None = None
) -> QuantizationParameters:
    """The grid of a step: zero point 0; ``-2**(b-1) .. 2**(b-1) - 1`` when ``signed``, else ``0 .. 2**b - 1``."""
    mode = LinearQuantMode.SYMMETRIC if signed else LinearQuantMode.ASYMMETRIC_UNSIGNED
    qmin, qmax = quantized_range(check_bits(num_bits, low=2 if signed else 1), mode)
    scale = step.detach().clamp(min=_SMALLEST_STEP)
    zero_point = torch.zeros_like(scale, dtype=storage_dtype(num_bits, mode))
    return QuantizationParameters(scale, zero_point, qmin, qmax, axis)


def lsq_initial_step(values: Tensor, num_bits: int, *, signed: bool = True, axis: int | None = None) -> Tensor:
    """Where to start: ``2 * mean(|x|) / sqrt(Qp)``, ``[1]`` or ``[C]`` along ``axis``; 1 where all values are 0.

    For a mean magnitude of 0.5 and 4 bits signed (``Qp = 7``): 0.378.

    Raises :class:`ArgumentError` for an empty tensor and for values that are not finite.
    """
    if values.numel() == 0:
        raise ArgumentError(f"an empty tensor (shape {tuple(values.shape)}) has no step to start from")
    axis = check_axis(axis, values.dim())
    magnitudes = values.detach().abs().float()
    rows = magnitudes.reshape(1, -1) if axis is None else magnitudes.movedim(axis, 0).flatten(1)
    bits = check_bits(num_bits, low=2 if signed else 1)
    highest = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    step = 2 * rows.mean(dim=1) / math.sqrt(highest)
    if not bool(torch.isfinite(step).all()):
        raise ArgumentError("a step cannot start from values with NaN or infinity: did the training diverge?")
    return torch.where(step > _SMALLEST_STEP, step, torch.ones_like(step))


class LSQActivation(nn.Module):
    """Activations quantized with a learned step, after ``wrapped_module`` (None: of the input itself).

    ``signed`` is by default what the wrapped module implies: unsigned after ReLU, ReLU6, sigmoid, softmax. The step
    ``[1]`` is a parameter from the start and gets its value from the first training batch (by
    :func:`lsq_initial_step`, averaged over data-parallel replicas); until then activations pass unchanged. The gradient
    scale counts the values of one sample (dimension 0 is the batch).

    Raises :class:`ArgumentError` for wrong bits.
    """

    initialized: Tensor

    def __init__(self, wrapped_module: nn.Module | None, num_bits: int, *, signed: bool | None = None) -> None:
        super().__init__()
        self.wrapped_module = wrapped_module
        self.signed = not isinstance(wrapped_module, _NEVER_NEGATIVE) if signed is None else signed
        self.num_bits = check_bits(num_bits, low=2 if self.signed else 1)
        self.step = nn.Parameter(torch.ones(1))
        self.register_buffer("initialized", torch.zeros(1))
        self._ready = False  # a Python value beside the buffer, so that forward asks no device

    def forward(self, *input: Any, **kwargs: Any) -> Tensor:
        """The wrapped module's output, quantized."""
        values: Tensor = input[0] if self.wrapped_module is None else self.wrapped_module(*input, **kwargs)
        if self.training and not self._ready:
            self._start(values)
        if not self._ready:
            return values
        per_sample = values[0].numel() if values.dim() > 1 and values.shape[0] else values.numel()
        return lsq_quantize(
            values,
            self.step,
            self.num_bits,
            signed=self.signed,
            values_per_step=per_sample,
            training=self.training,
        )

    def quantization_parameters(self) -> QuantizationParameters:
        """Step, zero point and integer range, as exporters need them."""
        return lsq_parameters(self.step, self.num_bits, signed=self.signed)

    @torch.no_grad()
    def _start(self, values: Tensor) -> None:
        if values.numel():
            self.step.copy_(mean_of_replicas(lsq_initial_step(values, self.num_bits, signed=self.signed)))
            self.initialized.fill_(1)
            self._ready = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._ready = bool(self.initialized > 0)

    def train(self, mode: bool = True) -> LSQActivation:
        """Switch mode; a start made by a replica of DataParallel shows in the buffer alone."""
        self._ready = self._ready or (not self.initialized.is_meta and bool(self.initialized > 0))
        return super().train(mode)

    def extra_repr(self) -> str:
        """Bits and sign."""
        return f"num_bits={self.num_bits}, signed={self.signed}"
