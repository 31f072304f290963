"""Layers that do what the batch norm behind them did, while both keep their places and names (layer 2).

:class:`SimulatedFoldedBatchNorm` does the computing. As a module of the model it would change the names of weight and
batch norm, which schedules, masks and checkpoints use; so the layer holds it, and the batch norm lets values pass.
"""

from __future__ import annotations

import sys
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from distiller_ng.quantization._activations import touched
from distiller_ng.quantization._derived import Derived, derive_
from distiller_ng.quantization._folding import scaled_weight
from distiller_ng.quantization._weights import QuantizedLayer, quantized_layer_
from distiller_ng.quantization.sim_bn_fold import SimulatedFoldedBatchNorm

__all__ = ["FoldedNorm", "PassedNorm", "fold_norm_"]


class PassedNorm(Derived):
    """A folded batch norm: values pass through once the layer before it quantizes; parameters and statistics stay."""

    prefix: ClassVar[str] = "Passed"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The input itself, or the batch norm while quantization still waits."""
        layer: QuantizedLayer = self.__dict__["folded_into"]
        return args[0] if layer.is_quantizing else super().forward(*args, **kwargs)

    def extra_repr(self) -> str:
        """The batch norm's own description, and that it is folded."""
        return ", ".join(part for part in (super().extra_repr(), "folded into the layer before it") if part)


class FoldedNorm:
    """The batch norm of one layer, folded into it in every forward pass."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        # Freezing is up to the quantizer: it puts the norm in evaluation mode, and nothing is folded for good.
        self._simulated = SimulatedFoldedBatchNorm(layer, norm, sys.maxsize, _Quantization(layer))
        self.norm = norm

    def __call__(self, layer: QuantizedLayer, x: Tensor) -> Tensor:
        """``norm(layer(x))`` with quantized, folded weight and bias."""
        simulated = self._simulated
        if simulated.training != layer.training:
            simulated.training = layer.training
        layer.withdraw()  # what quantize_params() shows is not what to compute with
        output: Tensor = touched(simulated(x), layer)  # in training its own bias cancels out
        return output

    def folded(self, layer: QuantizedLayer) -> dict[str, Tensor]:
        """Weight and bias with the running statistics folded in, as evaluation computes with them."""
        norm = cast(Any, self.norm)
        factor = (1.0 if norm.weight is None else norm.weight) / (norm.running_var + norm.eps).sqrt()
        weight, bias = layer.full_precision("weight"), layer.full_precision("bias")
        shift = norm.running_mean if bias is None else norm.running_mean - bias
        folded = scaled_weight(layer, cast(Tensor, weight), factor)
        return {"weight": folded, "bias": (0.0 if norm.bias is None else norm.bias) - shift * factor}


class _Quantization:
    """``param_quantization_fn`` of the simulation: the layer knows how weight and bias are quantized."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = cast(QuantizedLayer, layer)

    def __call__(self, folded: Tensor) -> Tensor:
        name = "weight" if folded.dim() > 1 else "bias"
        how = self._layer.quantized_parameters.get(name)
        return folded if how is None else how(self._layer, name, folded)


def fold_norm_(layer: nn.Module, norm: nn.Module) -> QuantizedLayer:
    """Make ``layer``, in place, do what ``norm`` behind it did, and ``norm`` nothing.

    Raises ``TypeError`` for a pair that cannot be folded and :class:`ArgumentError` for a batch norm without running
    statistics.
    """
    quantized = quantized_layer_(layer)
    quantized.__dict__["folded_norm"] = FoldedNorm(layer, norm)
    derive_(norm, PassedNorm)
    norm.__dict__["folded_into"] = quantized
    return quantized
