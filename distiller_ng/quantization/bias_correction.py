"""Bias correction: the mean of every layer's output is that of the floating point model again (layer 2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, CalibrationError, listed
from distiller_ng.modules.recurrent_parts import shown_recurrent_parts
from distiller_ng.names import canonical_name, unwrap
from distiller_ng.quantization.calibration_batches import CalibrationBatches, CalibrationData
from distiller_ng.quantization.ptq_layers import (
    channel_axis_of_output,
    floating_point_output,
    quantized_input,
    quantized_layers,
    set_bias_,
)
from distiller_ng.quantization.range_linear_params import RangeLinearQuantParamLayerWrapper

__all__ = ["correct_biases_"]


@torch.no_grad()
def correct_biases_(
    model: nn.Module,
    reference: nn.Module,
    calibration_data: CalibrationData,
    *,
    layers: Iterable[str] | None = None,
    samples: int | None = None,
) -> dict[str, Tensor]:
    """Shift the biases of a *prepared* model so that every layer's mean output is that of ``reference``.

    ``model``: what a :class:`PostTrainLinearQuantizer` with calibration statistics prepared; changed in place.
    ``reference``: the floating point model it was made of (a copy from before preparing; its batch norms may be folded
    or not). ``calibration_data``: a loader or a list of batches (tensors, ``(inputs, target)`` or mappings). ``layers``
    names the layers to correct (all); ``samples`` limits the data.

    Rounding weights and clipping activations moves the mean of each output channel. With ``y`` the reference's output
    before the activation and ``y_q`` that of the quantized layer on its quantized input, ``b += E[y] - E[y_q]``, layer
    by layer in the order they run, so that each sees inputs that were corrected already. Batch ``n`` moves a bias by
    ``1/n`` of the difference it finds: a running mean over the data in one pass of each model.

    Source: M. Nagel, M. van Baalen, T. Blankevoort, M. Welling, "Data-Free Quantization Through Weight Equalization
    and Bias Correction", section 4.2 and appendix D (empirical form), https://arxiv.org/abs/1906.04721.

    Returns what was added, ``{layer: [C]}``. A weight 0.24 that became 0.25 on inputs of mean 2 gets -0.02. Raises
    :class:`LifecycleError` for a model that is not prepared, :class:`CalibrationError` for NaN and where the two models
    do not have the same layers, :class:`TargetError` for names of ``layers`` that are none. ::

        reference = copy.deepcopy(model)
        quantizer.prepare_model(example)
        correct_biases_(quantizer.model, reference, calibration_loader)
    """
    chosen = quantized_layers(model, layers)
    batches = CalibrationBatches.of(calibration_data, model, limit=samples)
    added: dict[str, Tensor] = {}
    was_training = [module for module in reference.modules() if module.training]
    reference.eval()
    with ExitStack() as stack:
        stack.callback(_train_again, was_training)
        stack.enter_context(shown_recurrent_parts(unwrap(reference)))  # the reference may have torch's LSTM and GRU
        targets = _targets(reference, chosen)
        for number, batch in enumerate(batches, start=1):
            means: dict[str, Tensor] = {}
            with _watched(targets, means, chosen):
                batch.run(reference)
            with _correcting(chosen, means, number, added):
                batch.run(model)
    return added


def _train_again(modules: list[nn.Module]) -> None:
    for module in modules:
        module.training = True


def _targets(reference: nn.Module, chosen: dict[str, RangeLinearQuantParamLayerWrapper]) -> dict[str, nn.Module]:
    """The reference's module whose output each layer's stands for: the layer, or the batch norm folded into it."""
    known = {canonical_name(name): module for name, module in unwrap(reference).named_modules(remove_duplicate=False)}
    missing = [name for name in chosen if name not in known or known[name] is chosen[name]]
    if missing:
        raise CalibrationError(
            f"the reference has no floating point layers {listed(missing, limit=4)}: give a copy of the model from "
            "before it was prepared"
        )
    found = {}
    for name, wrapper in chosen.items():
        folded = [canonical_name(one) for one in getattr(wrapper.wrapped_module, "fused_modules", [])]
        norms = [known[one] for one in folded if not isinstance(known.get(one, nn.Identity()), nn.Identity)]
        found[name] = norms[-1] if norms else known[name]
        weight = getattr(known[name], "weight", None)
        if not isinstance(weight, Tensor) or weight.shape != wrapper.wrapped_module.weight.shape:
            raise CalibrationError(f"{name} has another weight in the reference: give a copy of the same model")
    return found


@contextmanager
def _watched(
    targets: dict[str, nn.Module],
    means: dict[str, Tensor],
    chosen: dict[str, RangeLinearQuantParamLayerWrapper],
) -> Iterator[None]:
    """Note the mean output of each channel of every target."""
    with ExitStack() as stack:
        for name, module in targets.items():

            def hook(_: nn.Module, args: Any, output: Tensor, name: str = name) -> None:
                if name not in means:  # the first call is what the quantized layer is compared with
                    means[name] = _channel_means(output, channel_axis_of_output(chosen[name], output))

            stack.callback(module.register_forward_hook(hook).remove)
        yield


@contextmanager
def _correcting(
    chosen: dict[str, RangeLinearQuantParamLayerWrapper],
    means: dict[str, Tensor],
    number: int,
    added: dict[str, Tensor],
) -> Iterator[None]:
    """Correct each layer right before it runs on a batch, so that its output is corrected already."""
    with ExitStack() as stack:
        for name, wrapper in chosen.items():

            def hook(
                module: nn.Module, args: Any, name: str = name, wrapper: RangeLinearQuantParamLayerWrapper = wrapper
            ) -> None:
                if name not in means:
                    return
                output = floating_point_output(wrapper, quantized_input(wrapper, args[0]))
                axis = channel_axis_of_output(wrapper, output)
                # A layer that is called several times in a pass is corrected by its first call's mean alone.
                difference = (means.pop(name) - _channel_means(output, axis)) / number
                if not bool(difference.isfinite().all()):
                    raise CalibrationError(f"{name} computes NaN or infinite values on the calibration data")
                old = wrapper.wrapped_module.bias
                set_bias_(wrapper, difference if old is None else old.detach() + difference)  # type: ignore[operator]
                added[name] = added[name] + difference if name in added else difference

            stack.callback(wrapper.register_forward_pre_hook(hook).remove)
        yield


def _channel_means(output: Tensor, axis: int) -> Tensor:
    values = output.detach().as_subclass(Tensor)
    if values.numel() == 0:
        raise ArgumentError("a calibration batch is empty")
    return values.to(torch.promote_types(values.dtype, torch.float32)).movedim(axis, 0).flatten(1).mean(dim=1)
