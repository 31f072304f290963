"""Activations clipped to a fixed or learned value and quantized from 0 to there: DoReFa, WRPN, PACT (layer 2)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.fake_quantize import fake_quantize_with
from distiller_ng.ops.linear_quantization import LinearQuantMode, QuantizationParameters, check_bits, storage_dtype
from distiller_ng.quantization._precise_buffers import PreciseBuffers
from distiller_ng.quantization.ste import round_ste

__all__ = ["ClippedLinearQuantization", "LearnedClippedLinearQuantization"]


class _Clipped(PreciseBuffers, ABC):
    """``0 .. clip`` in ``2**num_bits - 1`` steps."""

    zero_point: Tensor

    def __init__(self, num_bits: int, dequantize: bool, inplace: bool) -> None:
        super().__init__()
        self.num_bits = check_bits(num_bits)
        self.dequantize = dequantize
        self.inplace = inplace
        # A buffer, so that it moves with the model and is a constant of exported graphs.
        zero_point = torch.zeros((), dtype=storage_dtype(self.num_bits, LinearQuantMode.ASYMMETRIC_UNSIGNED))
        self.register_buffer("zero_point", zero_point, persistent=False)

    @abstractmethod
    def _clip(self, input: Tensor) -> Tensor:
        """``input`` limited to ``0 .. clip``, with the gradients of the method."""

    @abstractmethod
    def _step(self) -> Tensor:
        """The width of one step, a scalar without autograd history: float32, or float64 in a model of that."""

    @property
    def levels(self) -> int:
        """The largest integer."""
        return int(2**self.num_bits - 1)

    def quantization_parameters(self) -> QuantizationParameters:
        """Step, zero point and integer range, as exporters need them."""
        return QuantizationParameters(self._step(), self.zero_point, 0, self.levels)

    def forward(self, input: Tensor) -> Tensor:
        """Same shape and dtype; integers (in floating point) without ``dequantize``."""
        params = self.quantization_parameters()
        if not self.dequantize:
            # Straight-through for the rounding; the clipping and the scaling are differentiated.
            return round_ste(self._clip(input) / params.scale.to(input.dtype))
        # Quantizing clips by itself, so the clipping is there for its gradient alone.
        clipped = self._clip(input) if self.training else input
        return fake_quantize_with(clipped, params)


class ClippedLinearQuantization(_Clipped):
    """Clamp to ``0 .. clip_val``, then round to ``2**num_bits - 1`` steps.

    Source: S. Zhou et al., "DoReFa-Net", https://arxiv.org/abs/1606.06160, section 2.5; A. Mishra et al., "WRPN",
    https://arxiv.org/abs/1709.01134 (``clip_val=1``). The gradient is that of the clamp. With 2 bits and a clip of 1,
    ``[-0.5, 0.4, 0.9]`` becomes ``[0, 1/3, 1]``.

    Raises :class:`ArgumentError` for a clip that is not positive and for wrong bits.
    """

    step: Tensor

    def __init__(self, num_bits: int, clip_val: float, dequantize: bool = True, inplace: bool = False) -> None:
        super().__init__(num_bits, dequantize, inplace)
        self.clip_val = _positive(clip_val, "clip_val")
        self.register_buffer("step", torch.tensor(self.clip_val / self.levels), persistent=False)

    def _clip(self, input: Tensor) -> Tensor:
        return input.clamp_(0, self.clip_val) if self.inplace else input.clamp(0, self.clip_val)

    def _step(self) -> Tensor:
        return self.step

    def extra_repr(self) -> str:
        """Bits and clip."""
        return f"num_bits={self.num_bits}, clip_val={self.clip_val:g}{', inplace' if self.inplace else ''}"


class LearnedClippedLinearQuantization(_Clipped):
    """PACT: like :class:`ClippedLinearQuantization`, with a clip that is learned.

    Source: J. Choi et al., "PACT: Parameterized Clipping Activation for Quantized Neural Networks",
    https://arxiv.org/abs/1805.06085. ``clip_val`` is a parameter ``[1]``; its gradient is the sum of the gradients of
    all clipped values, the input's gradient passes in ``0 < x < clip_val``. A large start (8) and weight decay on
    ``clip_val`` let it shrink to where it is needed.

    Raises :class:`ArgumentError` for a start that is not positive and for wrong bits.
    """

    def __init__(self, num_bits: int, init_act_clip_val: float, dequantize: bool = True, inplace: bool = False) -> None:
        super().__init__(num_bits, dequantize, inplace)
        self.clip_val = nn.Parameter(torch.tensor([_positive(init_act_clip_val, "init_act_clip_val")]))

    def _clip(self, input: Tensor) -> Tensor:
        rectified = nn.functional.relu(input, inplace=self.inplace)
        clip = self.clip_val.to(input.dtype)
        return torch.where(rectified < clip, rectified, clip)

    def _step(self) -> Tensor:
        # A clip driven to 0 or below by decay clips everything; its step must still be a number to divide by.
        clip = self.clip_val.detach().reshape(())
        clip = clip if clip.dtype == torch.float64 else clip.float()
        return clip.clamp(min=torch.finfo(torch.float32).tiny * 2**16) / self.levels

    def extra_repr(self) -> str:
        """Bits and the clip of now."""
        clip = float(self.clip_val.detach())
        return f"num_bits={self.num_bits}, clip_val={clip:g}{', inplace' if self.inplace else ''}"


def _positive(value: float, name: str) -> float:
    number = float(value)
    if not 0 < number < float("inf"):
        raise ArgumentError(f"{name} must be a number above 0, got {value!r}", argument=(name,))
    return number
