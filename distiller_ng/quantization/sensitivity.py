"""How much noise each quantized layer brings into a model's output, all layers at once (layer 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.graph.trace import evaluating
from distiller_ng.modules.recurrent_parts import shown_recurrent_parts
from distiller_ng.names import canonical_name, unwrap
from distiller_ng.quantization.calibration_batches import CalibrationBatches, main_tensor
from distiller_ng.quantization.ptq_layers import floating_point_output, quantized_input, quantized_layers
from distiller_ng.quantization.q_utils import linear_dequantize, linear_quantize_clamp
from distiller_ng.quantization.range_linear_params import RangeLinearQuantParamLayerWrapper

__all__ = ["noise_contributions"]


def noise_contributions(
    model: nn.Module, reference: nn.Module, batches: CalibrationBatches, *, probes: int = 4, seed: int = 0
) -> dict[str, float]:
    """``{layer: noise power at the output over the output's power}`` if that layer alone were quantized.

    ``model``: prepared; ``reference``: the floating point model it was made of. With ``d`` the error of a layer's
    output (weights, input where the layer quantizes it itself, output) and ``J`` the Jacobian of the model's output
    with respect to it, the noise is ``|J d|^2 = E[(v J d)^2]`` over random signs ``v``: one backward pass of the
    reference for each of ``probes`` gives all layers at once (Hutchinson's estimator; a first order estimate, as the
    error is taken to be small). Layers that no gradient reaches are left out.

    Noise 0.01 is an SQNR of 20 dB. M. F. Hutchinson, "A stochastic estimator of the trace of the influence matrix",
    1990, https://doi.org/10.1080/03610919008812866.
    """
    with shown_recurrent_parts(unwrap(reference)):  # the reference may have torch's LSTM and GRU
        return _contributions(model, reference, batches, probes=probes, seed=seed)


def _contributions(
    model: nn.Module, reference: nn.Module, batches: CalibrationBatches, *, probes: int, seed: int
) -> dict[str, float]:
    wrappers = quantized_layers(model)
    layers = {canonical_name(name): module for name, module in unwrap(reference).named_modules()}
    generator = torch.Generator().manual_seed(seed)
    noise: dict[str, float] = dict.fromkeys(wrappers, 0.0)
    reached: set[str] = set()
    power = 0.0
    for batch in batches:
        outputs: dict[str, Tensor] = {}
        errors: dict[str, Tensor] = {}
        handles = [
            layers[name].register_forward_hook(_Recorder(name, wrapper, outputs, errors))
            for name, wrapper in wrappers.items()
            if name in layers
        ]
        try:
            with evaluating(reference), torch.enable_grad():
                result = main_tensor(batch.run(reference))
        finally:
            for handle in handles:
                handle.remove()
        power += float(result.detach().double().square().sum())
        names = [name for name, output in outputs.items() if output.requires_grad]
        for probe in range(probes):
            signs = torch.randint(0, 2, result.shape, generator=generator).to(result) * 2 - 1
            gradients = torch.autograd.grad(
                result, [outputs[name] for name in names], signs, retain_graph=probe < probes - 1, allow_unused=True
            )
            for name, gradient in zip(names, gradients, strict=True):
                if gradient is not None:
                    reached.add(name)
                    through = (gradient * errors[name]).flatten(1).sum(dim=1)
                    noise[name] += float(through.double().square().sum()) / probes
    return {name: noise[name] / max(power, 1e-30) for name in wrappers if name in reached}


class _Recorder:
    """Notes a layer's output in floating point, and what quantization would change of it."""

    def __init__(
        self,
        name: str,
        wrapper: RangeLinearQuantParamLayerWrapper,
        outputs: dict[str, Tensor],
        errors: dict[str, Tensor],
    ) -> None:
        self.name, self.wrapper, self.outputs, self.errors = name, wrapper, outputs, errors

    def __call__(self, layer: nn.Module, args: Any, output: Tensor) -> Tensor:
        if self.name in self.outputs:
            return output  # called again: the first call stands for it
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        with torch.no_grad():
            quantized = floating_point_output(self.wrapper, quantized_input(self.wrapper, args[0].detach()))
            exact = output.detach()
            if self.wrapper.fuses_relu:
                quantized, exact = quantized.clamp(min=0), exact.clamp(min=0)
            if self.wrapper.quantizes_activations and self.wrapper.quantizes_output:
                grid = self.wrapper.output_grid(quantized)
                integers = linear_quantize_clamp(quantized, *grid)
                quantized = linear_dequantize(integers, grid.scale, grid.zero_point)
            self.errors[self.name] = quantized.to(exact.dtype) - exact
        self.outputs[self.name] = output
        return output.clone()  # an activation that works in place must not write into it
