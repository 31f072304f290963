"""Quantization-aware training with linear quantization over observed ranges (layer 2)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distiller_ng.errors import ArgumentError, ScheduleWarning, TargetError
from distiller_ng.graph.module_flow import batch_norm_pairs
from distiller_ng.names import unwrap
from distiller_ng.ops.fake_quantize import fake_quantize_with
from distiller_ng.ops.linear_quantization import LinearQuantMode, QuantizationParameters, check_bits, range_bins
from distiller_ng.ops.modules import model_find_module
from distiller_ng.quantization._activations import set_bypass
from distiller_ng.quantization._configuration import mark
from distiller_ng.quantization._flows import INPUTS_QUANT, attach_inputs_quant_, count_inputs
from distiller_ng.quantization._folded_norm import fold_norm_
from distiller_ng.quantization._folding import check_foldable
from distiller_ng.quantization._plan import PlanRow
from distiller_ng.quantization._weights import ParamToQuantize, QuantizedLayer, channel_axis, quantize_flow_
from distiller_ng.quantization.activations import FakeLinearQuantization, FakeQuantizationWrapper
from distiller_ng.quantization.base import QUANTIZERS, Quantizer
from distiller_ng.quantization.q_utils import QBits
from distiller_ng.quantization.weight_functions import linear_weight_parameters

__all__ = ["QUANTIZED_ACTIVATIONS", "QuantAwareTrainRangeLinearQuantizer", "RangeLinearWeights"]

#: Modules whose outputs are quantized. Distiller quantizes those of ReLU alone.
QUANTIZED_ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU),
    *(nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardtanh),
)
logger = logging.getLogger(__name__)
_WIDEST = 24  # bits of a float32's significand: rounding to more changes nothing


@dataclass(frozen=True, slots=True)
class RangeLinearWeights:
    """The ``param_quantization_fn``: linear quantization over the parameter's range, per tensor or output channel.

    Notes the grid down in the buffers ``<parameter>_scale`` and ``<parameter>_zero_point``, in Distiller's convention.
    """

    mode: LinearQuantMode
    per_channel: bool

    def __call__(self, parameter: Tensor, meta: ParamToQuantize) -> Tensor:
        """The parameter on its grid; the gradient passes everywhere."""
        grid = self.grid(parameter, meta)
        if not torch.compiler.is_compiling():  # a compiled or exported graph has no use for notes
            self.store(grid, meta)
        return parameter if meta.num_bits > _WIDEST else fake_quantize_with(parameter, grid)

    def grid(self, parameter: Tensor, meta: ParamToQuantize) -> QuantizationParameters:
        """Step, zero point and integer range for the parameter as it is."""
        axis = channel_axis(meta.module, parameter) if self.per_channel else None
        return linear_weight_parameters(parameter, meta, self.mode, axis=axis)

    @staticmethod
    def store(grid: QuantizationParameters, meta: ParamToQuantize) -> None:
        """Write ``scale = 1 / step`` and ``zero_point`` (of ``q = round(scale * x - zero_point)``) into the buffers."""
        setattr(meta.module, f"{meta.q_attr_name}_scale", (1 / grid.scale).reshape(-1))
        setattr(meta.module, f"{meta.q_attr_name}_zero_point", -grid.zero_point.to(grid.scale.dtype).reshape(-1))


@QUANTIZERS.register("QuantAwareTrainRangeLinearQuantizer", injected=("model", "optimizer"))
class QuantAwareTrainRangeLinearQuantizer(Quantizer):
    """Training with fake quantization: weights over the range they have, activations over a moving average of theirs.

    Source: B. Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", https://arxiv.org/abs/1712.05877. ``q = clamp(round(x / step) + zero_point)`` and back; a symmetric mode
    has zero point 0. For 2 bits, asymmetric, and a range of ``-1 .. 2`` the levels are -1, 0, 1 and 2.

    ``mode``: ``SYMMETRIC``, ``SYMMETRIC_RESTRICTED``, ``ASYMMETRIC_UNSIGNED`` or ``ASYMMETRIC_SIGNED``, for both, or
    ``{activations: ASYMMETRIC_UNSIGNED, weights: SYMMETRIC_RESTRICTED}`` (what runs fastest as int8 on x86).
    ``ema_decay`` of the ranges; ``per_channel_wts``: a range for each output channel of a weight. ``quantize_inputs``:
    also quantize what goes into the model. ``num_bits_inputs``: bits of that, by default those of the activations.
    ``fold_bn``: what is quantized are weights with the batch norm behind their layer folded in, as they will be
    deployed (:class:`SimulatedFoldedBatchNorm`; which norm follows which layer is seen on the example inputs, or by
    tracing)::

        quantizers:
          linear_quantizer:
            class: QuantAwareTrainRangeLinearQuantizer
            bits_activations: 8
            bits_weights: 8
            mode: ASYMMETRIC_UNSIGNED
            ema_decay: 0.999
            per_channel_wts: true

    The outputs of activation modules are quantized (ReLU and its relatives, GELU, SiLU, Hardswish ...). In the state
    dict are, for each weight, ``weight_scale`` and ``weight_zero_point``, and the ranges, all in Distiller's names.
    """

    has_observers: ClassVar[bool] = True
    #: Modules whose outputs are quantized.
    output_types: ClassVar[tuple[type[nn.Module], ...]] = QUANTIZED_ACTIVATIONS

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        bits_activations: int | None = 32,
        bits_weights: int | None = 32,
        bits_bias: int | None = 32,
        overrides: Mapping[str, Mapping[str, Any] | None] | None = None,
        mode: LinearQuantMode | str | Mapping[str, Any] = LinearQuantMode.SYMMETRIC,
        ema_decay: float = 0.999,
        per_channel_wts: bool = False,
        quantize_inputs: bool = True,
        num_bits_inputs: int | None = None,
        fold_bn: bool = False,
    ) -> None:
        self.mode_activations, self.mode_weights = _modes(mode)
        super().__init__(
            model, optimizer, bits_activations, bits_weights, bits_bias, overrides, train_with_fp_copy=True
        )
        if isinstance(ema_decay, bool) or not 0 <= ema_decay < 1:
            raise ArgumentError(f"ema_decay must be from 0 to below 1, got {ema_decay!r}", argument=("ema_decay",))
        self.ema_decay, self.per_channel_wts, self.quantize_inputs = float(ema_decay), per_channel_wts, quantize_inputs
        if num_bits_inputs is not None:
            range_bins(check_bits(num_bits_inputs, argument="num_bits_inputs"), self.mode_activations)
        self.num_bits_inputs = bits_activations if num_bits_inputs is None else num_bits_inputs
        self.fold_bn = fold_bn
        self.param_quantization_fn = RangeLinearWeights(self.mode_weights, per_channel_wts)
        self.replacement_factory.update(dict.fromkeys(self.output_types, self._wrapped))

    def checked_bits(self, setting: str, bits: Any, argument: Any) -> int | None:
        """One bit is too few for a symmetric mode."""
        checked = super().checked_bits(setting, bits, argument)
        mode = self.mode_activations if setting == "bits_activations" else self.mode_weights
        if checked == 1 and mode.is_symmetric:
            raise ArgumentError(f"{setting}: 1 bit in mode {mode.name} leaves only 0: use 2 or more", argument=argument)
        return checked

    def extra_rows(self) -> list[PlanRow]:
        """The model's inputs."""
        if not self._quantizes_inputs:
            return []
        return [PlanRow("(inputs)", "", None, None, self.num_bits_inputs, "num_bits_inputs")]

    @property
    def _quantizes_inputs(self) -> bool:
        return self.quantize_inputs and self.num_bits_inputs is not None

    def _fake_quantization(self, bits: int) -> FakeLinearQuantization:
        return FakeLinearQuantization(bits, self.mode_activations, self.ema_decay)

    def _wrapped(self, module: nn.Module, name: str, qbits_map: Mapping[str, QBits]) -> nn.Module:
        bits = qbits_map[name].acts
        if bits is None or _keeps_its_name(module):
            return module
        return FakeQuantizationWrapper(module, bits, self.mode_activations, self.ema_decay)

    def _pre_prepare_model(self, dummy_input: Any) -> None:
        inner = unwrap(self.model)
        if self.fold_bn and "folded_norms" not in self.layout:
            self.layout["folded_norms"] = self._find_norms(inner, dummy_input)
        if not self._quantizes_inputs:
            return
        if hasattr(inner, INPUTS_QUANT):
            raise ArgumentError(
                f"the model has a {INPUTS_QUANT!r} of its own, so its inputs cannot be quantized: set quantize_inputs "
                "to False, or rename it",
                argument=("quantize_inputs",),
            )
        self.layout.setdefault("inputs", count_inputs(inner, dummy_input))

    def _find_norms(self, inner: nn.Module, dummy_input: Any) -> dict[str, str]:
        """``{layer: batch norm behind it}`` for the layers whose weights are quantized."""
        names = [name for name, bits in self.module_qbits_map.items() if bits.wts is not None]
        found: dict[str, str] = {}
        for layer, norm in batch_norm_pairs(inner, names, dummy_input).items():
            try:
                check_foldable(model_find_module(inner, layer), model_find_module(inner, norm))
            except (TypeError, ArgumentError) as error:
                logger.info("batch norm %r stays by itself: %s", norm, error)
            else:
                found[layer] = norm
        if not found:
            warnings.warn("fold_bn: no batch norm directly follows a layer", ScheduleWarning, stacklevel=6)
        logger.info("batch norms folded: %s", found)
        return found

    def _quantize_flows(self) -> None:
        """Inputs of the model, and outputs of modules with parameters, whose names a wrapper would change."""
        for name, module in list(self.model.named_modules()):
            bits = self.module_qbits_map.get(name, QBits(None, None, None)).acts
            if bits is not None and isinstance(module, self.output_types) and _keeps_its_name(module):
                quantizer = self._fake_quantization(bits)
                self._place(quantizer)
                mark(quantize_flow_(module, after=quantizer), self.config)
        inner = unwrap(self.model)
        for layer, norm in self.layout.get("folded_norms", {}).items():
            fold_norm_(self._module(inner, layer), self._module(inner, norm))
        if self._quantizes_inputs:
            self._quantize_inputs(inner)

    @staticmethod
    def _module(inner: nn.Module, name: str) -> nn.Module:
        found = model_find_module(inner, name)
        if found is None:
            raise TargetError(f"the model has no module {name!r}", argument=("fold_bn",))
        return found

    def _quantize_inputs(self, inner: nn.Module) -> None:
        made = nn.ModuleList(self._fake_quantization(self.num_bits_inputs or 8) for _ in range(self.layout["inputs"]))
        for quantizer in made:
            mark(quantizer, self.config)
            set_bypass(quantizer, nn.Identity())
        made.train(inner.training)
        self._place(made)
        attach_inputs_quant_(inner, made if len(made) > 1 else made[0])

    def _prepare_parameter(self, module: nn.Module, name: str, parameter: str, bits: int) -> None:
        tensor = module.folded(parameter) if isinstance(module, QuantizedLayer) else module._parameters[parameter]
        if tensor is None:
            return
        meta = ParamToQuantize(module, name, parameter, parameter, bits)
        for suffix in ("scale", "zero_point"):
            module.register_buffer(f"{parameter}_{suffix}", torch.zeros(1, device=tensor.device))
        function = self.param_quantization_fn
        if isinstance(function, RangeLinearWeights):
            function.store(function.grid(tensor, meta), meta)


def _keeps_its_name(module: nn.Module) -> bool:
    """Whether a module has parameters: a wrapper around it would change their names, which schedules and masks use."""
    return next(module.parameters(), None) is not None


def _modes(mode: LinearQuantMode | str | Mapping[str, Any]) -> tuple[LinearQuantMode, LinearQuantMode]:
    """The modes of activations and weights. Raises :class:`ArgumentError`."""
    if not isinstance(mode, Mapping):
        parsed = LinearQuantMode.parse(mode)
        return parsed, parsed
    unknown = [key for key in mode if key not in ("activations", "weights")]
    if unknown or len(mode) != 2:
        raise ArgumentError(
            f"mode is one mode, or {{activations: MODE, weights: MODE}}; got {dict(mode)!r}",
            argument=("mode", unknown[0]) if unknown else ("mode",),
        )
    both = {key: LinearQuantMode.parse(value, argument=("mode", key)) for key, value in mode.items()}
    return both["activations"], both["weights"]
