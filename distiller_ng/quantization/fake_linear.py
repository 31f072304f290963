"""Fake quantization of activations by an exponential moving average of their range (layer 2).

Source: B. Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
https://arxiv.org/abs/1712.05877.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.fake_quantize import fake_quantize_with
from distiller_ng.ops.linear_quantization import (
    LinearQuantMode,
    QuantizationParameters,
    check_bits,
    quantized_range,
    range_bins,
    scale_and_zero_point,
    storage_dtype,
)
from distiller_ng.ops.snapshot import snapshot
from distiller_ng.quantization._precise_buffers import PreciseBuffers
from distiller_ng.quantization._replicas import largest_of_replicas
from distiller_ng.quantization.ste import round_ste

__all__ = ["FakeLinearQuantization", "FakeQuantizationWrapper"]


class FakeLinearQuantization(PreciseBuffers):
    """Quantize and dequantize activations over a range tracked in training.

    The averages of each batch's minimum and maximum are corrected for their start at 0:
    ``ema = ema * d + (1 - d) * x``, ``tracked = ema / (1 - d**t)``. Ranges update in training while :attr:`observing`;
    after that, and in evaluation, nothing changes and the module is one operator in an exported graph. All four modes
    mean what they say: a symmetric one has zero point 0. Until the first training batch activations pass unchanged.

    Batches ``[0, 1]`` then ``[0, 3]`` with ``ema_decay=0.5`` give a tracked maximum of ``(0.25 + 1.5) / 0.75 = 2.33``.

    Buffers, all ``[1]``: ``tracked_min``, ``tracked_max`` (and ``_biased``), ``iter_count``; ``scale`` and
    ``zero_point`` in Distiller's convention, ``q = round(scale * x - zero_point)``. ``ema_decay`` is a scalar. With
    ``dequantize=False`` the result is the integers. Batches with NaN or infinity (an overflow that a gradient scaler
    will skip) are not averaged; integer tensors pass unchanged.

    Raises :class:`ArgumentError` for wrong bits, mode or decay.
    """

    scale: Tensor
    zero_point: Tensor
    iter_count: Tensor
    tracked_min: Tensor
    tracked_max: Tensor
    tracked_min_biased: Tensor
    tracked_max_biased: Tensor
    ema_decay: Tensor
    step: Tensor
    offset: Tensor

    def __init__(
        self,
        num_bits: int = 8,
        mode: LinearQuantMode | str = LinearQuantMode.SYMMETRIC,
        ema_decay: float = 0.999,
        dequantize: bool = True,
        inplace: bool = False,
    ) -> None:
        super().__init__()
        self.num_bits = check_bits(num_bits)
        self.mode = LinearQuantMode.parse(mode)
        range_bins(self.num_bits, self.mode)  # refuses what no bits can represent
        if not 0 <= float(ema_decay) < 1:
            raise ArgumentError(f"ema_decay must be from 0 to below 1, got {ema_decay!r}", argument=("ema_decay",))
        self.dequantize = dequantize
        self.inplace = inplace  # Distiller's argument; the result never shares memory with the input
        self.observing = True
        self._seen = False  # a Python value beside iter_count, so that forward asks no device
        self.register_buffer("ema_decay", torch.tensor(float(ema_decay)))
        for name in ("tracked_min_biased", "tracked_min", "tracked_max_biased", "tracked_max", "iter_count"):
            self.register_buffer(name, torch.zeros(1))
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero_point", torch.zeros(1))
        # The same in the convention of ONNX; made from the tracked range again when a state is loaded.
        self.register_buffer("step", torch.ones(1), persistent=False)
        dtype = storage_dtype(self.num_bits, self.mode)
        self.register_buffer("offset", torch.zeros(1, dtype=dtype), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Same shape and dtype; integers in floating point without ``dequantize``."""
        if not input.is_floating_point():
            return input  # indices and masks are exact already
        if self.training and self.observing:
            self._observe(input)
        if not self._seen:
            return input
        params = self.quantization_parameters()
        output = fake_quantize_with(input, params)
        if self.dequantize:
            return output
        return round_ste(output / params.scale.to(output.dtype)) + params.zero_point.to(output.dtype)

    def quantization_parameters(self) -> QuantizationParameters:
        """Step, zero point and integer range, as exporters need them."""
        step, offset = self.step, self.offset
        if self.training and self.observing:
            # The next call changes them in place, and backward still needs these: a module may be used twice.
            step, offset = snapshot(step), snapshot(offset)
        return QuantizationParameters(step, offset, *quantized_range(self.num_bits, self.mode))

    def train(self, mode: bool = True) -> FakeLinearQuantization:
        """Switch mode; what replicas of DataParallel saw in training shows in the buffers alone."""
        self._seen = self._seen or (not self.iter_count.is_meta and bool(self.iter_count > 0))
        return super().train(mode)

    @torch.no_grad()
    def _observe(self, input: Tensor) -> None:
        """Average the range of a batch, and set scale and zero point."""
        if input.numel() == 0:
            return
        low, high = torch.aminmax(input.detach())
        # One reduction for both ends: the smallest is minus the largest of the negatives.
        high, negative = largest_of_replicas(torch.stack([high, -low])).to(self.tracked_max.dtype).unbind()
        usable = torch.isfinite(high) & torch.isfinite(negative)
        self.iter_count.add_(usable)
        correction = 1 - self.ema_decay**self.iter_count
        for biased, tracked, now in (
            (self.tracked_min_biased, self.tracked_min, -negative),
            (self.tracked_max_biased, self.tracked_max, high),
        ):
            biased.copy_(torch.where(usable, biased * self.ema_decay + (1 - self.ema_decay) * now, biased))
            tracked.copy_(torch.where(usable, biased / correction, tracked))
        self._set_grid()
        self._seen = self._seen or bool(usable)

    def _set_grid(self) -> None:
        """Step and zero point of the tracked range, in both conventions."""
        step, offset = scale_and_zero_point(self.tracked_min, self.tracked_max, self.num_bits, self.mode)
        self.step.copy_(step)
        self.offset.copy_(offset)
        self.scale.copy_(1 / step)
        self.zero_point.copy_(-offset)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._seen = bool(self.iter_count > 0)
        self._set_grid()

    def extra_repr(self) -> str:
        """Mode, bits and decay."""
        return f"mode={self.mode.name}, num_bits={self.num_bits}, ema_decay={float(self.ema_decay):.4f}"


class FakeQuantizationWrapper(nn.Module):
    """A module whose output is fake-quantized: ``wrapped_module``, then ``fake_q``.

    Arguments as in :class:`FakeLinearQuantization`. Raises :class:`ArgumentError` in ``forward`` when the wrapped
    module returns anything but a tensor.
    """

    def __init__(
        self, wrapped_module: nn.Module, num_bits: int, quant_mode: LinearQuantMode | str, ema_decay: float
    ) -> None:
        super().__init__()
        self.wrapped_module = wrapped_module
        inplace = bool(getattr(wrapped_module, "inplace", False))
        self.fake_q = FakeLinearQuantization(num_bits, quant_mode, ema_decay, dequantize=True, inplace=inplace)

    def forward(self, *input: Any, **kwargs: Any) -> Tensor:
        """The wrapped module's output, quantized."""
        output = self.wrapped_module(*input, **kwargs)
        if not isinstance(output, Tensor):
            inner, kind = type(self.wrapped_module).__name__, type(output).__name__
            raise ArgumentError(f"only a tensor can be quantized, but {inner} returns {kind}: leave it in float")
        quantized: Tensor = self.fake_q(output)
        return quantized
