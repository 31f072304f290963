"""What candidates do to single tensors, and which tensors of a model are stored (layer 4, above reports)."""

from __future__ import annotations

from torch import Tensor, nn

from distiller_ng.names import canonical_name
from distiller_ng.ops.linear_quantization import LinearQuantMode, QuantizationParameters, dequantize, quantize

__all__ = ["output_axes", "rounded", "stored_buffers"]


def rounded(weight: Tensor, bits: int, axis: int) -> Tensor:
    """A weight rounded to a symmetric grid, with one scale for each channel along ``axis`` (one in all for vectors)."""
    wide = weight.detach()
    wide = wide.float() if wide.element_size() < 4 else wide
    channels = axis if wide.dim() > 1 else None
    grid = QuantizationParameters.of_tensor(wide, bits, LinearQuantMode.SYMMETRIC_RESTRICTED, axis=channels)
    return dequantize(quantize(wide, grid), grid).to(weight.dtype)


def output_axes(model: nn.Module) -> dict[str, int]:
    """Weights whose output channels lie along another dimension than the first."""
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    modules = ((name, module) for name, module in model.named_modules() if isinstance(module, transposed))
    return {canonical_name(f"{name}.weight" if name else "weight"): 1 for name, module in modules if module.groups == 1}


def stored_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that are part of a state dict, by canonical name."""
    found: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                found[canonical_name(f"{prefix}.{name}" if prefix else name)] = buffer
    return found
