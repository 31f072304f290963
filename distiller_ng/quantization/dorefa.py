"""DoReFa-Net: few-bit weights through tanh, activations clipped to 0..1 (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn
from torch.optim import Optimizer

from distiller_ng.quantization._replacing import clip_to_one
from distiller_ng.quantization.base import QUANTIZERS, Quantizer
from distiller_ng.quantization.weight_functions import dorefa_quantize_param

__all__ = ["DorefaQuantizer"]


@QUANTIZERS.register("DorefaQuantizer", injected=("model", "optimizer"))
class DorefaQuantizer(Quantizer):
    """DoReFa-Net training: weights and activations of any number of bits, gradients straight through.

    Source: S. Zhou et al., "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth
    Gradients", https://arxiv.org/abs/1606.06160. With ``round_b(v) = round((2**b - 1) * v) / (2**b - 1)``:

    - weights: ``2 * round_b(tanh(w) / (2 * max|tanh(w)|) + 1/2) - 1``; one bit: ``sign(w) * mean|w|``;
    - activations: every ReLU becomes ``round_b(clamp(x, 0, 1))``.

    ``w = [-1, 0.2, 1]`` with 2 bits becomes ``[-1, 1/3, 1]``, ``x = [-0.5, 0.4, 0.9]`` becomes ``[0, 1/3, 1]``. There
    is no level 0 for weights, so weights that are exactly 0 (pruned) are left at 0. The first and the last layer
    usually stay in floating point::

        quantizers:
          low_bits:
            class: DorefaQuantizer
            bits_activations: 8
            bits_weights: 4
            overrides:
              conv1: {bits_weights: null, bits_activations: null}
              fc: {bits_weights: null, bits_activations: null}
    """

    restores_zeros: ClassVar[bool] = True

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
        self.param_quantization_fn = dorefa_quantize_param
        self.replacement_factory.update({nn.ReLU: clip_to_one, nn.ReLU6: clip_to_one})
