"""WRPN: weights clipped to -1..1, activations to 0..1 (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from distiller_ng.errors import ArgumentError
from distiller_ng.quantization._replacing import clip_to_one
from distiller_ng.quantization.base import QUANTIZERS, Quantizer
from distiller_ng.quantization.weight_functions import wrpn_quantize_param

__all__ = ["WRPNQuantizer"]


@QUANTIZERS.register("WRPNQuantizer", injected=("model", "optimizer"))
class WRPNQuantizer(Quantizer):
    """WRPN training: weights clipped to ``-1 .. 1`` and quantized linearly, activations as in DoReFa.

    Source: A. Mishra et al., "WRPN: Wide Reduced-Precision Networks", https://arxiv.org/abs/1709.01134. The paper also
    widens the layers, which is for the model's author to do. Weights of ``b`` bits lie on multiples of
    ``2 / (2**b - 1)``: 3 bits turn ``[-0.4, 0.2, 2]`` into ``[-0.286, 0.286, 0.857]``. Weights need 2 bits or more, and
    since the range is fixed, few bits need a warm start: what is smaller than half a step becomes 0::

        quantizers:
          wrpn: {class: WRPNQuantizer, bits_activations: 4, bits_weights: 4}
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        bits_activations: int | None = 32,
        bits_weights: int | None = 32,
        bits_bias: int | None = None,
        overrides: Mapping[str, Mapping[str, Any] | None] | None = None,
    ) -> None:
        super().__init__(
            model, optimizer, bits_activations, bits_weights, bits_bias, overrides, train_with_fp_copy=True
        )
        self.param_quantization_fn = wrpn_quantize_param
        self.replacement_factory.update({nn.ReLU: clip_to_one, nn.ReLU6: clip_to_one})

    def checked_bits(self, setting: str, bits: Any, argument: Sequence[str]) -> int | None:
        """Weights and biases need two bits."""
        checked = super().checked_bits(setting, bits, argument)
        if checked == 1 and setting != "bits_activations":
            raise ArgumentError(f"{setting}: WRPN needs 2 bits or more; DoReFa has one bit", argument=argument)
        return checked
