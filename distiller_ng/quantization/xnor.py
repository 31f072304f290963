"""XNOR-Net++: binary weights and activations with a learned scale (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distiller_ng.errors import ArgumentError, listed
from distiller_ng.quantization._configuration import mark
from distiller_ng.quantization._weights import QuantizedLayer, channel_axis, is_quantizable, quantize_flow_
from distiller_ng.quantization.activations import XnorActivation, XnorScale
from distiller_ng.quantization.base import QUANTIZERS, Quantizer
from distiller_ng.quantization.q_utils import QBits
from distiller_ng.quantization.weight_functions import xnor_initial_scale, xnor_quantize_param

__all__ = ["XNORQuantizer"]

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


@QUANTIZERS.register("XNORQuantizer", injected=("model", "optimizer"))
class XNORQuantizer(Quantizer):
    """Binary convolutions and linear layers: ``(sign(x) * sign(W)) . alpha`` with a learned ``alpha`` per filter.

    Source: A. Bulat, G. Tzimiropoulos, "XNOR-Net++: Improved Binary Neural Networks", BMVC 2019,
    https://arxiv.org/abs/1909.13863 (case 1, one scale for each output channel). Gradients of both signs pass where the
    value is within ``-1 .. 1``. ``alpha`` starts at the mean magnitude of each filter's weights when quantization
    begins to act. ``w = [-0.5, 0.1]`` with inputs ``[2, 3]`` gives ``(-1 + 1) * 0.3 = 0``.

    ``bits_activations``: 1, or null to leave the layers' inputs as they are (binary weights only). ``bits_weights``: 1,
    or null to leave a layer alone. Leave the first and the last layer in floating point, and put no ReLU before a
    binary layer: after it nothing is negative. Weights that are exactly 0 (pruned) count as 0. A layer's bias is scaled
    with its output::

        quantizers:
          xnor:
            class: XNORQuantizer
            overrides:
              conv1: {bits_weights: null, bits_activations: null}
              fc: {bits_weights: null, bits_activations: null}
    """

    restores_zeros: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        bits_activations: int | None = 1,
        bits_weights: int | None = 1,
        overrides: Mapping[str, Mapping[str, Any] | None] | None = None,
    ) -> None:
        super().__init__(model, optimizer, bits_activations, bits_weights, None, overrides, train_with_fp_copy=True)
        self.param_quantization_fn = xnor_quantize_param
        self.replacement_factory.update(dict.fromkeys(_LAYERS, _stays))

    def checked_bits(self, setting: str, bits: Any, argument: Sequence[str]) -> int | None:
        """One bit, or floating point."""
        checked = super().checked_bits(setting, bits, argument)
        if checked is not None and (checked != 1 or setting == "bits_bias"):
            allowed = "null: biases stay in floating point" if setting == "bits_bias" else "1 or null"
            raise ArgumentError(f"{setting}: XNOR-Net++ has {allowed}, got {checked}", argument=argument)
        return checked

    def _assign_overrides(self) -> Any:
        planner = super()._assign_overrides()
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Embedding):  # its rows are looked up, not multiplied
                self.module_qbits_map[name] = QBits(None, None, None)
        return planner

    def extra_notes(self) -> list[str]:
        """ReLUs: what follows one has no sign to take."""
        takes_signs = any(bits.acts is not None and bits.wts is not None for bits in self.module_qbits_map.values())
        rectifiers = [name for name, module in self.model.named_modules() if isinstance(module, nn.ReLU | nn.ReLU6)]
        if not (takes_signs and rectifiers):
            return []
        note = (
            f"the model has {listed(rectifiers, limit=4)}: a binary layer right after a ReLU sees only 1, and learns "
            "nothing from its inputs; use Hardtanh or no activation there"
        )
        return [note]

    def _quantize_flows(self) -> None:
        """Signs of the inputs, and the scale of the outputs."""
        for name, module in list(self.model.named_modules()):
            bits = self.module_qbits_map.get(name, QBits(None, None, None))
            if bits.wts is None or not is_quantizable(module):
                continue
            start = self._start_of(module)
            after = XnorScale(start.numel(), start=start, channel_axis=-1 if isinstance(module, nn.Linear) else 1)
            before = None if bits.acts is None else XnorActivation()
            self._place(after)
            mark(quantize_flow_(module, before=before, after=after), self.config)

    @staticmethod
    def _start_of(module: nn.Module) -> Tensor:
        weight = module.full_precision("weight") if isinstance(module, QuantizedLayer) else module.weight
        if not isinstance(weight, Tensor):
            raise ArgumentError(f"{type(module).__name__} has no weight")
        axis = channel_axis(module, weight)
        if axis is not None:
            return xnor_initial_scale(weight, axis=axis)
        groups = cast(int, module.groups)  # a grouped transposed convolution [C_i, C_o / groups, ...]
        return xnor_initial_scale(weight, axis=1).repeat(groups)

    def _get_new_optimizer_params_groups(self) -> list[dict[str, Any]]:
        scales = list(self.parameters_called("alpha").values())
        return [{"params": scales, "weight_decay": 0.0}] if scales else []

    @torch.no_grad()
    def _start_learning(self) -> None:
        for layer in self.quantized_layers().values():
            scale = layer._modules.get("output_quant")
            if isinstance(scale, XnorScale):
                scale.alpha.copy_(self._start_of(layer))


def _stays(module: nn.Module, name: str, qbits_map: Mapping[str, QBits]) -> nn.Module:
    """The layer itself: it is its inputs that are quantized."""
    return module
