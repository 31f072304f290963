"""Quantization-aware training of neural collaborative filtering models (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn
from torch.optim import Optimizer

from distiller_ng.ops.linear_quantization import LinearQuantMode
from distiller_ng.quantization._replacement import ReplaceFn
from distiller_ng.quantization.base import QUANTIZERS
from distiller_ng.quantization.qat_range_linear import QUANTIZED_ACTIVATIONS, QuantAwareTrainRangeLinearQuantizer

__all__ = ["NCFQuantAwareTrainQuantizer"]

#: Modules of the library (and of ported models) that combine tensors, by name: siblings do not import each other.
_COMBINING = frozenset({"EltwiseMult", "Concat"})


@QUANTIZERS.register("NCFQuantAwareTrainQuantizer", injected=("model", "optimizer"))
class NCFQuantAwareTrainQuantizer(QuantAwareTrainRangeLinearQuantizer):
    """:class:`QuantAwareTrainRangeLinearQuantizer` for models of embeddings, products and linear layers.

    Besides those of activation modules, the outputs of ``EltwiseMult``, ``Concat`` and ``Linear`` are quantized; the
    inputs are token numbers and stay. Source of the model: X. He et al., "Neural Collaborative Filtering",
    https://arxiv.org/abs/1708.05031. A product of 1.2 and 0.5 over an observed range ``0 .. 3`` becomes 1.0 with 2
    bits, asymmetric (levels 0, 1, 2, 3). In a schedule::

        quantizers:
          ncf: {class: NCFQuantAwareTrainQuantizer, bits_activations: 8, bits_weights: 8, mode: ASYMMETRIC_UNSIGNED}
    """

    output_types: ClassVar[tuple[type[nn.Module], ...]] = (*QUANTIZED_ACTIVATIONS, nn.Linear)

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
    ) -> None:
        super().__init__(
            model,
            optimizer,
            bits_activations,
            bits_weights,
            bits_bias,
            overrides,
            mode,
            ema_decay,
            per_channel_wts,
            quantize_inputs=False,
        )

    def replacement_for(self, module: nn.Module) -> ReplaceFn | None:
        """Also for the modules that combine tensors."""
        combines = any(kind.__name__ in _COMBINING for kind in type(module).__mro__)
        return self._wrapped if combines else super().replacement_for(module)
