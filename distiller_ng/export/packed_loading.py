"""Loading sparse and packed models: rebuilt, filled, ready to run (layer 4)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from distiller_ng.checkpoint.contents import Checkpoint
from distiller_ng.checkpoint.loading import restore
from distiller_ng.checkpoint.record import CompressionRecord
from distiller_ng.errors import ArgumentError, CheckpointError, DistillerError, listed
from distiller_ng.export.packed_encoding import decode, full_entries, grid_of_entry
from distiller_ng.export.packed_file import TensorFile, read_tensor_file
from distiller_ng.export.packed_layers import keep_packed_
from distiller_ng.names import canonical_name, unwrap
from distiller_ng.ops.linear_quantization import QuantizationParameters
from distiller_ng.quantization._weights import ParameterQuantization, QuantizedLayer
from distiller_ng.quantization.range_linear_output import OutputGrid

__all__ = ["load_packed"]


def load_packed(
    factory: Callable[[], nn.Module],
    path: str | os.PathLike[str],
    device: str | torch.device | None = None,
    *,
    keep_packed: bool = False,
) -> nn.Module:
    """The model of a file that ``save_sparse`` or ``save_packed`` wrote, in eval mode.

    ``factory()`` builds the model as it was before compression, with any weights; thinning and the quantization of
    activations are put into it again from the file. Weights are the values the compressed model computed with, bit for
    bit. Where only weights were quantized after training, the result is a plain model of plain layers.

    ``keep_packed``: layers go on holding the packed integers and unpack them in each forward pass. That takes the
    memory of the file instead of that of the floating point model, and time; such a model is for running alone.

    Raises ``FileNotFoundError``, :class:`ArgumentError` for a factory that builds no model, and
    :class:`CheckpointError` for a damaged file or another model's. Example::

        model = load_packed(lambda: create_model(False, "cifar10", "resnet20_cifar"), "resnet20.int4.safetensors")
    """
    if isinstance(factory, nn.Module) or not callable(factory):
        raise ArgumentError(
            f"factory is a function that builds the model as it was before compression, got {type(factory).__name__}",
            argument=("factory",),
        )
    file = read_tensor_file(path)
    entries, structure = _parts(file)
    tensors = {name: decode(name, entry, file.tensors) for name, entry in entries.items()}
    model = factory()
    if not isinstance(model, nn.Module):
        message = f"factory() must return a torch.nn.Module, got {type(model).__name__}"
        raise ArgumentError(message, argument=("factory",))
    try:
        model = _rebuilt(model, structure, file.path)
        tensors |= {name: tensors[source] for name, source in structure.get("tied", {}).items()}
        _fill(model, tensors, entries, file, structure)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, DistillerError):
            raise
        raise CheckpointError(f"{file.path}: damaged ({type(error).__name__}: {error})") from error
    if keep_packed:
        keep_packed_(unwrap(model), entries, file.tensors)
    return (model if device is None else model.to(device)).eval()


def _parts(file: TensorFile) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    entries, structure = file.description.get("entries"), file.description.get("structure")
    whole = isinstance(entries, dict) and all(isinstance(entry, dict) for entry in entries.values())
    if not whole or not isinstance(structure, dict):
        raise CheckpointError(f"{file.path}: damaged: it does not describe a model")
    return full_entries(cast(dict[str, dict[str, Any]], entries), file.tensors), structure


def _rebuilt(model: nn.Module, structure: Mapping[str, Any], path: str) -> nn.Module:
    """The factory's model with the structural changes of the file."""
    entries = structure["record"]
    if not isinstance(entries, list):
        raise CheckpointError(f"{path}: damaged: its record of structural changes is no list")
    record = CompressionRecord.from_json(json.dumps(entries))
    model = record.replay(model)
    modules = {canonical_name(name): module for name, module in unwrap(model).named_modules()}
    if structure.get("prepared") and not any(isinstance(module, OutputGrid) for module in modules.values()):
        raise CheckpointError(
            f"{path}: holds a model whose activations are quantized by {structure['prepared']}: let the "
            "factory prepare the model in the same way (same settings and statistics) before it returns it"
        )
    plain = {name for name in structure.get("frozen", {}) if not isinstance(modules.get(name), QuantizedLayer)}
    if plain:
        raise CheckpointError(
            f"{path}: holds a model that was trained with quantization in {listed(sorted(plain), limit=4)}, and does "
            "not say how: let the factory prepare the model with the same quantizer before it returns it"
        )
    for name in structure.get("identities", ()):
        if name in modules and not isinstance(modules[name], nn.Identity):
            unwrap(model).set_submodule(_raw_name(model, name), nn.Identity())
    for name in structure.get("biases", ()):
        layer = modules.get(name)
        if layer is not None and layer._parameters.get("bias", layer) is None:
            weight = cast(Tensor, layer.weight)
            channels = getattr(layer, "out_channels", None) or weight.shape[0]
            layer.bias = nn.Parameter(torch.zeros(channels, dtype=weight.dtype), requires_grad=False)
    return model


def _raw_name(model: nn.Module, canonical: str) -> str:
    names: dict[str, str] = {canonical_name(name): name for name, _ in unwrap(model).named_modules()}
    return names[canonical]


def _fill(
    model: nn.Module,
    tensors: dict[str, Tensor],
    entries: Mapping[str, Mapping[str, Any]],
    file: TensorFile,
    structure: Mapping[str, Any],
) -> None:
    modules = {canonical_name(n): m for n, m in unwrap(model).named_modules(remove_duplicate=False)}
    new: set[str] = set()  # biases that folding makes: the layer gets them when it is frozen
    frozen = [(name, parameter) for name, parameters in structure.get("frozen", {}).items() for parameter in parameters]
    for name, parameter in frozen:
        if modules[name]._parameters.get(parameter) is None:
            new.add(_key(name, parameter))
    state = {name: value for name, value in tensors.items() if name not in new}
    restore(Checkpoint(path=file.path, state_dict=state), model, lean=True, strict=True)
    for name, parameter in frozen:
        key = _key(name, parameter)
        source = structure.get("tied", {}).get(key, key)
        _freeze_(modules[name], parameter, tensors[key], grid_of_entry(source, entries[source], file.tensors))


def _key(name: str, parameter: str) -> str:
    return f"{name}.{parameter}" if name else parameter


class _Stored:
    """A ``param_quantization_fn`` for parameters that hold their quantized values already."""

    def __init__(self, grid: QuantizationParameters | None) -> None:
        self._grid = grid

    def __call__(self, parameter: Tensor, meta: Any) -> Tensor:
        return parameter

    def grid(self, parameter: Tensor, meta: Any) -> QuantizationParameters | None:
        """The grid the values lie on, for exporters."""
        if self._grid is None:
            return None
        scale, zero_point = (part.to(parameter.device) for part in (self._grid.scale, self._grid.zero_point))
        return QuantizationParameters(scale, zero_point, self._grid.qmin, self._grid.qmax, self._grid.axis)


def _freeze_(module: nn.Module, name: str, value: Tensor, grid: QuantizationParameters | None) -> None:
    """Let the layer compute with ``value`` as it is from now on."""
    layer = cast(QuantizedLayer, module)
    layer.__dict__.pop("folded_norm", None)
    device = next((p.device for p in layer.parameters(recurse=False)), value.device)
    layer._parameters[name] = nn.Parameter(value.to(device), requires_grad=False)
    how = layer.quantized_parameters.get(name)
    if how is not None:
        layer.quantized_parameters[name] = ParameterQuantization(_Stored(grid), how.module_name, how.num_bits)
