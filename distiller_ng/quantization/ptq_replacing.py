"""Which wrapper stands for which module after post-training quantization (layer 2)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.modules.functional import FunctionModule
from distiller_ng.names import canonical_name
from distiller_ng.ops.modules import has_parts
from distiller_ng.quantization._weights import is_quantizable, why_not_quantizable
from distiller_ng.quantization.ptq_settings import ModuleQuantMode
from distiller_ng.quantization.q_utils import QBits
from distiller_ng.quantization.range_linear_eltwise import (
    RangeLinearQuantConcatWrapper,
    RangeLinearQuantEltwiseAddWrapper,
    RangeLinearQuantEltwiseMultWrapper,
    RangeLinearQuantMatmulWrapper,
)
from distiller_ng.quantization.range_linear_fake import (
    FPWrapper,
    RangeLinearEmbeddingWrapper,
    RangeLinearFakeQuantWrapper,
    precision_of,
)
from distiller_ng.quantization.range_linear_output import OutputGrid, is_called
from distiller_ng.quantization.range_linear_params import RangeLinearQuantParamLayerWrapper

__all__ = [
    "NO_STATISTICS",
    "WrapperFactory",
    "is_wrappable",
    "leaves_alone",
    "needs_no_statistics",
    "without_statistics",
]

_COMBINING = {
    "Concat": RangeLinearQuantConcatWrapper,
    "EltwiseAdd": RangeLinearQuantEltwiseAddWrapper,
    "EltwiseMult": RangeLinearQuantEltwiseMultWrapper,
}
#: Why a module stays in floating point that calibration did not see.
NO_STATISTICS = "no statistics: it did not run during calibration"
#: Attention masks add -10000 or the lowest number there is; no grid has room for scores besides these.
_MASKED = -5000.0
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_SETTINGS = (
    *("mode", "per_channel_wts", "clip_acts", "clip_n_stds", "clip_half_range", "scale_approx_mult_bits"),
    *("input_overrides", "inputs_quant_auto_fallback", "fp16", "fpq_module", "fake", "make_identity"),
    *("quantize_inputs", "save_fp_weights", "also_clip_weights"),
)


def is_wrappable(module: nn.Module) -> bool:
    """Whether a module computes on its own: no parts, no dropout, nothing whose weights another module uses."""
    return not (has_parts(module) or isinstance(module, (nn.Identity, *_DROPOUTS)) or why_not_quantizable(module))


def needs_no_statistics(module: nn.Module) -> bool:
    """Whether it can be quantized dynamically."""
    return is_quantizable(module) or is_called(module, "Matmul", "BatchMatmul")


def without_statistics(model: nn.Module) -> list[str]:
    """The modules that cannot be quantized dynamically."""
    return [
        name
        for name, module in model.named_modules()
        if name and is_wrappable(module) and not needs_no_statistics(module)
    ]


def leaves_alone(override: Any) -> bool:
    """Whether an override says that nothing of a module is quantized: null, or null for all bits."""
    if override is None:
        return True
    bits = ("bits_weights", "bits_activations")
    return isinstance(override, Mapping) and all(key in override and override[key] is None for key in bits)


@dataclass
class WrapperFactory:
    """A replacement function; called with a module, its name, the bits and an override's settings.

    ``defaults`` hold for settings an override does not give; ``stats`` are the calibration statistics, or None.
    ``fused`` maps the name of a ReLU to the producer that takes it over; ``constant`` names functions of parameters
    alone. ``left`` says of what stays in floating point why.
    """

    defaults: dict[str, Any]
    num_bits_accum: int
    stats: dict[str, dict[str, Any]] | None = None
    fused: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    constant: set[str] = field(default_factory=set)

    @property
    def __signature__(self) -> inspect.Signature:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        names = [inspect.Parameter(name, kind) for name in ("module", "name", "qbits_map")]
        settings = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in _SETTINGS]
        return inspect.Signature(names + settings)

    def __call__(self, module: nn.Module, name: str, qbits_map: Mapping[str, QBits], **settings: Any) -> nn.Module:
        """The wrapper, or the module itself where it stays."""
        try:
            # Who writes x + y has no part in how its operands are quantized.
            by_itself = {"inputs_quant_auto_fallback": True} if isinstance(module, FunctionModule) else {}
            return self._made(module, canonical_name(name), qbits_map[name], {**self.defaults, **by_itself, **settings})
        except ArgumentError as error:
            path = ("overrides", name, *error.argument) if settings and error.argument else error.argument
            raise ArgumentError(f"{name}: {error}", argument=path) from error

    def _made(self, module: nn.Module, name: str, bits: QBits, settings: dict[str, Any]) -> nn.Module:
        if name in self.fused:
            return nn.Identity()
        why = self._why_left(module, name)
        if why:
            self.left[name] = why
            return module
        fpq = precision_of(16 if settings.get("fp16") else settings["fpq_module"])
        if fpq is not None and not settings["fake"]:
            return FPWrapper(module, fpq)
        entry = self._entry(module, name, bits)
        if entry is None and self.stats is not None and bits.acts is not None and not isinstance(module, nn.Embedding):
            self.left[name] = NO_STATISTICS
            return module
        if name in self.fused.values():
            settings["clip_half_range"] = True
        wrapper = self._wrapper(module, bits, settings, entry, fpq)
        if name in self.fused.values() and isinstance(wrapper, OutputGrid):
            wrapper.fuses_relu = True
        return wrapper

    def _why_left(self, module: nn.Module, name: str) -> str:
        """Why a function stays as it is; empty for everything else."""
        if not isinstance(module, FunctionModule):
            return ""
        if name in self.constant:
            return "computed from parameters and constants alone"
        lowest = (self.stats or {}).get(name, {}).get("output", {}).get("min", 0.0)
        return f"values down to {lowest:g} look like a mask's" if lowest <= _MASKED else ""

    def _entry(self, module: nn.Module, name: str, bits: QBits) -> dict[str, Any] | None:
        entry = (self.stats or {}).get(name)
        return entry if entry and entry.get("output") else None

    def _wrapper(
        self, module: nn.Module, bits: QBits, settings: dict[str, Any], entry: dict[str, Any] | None, fpq: int | None
    ) -> nn.Module:
        mode = ModuleQuantMode.parse(settings["mode"])
        output = {name: settings[name] for name in ("clip_acts", "clip_n_stds", "clip_half_range")}
        output |= {"activation_stats": entry, "scale_approx_mult_bits": settings["scale_approx_mult_bits"]}
        inputs = {name: settings[name] for name in ("input_overrides", "inputs_quant_auto_fallback", "quantize_inputs")}
        as_fake = settings["fake"] or settings["make_identity"] or fpq is not None
        if not as_fake and is_quantizable(module) and bits.wts is not None:
            if isinstance(module, nn.Embedding):
                return RangeLinearEmbeddingWrapper(module, bits.wts, mode, None, settings["save_fp_weights"])
            weights = {name: settings[name] for name in ("per_channel_wts", "save_fp_weights", "also_clip_weights")}
            accum = self.num_bits_accum if bits.bias is None else bits.bias
            return RangeLinearQuantParamLayerWrapper(
                module, bits.acts, bits.wts, accum, mode, **output, **inputs, **weights
            )
        if bits.acts is None:
            return module
        if not as_fake:
            if is_called(module, "Matmul", "BatchMatmul") and getattr(module, "combines_tensors", True):
                return RangeLinearQuantMatmulWrapper(module, bits.acts, self.num_bits_accum, mode, **output, **inputs)
            for kind, wrapper in _COMBINING.items():
                if is_called(module, kind) and getattr(module, "combines_tensors", True):
                    return wrapper(module, bits.acts, mode, **output, **inputs)
        return RangeLinearFakeQuantWrapper(
            module, bits.acts, mode, fpq_module=fpq, make_identity=bool(settings["make_identity"]), **output
        )
