"""A wrapper whose output lies on a grid, for post-training quantization (layer 2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, CalibrationError, LifecycleError, did_you_mean
from distiller_ng.graph.functional_calls import Unseen
from distiller_ng.ops.linear_quantization import LinearQuantMode, check_bits
from distiller_ng.quantization.ptq_settings import (
    QuantSettings,
    TensorQuantMetadata,
)
from distiller_ng.quantization.quant_params import ClipMode

__all__ = ["OutputGrid", "compute_dtype", "described", "is_called", "range_of"]


def is_called(module: nn.Module, *names: str) -> bool:
    """Whether a module's class, or one it inherits from, has one of ``names``: Distiller's operation modules."""
    return any(kind.__name__ in names for kind in type(module).__mro__)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Integers of an accumulator fit into no half precision type: float32 for those."""
    return dtype if dtype is torch.float64 else torch.float32


class OutputGrid(Unseen):
    """A wrapper whose output lies on a grid, known from statistics (``preset_act_stats``) or found in each batch.

    Buffers: ``output_scale`` and ``output_zero_point`` ``[1]`` where the grid is known, ``force_readjust`` and
    ``num_forwards``. ``fuses_relu``: a ReLU behind the module was taken into it.
    """

    wrapped_module: nn.Module
    force_readjust: Tensor
    num_forwards: Tensor
    output_scale: Tensor
    output_zero_point: Tensor
    output_quant_settings: QuantSettings

    def __init__(
        self,
        wrapped_module: nn.Module,
        settings: QuantSettings,
        activation_stats: Mapping[str, Any] | None,
        scale_approx_mult_bits: int | None,
    ) -> None:
        super().__init__()
        if not isinstance(wrapped_module, nn.Module):
            raise ArgumentError(f"a wrapper needs a module, got {wrapped_module!r}", argument=("wrapped_module",))
        if activation_stats and not isinstance(activation_stats, Mapping):
            raise ArgumentError(f"activation_stats must be a mapping, got {activation_stats!r}")
        self.wrapped_module = wrapped_module
        self.output_quant_settings = settings
        self.scale_approx_mult_bits = scale_approx_mult_bits
        if scale_approx_mult_bits is not None:
            check_bits(scale_approx_mult_bits, argument="scale_approx_mult_bits")
        self.fuses_relu = False
        self.preset_act_stats = bool(activation_stats) and settings.num_bits is not None
        self.register_buffer("num_forwards", torch.zeros(1, dtype=torch.long))
        self.register_buffer("force_readjust", torch.tensor(False))
        if settings.num_bits is not None:
            self.acts_min_q_val, self.acts_max_q_val = settings.q_range
        if activation_stats and settings.num_bits is not None:
            if not activation_stats.get("output"):
                raise CalibrationError("the activation statistics have no entry 'output'")
            scale, zero_point = settings.of_stats(activation_stats["output"], scale_approx_mult_bits)
            self.register_buffer("output_scale", scale)
            self.register_buffer("output_zero_point", zero_point)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the wrapped module: models ask their layers for sizes and dtypes."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            wrapped = self.__dict__.get("_modules", {}).get("wrapped_module")
            if wrapped is None or name.startswith("_"):
                raise
            return getattr(wrapped, name)

    def check_eval(self) -> None:
        """Raise :class:`LifecycleError` (a ``RuntimeError``) in training mode."""
        if self.training:
            raise LifecycleError(f"{type(self).__name__} can only be used in eval mode: call model.eval()")

    def output_grid(self, values: Tensor) -> TensorQuantMetadata:
        """The grid of the output: the known one, or that of ``values`` (the output in floating point)."""
        if self.preset_act_stats:
            return self.output_quant_settings.metadata(self.output_scale, self.output_zero_point)
        settings = self.output_quant_settings
        return settings.metadata(*settings.of_tensor(values, self.scale_approx_mult_bits))

    # -- searching for better parameters ------------------------------------------------------------------------------

    def named_linear_quant_params(self, filter: bool = False) -> Iterator[tuple[str, Tensor]]:
        """``(name, tensor)`` of every scale and zero point of this module; ``filter`` leaves out those that are
        always 0 (symmetric modes).
        """
        if self.preset_act_stats:
            yield "output_scale", self.output_scale
            if not (filter and self.output_quant_settings.quant_mode.is_symmetric):
                yield "output_zero_point", self.output_zero_point

    def named_clipping(self, filter: bool = False) -> Iterator[tuple[str, Tensor]]:
        """``("output_clipping", [low, high])`` and the like: the ranges that the scales and zero points stand for.

        With ``filter``, ranges that search cannot move (per channel) are left out.
        """
        if self.preset_act_stats:
            yield "output_clipping", range_of(self.output_quant_settings, self.output_scale, self.output_zero_point)

    def set_linear_quant_param(self, name: str, value: float | Tensor) -> None:
        """Set a scale or zero point; weights follow in the next forward pass.

        Raises :class:`ArgumentError` for an unknown name, a value of another shape, and scales that are not positive.
        """
        known = dict(self.named_linear_quant_params())
        if name not in known:
            raise ArgumentError(f"{type(self).__name__} has no {name!r}. {did_you_mean(name, known)}")
        target = known[name]
        new = torch.as_tensor(value, dtype=target.dtype, device=target.device).detach()
        if new.numel() not in (1, target.numel()):
            raise ArgumentError(f"{name} has shape {tuple(target.shape)}, got {tuple(new.shape)}", argument=(name,))
        if not bool(new.isfinite().all()) or ("scale" in name and not bool((new > 0).all())):
            raise ArgumentError(f"{name} must be {'a positive' if 'scale' in name else 'a finite'} number, got {value}")
        target.copy_(new if new.numel() == 1 else new.reshape(target.shape))
        self.force_readjust.fill_(True)

    def set_clipping(self, name: str, low: float, high: float) -> None:
        """Set scale and zero point to cover ``low .. high``; ``name`` as :meth:`named_clipping` gives it."""
        known = [key for key, _ in self.named_clipping()]
        if name not in known:
            raise ArgumentError(f"{type(self).__name__} has no {name!r}. {did_you_mean(name, known)}")
        prefix, settings = self._clipped(name)
        plain = QuantSettings(settings.num_bits, settings.quant_mode)
        scale, zero_point = plain.of_stats({"min": float(low), "max": float(high)}, self.scale_approx_mult_bits)
        self.set_linear_quant_param(f"{prefix}_scale", scale)
        self.set_linear_quant_param(f"{prefix}_zero_point", zero_point)

    def _clipped(self, name: str) -> tuple[str, QuantSettings]:
        return "output", self.output_quant_settings

    def extra_repr(self) -> str:
        """Settings, for the printed model."""
        text = described("acts", self.output_quant_settings)
        if self.preset_act_stats:
            text += (
                f", output_scale={self.output_scale.item():.4f}, output_zero_point={self.output_zero_point.item():g}"
            )
        return text + (", fuses_relu=True" if self.fuses_relu else "")


def range_of(settings: QuantSettings, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``[low, high]`` of the values a grid covers."""
    low, high = settings.q_range
    if settings.quant_mode is LinearQuantMode.SYMMETRIC:
        low, high = -(2**settings.bits - 1) / 2, (2**settings.bits - 1) / 2
    return torch.cat([((value + zero_point) / scale).reshape(-1)[:1] for value in (low, high)])


def described(what: str, settings: QuantSettings) -> str:
    """Settings as text, for the printed model."""
    clip = settings.clip_mode.name if isinstance(settings.clip_mode, ClipMode) else settings.clip_mode
    return f"num_bits_{what}={settings.num_bits}, mode_{what}={settings.quant_mode.name}, clip_{what}={clip}"
