"""What modules of quantization-aware training compute in the export form (layer 2)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from distiller_ng.ops.linear_quantization import QuantizationParameters
from distiller_ng.quantization._export_forms import WIDEST, ExportForm
from distiller_ng.quantization._folding import run_layer
from distiller_ng.quantization._weights import QuantizedLayer
from distiller_ng.quantization.binary import XnorActivation
from distiller_ng.quantization.learned_step import LSQActivation
from distiller_ng.quantization.sim_bn_fold import SimulatedFoldedBatchNorm
from distiller_ng.quantization.weight_functions import xnor_weight_parameters

__all__ = ["ExportedFold", "ExportedLayer", "ExportedObserver"]


class ExportedObserver(ExportForm):
    """An activation module of quantization-aware training: its grid is constant."""

    def freeze(self) -> None:
        """The grid that is learned, observed or fixed; none before the first training batch."""
        if isinstance(self, XnorActivation):
            self.keep_grid("output", xnor_weight_parameters(torch.zeros(1)))
        elif getattr(self, "_ready", True) and getattr(self, "_seen", True) and getattr(self, "dequantize", True):
            params: QuantizationParameters = self.quantization_parameters()  # type: ignore[operator]
            self.keep_grid("output", params)
            ends = (torch.tensor([params.qmin, params.qmax]) - int(params.zero_point)) * float(params.scale)
            self.__dict__["export_range"] = tuple(ends.tolist())

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The quantized input, or output of what the module wraps; of more than 16 bits the range alone is left."""
        limits = self.__dict__.get("export_range")
        if isinstance(self, XnorActivation):
            return self.on_grid(super().forward(*inputs), "output")
        if limits is None:
            return super().forward(*inputs, **kwargs)
        if not self.has_grid("output"):
            return inputs[0].clamp(*limits) if inputs[0].is_floating_point() else inputs[0]
        wrapped = self.wrapped_module if isinstance(self, LSQActivation) else None
        values = inputs[0] if wrapped is None else wrapped(*inputs, **kwargs)
        return self.on_grid(values, "output")


class ExportedLayer(ExportForm):
    """A layer that trains with quantized parameters: these, with a batch norm folded in, are constants."""

    def freeze(self) -> None:
        """Quantized weight and bias."""
        layer = cast(QuantizedLayer, self)
        layer.withdraw()
        if not layer.is_quantizing:
            return
        how = layer.quantized_parameters.get("weight")
        grid = None if how is None or how.num_bits > WIDEST else layer.quantization_parameters("weight")
        values = {}
        for name in ("weight", "bias"):
            value = layer.quantized(name) if name in layer.quantized_parameters else layer.folded(name)
            values[name] = None if value is None else nn.Parameter(value.detach().clone(), requires_grad=False)
        layer._parameters.update(values)
        self.keep_grid("weight", grid)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's own ``forward``, between what quantizes its input and its output."""
        layer = cast(QuantizedLayer, self)
        plain = super(QuantizedLayer, layer).forward
        if not layer.is_quantizing:
            return plain(*args, **kwargs)
        before, after = layer._modules.get("input_quant"), layer._modules.get("output_quant")
        if before is not None and args:
            args = (before(args[0]), *args[1:])
        if self.has_grid("weight"):
            self.__dict__["weight"] = self.on_grid(cast(Tensor, self._parameters["weight"]), "weight")
        try:
            output = plain(*args, **kwargs)
        finally:
            self.__dict__.pop("weight", None)
        return output if after is None else after(output)


class ExportedFold(ExportForm):
    """A layer with the batch norm behind it folded in: weight and bias, quantized, are constants."""

    def freeze(self) -> None:
        """Weight and bias as evaluation computes with them, and the grid where the function that quantizes has one."""
        simulated = cast(SimulatedFoldedBatchNorm, self)
        weight, bias = simulated.deployed()
        self.register_buffer("weight_export", weight.detach().clone(), persistent=False)
        self.register_buffer("bias_export", None if bias is None else bias.detach().clone(), persistent=False)
        grid = getattr(simulated.param_quant_fn, "grid", None)
        self.keep_grid("weight", None if grid is None else grid(weight))

    def forward(self, x: Tensor) -> Tensor:
        """The layer on its folded weight."""
        weight = self.on_grid(cast(Tensor, self._buffers["weight_export"]), "weight")
        return run_layer(cast(nn.Module, self.param_module), x, weight, self._buffers["bias_export"])
