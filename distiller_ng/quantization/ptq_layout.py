"""What a checkpoint keeps of post-training quantization, to prepare a fresh model in the same way (layer 2).

Preparing follows the model's data flow and asks the calibration statistics which modules ran. So a checkpoint keeps the
shape of what the model is called with and the statistics; scales and weights come with the model's own state.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.data_loggers.quant_stats_file import QuantStats, load_quant_stats
from distiller_ng.names import unwrap
from distiller_ng.ops.dummy_inputs import get_dummy_input
from distiller_ng.ops.histogram import Histogram
from distiller_ng.ops.modules import model_device
from distiller_ng.quantization.ptq_layers import set_bias_
from distiller_ng.quantization.range_linear_params import RangeLinearQuantParamLayerWrapper
from distiller_ng.quantization.range_linear_wrappers import RangeLinearQuantWrapper

__all__ = ["changes_of", "dummy_input_of", "layout_of", "redo_changes_", "stats_of"]

_PLAIN = (bool, int, float, str, type(None))


def layout_of(dummy_input: Any, stats: Mapping[str, Any] | None) -> dict[str, Any]:
    """Both in values JSON can hold; what the model is called with is left out if it has other parts than tensors,
    numbers, text and nested containers of them.

    >>> layout_of(torch.zeros(1, 3), None)
    {'dummy_input': {'tensor': [1, 3], 'dtype': 'float32'}}
    """
    layout: dict[str, Any] = {}
    with suppress(TypeError):  # without it, loading the checkpoint says that the model has to be prepared first
        layout["dummy_input"] = _described(dummy_input)
    if stats is not None:
        layout["stats"] = {name: _plain_module(entry) for name, entry in stats.items()}
    return layout


def dummy_input_of(model: nn.Module, layout: Mapping[str, Any]) -> Any:
    """What to trace ``model`` with where nobody said it: as ``layout`` describes it, or of ``model.input_shape``.

    None where neither is known.
    """
    device = model_device(model)
    if "dummy_input" in layout:
        return _rebuilt(layout["dummy_input"], torch.device(device))
    shape = getattr(unwrap(model), "input_shape", None)
    return None if shape is None else get_dummy_input(device=device, input_shape=shape)


def stats_of(layout: Mapping[str, Any]) -> QuantStats | None:
    """The statistics ``layout`` keeps; None for dynamic quantization."""
    if "stats" not in layout:
        return None
    stats = load_quant_stats(layout["stats"])
    for entry in stats.values():
        for tensor in (entry.get("output"), *entry.get("inputs", {}).values()):
            if tensor is not None and "histogram" in tensor:
                counts, low, high = tensor["histogram"]
                tensor["histogram"] = Histogram(torch.tensor(counts, dtype=torch.float64), low, high)
    return stats


def changes_of(model: nn.Module) -> dict[str, list[str]]:
    """What was changed in a model after it was prepared: layers with a bias, and layers that hand on accumulators.

    Layers that had a bias before are among them; nothing for models that are not quantized after training.
    """
    wrappers = [(name, one) for name, one in model.named_modules() if isinstance(one, RangeLinearQuantWrapper)]
    found = {
        "biases": [name for name, one in wrappers if getattr(one, "has_bias", False)],
        "plain_outputs": [name for name, one in wrappers if not one.quantizes_output],
    }
    return {key: names for key, names in found.items() if names}


@torch.no_grad()
def redo_changes_(model: nn.Module, layout: Mapping[str, Any]) -> None:
    """Give the layers of :func:`changes_of` a bias of zeros where they have none, and let them hand on accumulators."""
    wrappers = {n: one for n, one in model.named_modules() if isinstance(one, RangeLinearQuantWrapper)}
    for name in layout.get("biases", ()):
        one = wrappers.get(name)
        if isinstance(one, RangeLinearQuantParamLayerWrapper) and not one.has_bias:
            layer = one.wrapped_module
            channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            set_bias_(one, torch.zeros(int(channels), device=model_device(layer)))  # type: ignore[arg-type]
    for name in layout.get("plain_outputs", ()):
        if name in wrappers:
            wrappers[name].quantizes_output = False


def _described(value: Any) -> dict[str, Any]:
    if isinstance(value, Tensor):
        return {"tensor": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, _PLAIN):
        return {"value": value}
    if type(value) in (tuple, list):
        return {type(value).__name__: [_described(one) for one in value]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: _described(one) for key, one in value.items()}}
    raise TypeError(f"{type(value).__name__} cannot be described")


def _rebuilt(description: Mapping[str, Any], device: torch.device) -> Any:
    if "tensor" in description:
        dtype = getattr(torch, description["dtype"])
        # Zeros are valid wherever whole numbers are looked up in a table.
        made = torch.zeros(description["tensor"], dtype=dtype, device=device)
        return made.normal_() if dtype.is_floating_point else made
    if "dict" in description:
        return {key: _rebuilt(one, device) for key, one in description["dict"].items()}
    for kind in (tuple, list):
        if kind.__name__ in description:
            return kind(_rebuilt(one, device) for one in description[kind.__name__])
    return description["value"]


def _plain_module(entry: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    if "inputs" in entry:
        plain["inputs"] = {str(index): _plain_tensor(one) for index, one in entry["inputs"].items()}
    if "output" in entry:
        plain["output"] = _plain_tensor(entry["output"])
    return plain


def _plain_tensor(entry: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, value in entry.items():
        if key == "shape":
            plain[key] = str(tuple(value)) if not isinstance(value, str) else value
        elif isinstance(value, Histogram):
            plain[key] = [value.counts.tolist(), value.low, value.high]
        elif isinstance(value, _PLAIN):
            plain[key] = value
        elif getattr(value, "ndim", None) == 0:
            plain[key] = value.item()
    return plain
