"""LSQ: the step size of every quantized tensor is learned (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.linear_quantization import QuantizationParameters
from distiller_ng.quantization._configuration import mark
from distiller_ng.quantization._numbers import number_from
from distiller_ng.quantization._weights import ParamToQuantize, channel_axis, quantize_flow_
from distiller_ng.quantization.activations import LSQActivation
from distiller_ng.quantization.base import QUANTIZERS, Quantizer
from distiller_ng.quantization.learned_step import lsq_parameters
from distiller_ng.quantization.q_utils import QBits
from distiller_ng.quantization.qat_range_linear import QUANTIZED_ACTIVATIONS
from distiller_ng.quantization.weight_functions import lsq_initial_step, lsq_quantize_param

__all__ = ["LSQQuantizer", "LSQWeights"]

_STEP = "step"


@dataclass(frozen=True, slots=True)
class LSQWeights:
    """The ``param_quantization_fn``: the step is the layer's parameter ``<parameter>_step``, ``[1]`` or ``[C_o]``."""

    per_channel: bool

    def __call__(self, parameter: Tensor, meta: ParamToQuantize) -> Tensor:
        """The parameter on multiples of its step; both get a gradient."""
        module = meta.module
        step = getattr(module, f"{meta.q_attr_name}_{_STEP}")
        return lsq_quantize_param(
            parameter, meta, step, axis=self.axis(parameter, meta), training=torch.is_grad_enabled() and module.training
        )

    def axis(self, parameter: Tensor, meta: ParamToQuantize) -> int | None:
        """The axis the steps lie along; None for one step."""
        return channel_axis(meta.module, parameter) if self.per_channel else None

    def grid(self, parameter: Tensor, meta: ParamToQuantize) -> QuantizationParameters:
        """Step, zero point (0) and integer range."""
        step = getattr(meta.module, f"{meta.q_attr_name}_{_STEP}")
        return lsq_parameters(step, meta.num_bits, axis=self.axis(parameter, meta))


@QUANTIZERS.register("LSQQuantizer", injected=("model", "optimizer"))
class LSQQuantizer(Quantizer):
    """Learned step size quantization of weights and of the outputs of activation modules.

    Source: S. K. Esser et al., "Learned Step Size Quantization", ICLR 2020, https://arxiv.org/abs/1902.08153. With
    ``v = x / s``: ``round(clamp(v, Qn, Qp)) * s``, where ``s`` is a parameter: ``weight_step`` in each layer and
    ``step`` in each activation. Activations after ReLU are unsigned. Steps start at ``2 * mean|x| / sqrt(Qp)``: of the
    weights when quantization begins to act, of the first batch of activations. For a step of 0.25 and 3 bits
    ``w = [0.3, 9]`` becomes ``[0.25, 0.75]``.

    ``per_channel_wts``: one step for each output channel of a weight, instead of one for all. ``step_decay``: weight
    decay of the steps, which are a parameter group of their own. The paper keeps the first and the last layer at 8
    bits::

        quantizers:
          lsq:
            class: LSQQuantizer
            bits_activations: 4
            bits_weights: 4
            overrides:
              conv1: {bits_weights: 8}
              fc: {bits_weights: 8}
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        bits_activations: int | None = 8,
        bits_weights: int | None = 8,
        bits_bias: int | None = None,
        overrides: Mapping[str, Mapping[str, Any] | None] | None = None,
        *,
        per_channel_wts: bool = False,
        step_decay: float = 0.0,
    ) -> None:
        super().__init__(
            model, optimizer, bits_activations, bits_weights, bits_bias, overrides, train_with_fp_copy=True
        )
        self.step_decay = number_from("step_decay", step_decay, 0.0)
        self.per_channel_wts = per_channel_wts
        self.param_quantization_fn = LSQWeights(per_channel_wts)
        self.replacement_factory.update(dict.fromkeys(QUANTIZED_ACTIVATIONS, self._learned))

    def checked_bits(self, setting: str, bits: Any, argument: Sequence[str]) -> int | None:
        """Weights are signed and need two bits; more than 16 leave nothing to learn."""
        checked = super().checked_bits(setting, bits, argument)
        if checked is not None and not (1 if setting == "bits_activations" else 2) <= checked <= 16:
            raise ArgumentError(
                f"{setting}: LSQ has 2 to 16 bits (from 1 for activations), got {checked}; XNORQuantizer has binary "
                "weights, null is floating point",
                argument=argument,
            )
        return checked

    def _learned(self, module: nn.Module, name: str, qbits_map: Mapping[str, QBits]) -> nn.Module:
        bits = qbits_map[name].acts
        if bits is None or next(module.parameters(), None) is not None:
            return module
        return LSQActivation(module, bits)

    def _quantize_flows(self) -> None:
        """Outputs of activation modules with parameters (PReLU), whose names a wrapper would change."""
        for name, module in list(self.model.named_modules()):
            bits = self.module_qbits_map.get(name, QBits(None, None, None)).acts
            if bits is not None and isinstance(module, nn.PReLU):
                quantizer = LSQActivation(None, bits, signed=True)
                self._place(quantizer)
                mark(quantize_flow_(module, after=quantizer), self.config)

    def _prepare_parameter(self, module: nn.Module, name: str, parameter: str, bits: int) -> None:
        tensor = getattr(module, parameter)
        axis = channel_axis(module, tensor) if self.per_channel_wts else None
        step = lsq_initial_step(tensor, bits, axis=axis)
        wide = tensor.dtype if tensor.dtype == torch.float64 else torch.float32
        module.register_parameter(f"{parameter}_{_STEP}", nn.Parameter(step.to(tensor.device, wide)))

    def _get_new_optimizer_params_groups(self) -> list[dict[str, Any]]:
        names = (_STEP, f"weight_{_STEP}", f"bias_{_STEP}")
        steps = [parameter for name in names for parameter in self.parameters_called(name).values()]
        return [{"params": steps, "weight_decay": self.step_decay}] if steps else []

    @torch.no_grad()
    def _start_learning(self) -> None:
        for layer in self.quantized_layers().values():
            for parameter, how in layer.quantized_parameters.items():
                tensor = layer.full_precision(parameter)
                if tensor is not None:
                    axis = channel_axis(layer, tensor) if self.per_channel_wts else None
                    getattr(layer, f"{parameter}_{_STEP}").copy_(lsq_initial_step(tensor, how.num_bits, axis=axis))
