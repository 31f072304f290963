"""What each layer of a model costs: multiply-accumulates (MACs), weights and feature-map sizes (layer 4).

Measured by running the model once with forward hooks, so layers count as often as they really run. Counted are
convolutions and transposed convolutions of one to three dimensions, Linear and Bilinear layers, the projections of
multi-head attention, recurrent layers and cells. Biases, element-wise operations and products of two activations
(attention scores) are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from distiller_ng.graph.inputs import as_example_inputs
from distiller_ng.names import canonical_name, unwrap
from distiller_ng.ops.modules import convert_tensors_recursively_to, model_device
from distiller_ng.reports.table import Table, size_to_str

__all__ = ["COMPUTE_COLUMNS", "LayerCost", "layer_costs", "model_performance_summary", "model_performance_tbl_summary"]

COMPUTE_COLUMNS = ("Name", "Type", "Attrs", "IFM", "IFM volume", "OFM", "OFM volume", "Weights volume", "MACs")


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One run of one layer: shapes and volumes (number of values) of its input and output, its weights, its MACs."""

    name: str
    kind: str
    attributes: str
    ifm: str
    ifm_volume: int
    ofm: str
    ofm_volume: int
    weights_volume: int
    macs: int


_Call = tuple[nn.Module, tuple[Any, ...], Mapping[str, Any], Any]  # module, arguments, keyword arguments, output
_Cost = Callable[[str, _Call], list[LayerCost]]


def layer_costs(model: nn.Module, dummy_input: Any) -> list[LayerCost]:
    """The cost of each layer, in the order they run, for one forward pass of ``dummy_input``.

    ``dummy_input`` is a tensor, a tuple of positional arguments, a dictionary of keyword arguments or
    ``ExampleInputs``; it is moved to the model's device. The pass runs in evaluation mode without gradients; the model
    is left as it was.
    """
    bare = unwrap(model)
    costs: list[LayerCost] = []
    with _observed(bare, costs), _evaluating(bare), torch.no_grad():
        inputs = as_example_inputs(dummy_input)
        args, kwargs = convert_tensors_recursively_to((inputs.args, dict(inputs.kwargs)), model_device(bare))
        bare(*args, **kwargs)
    return costs


def model_performance_summary(model: nn.Module, dummy_input: Any, batch_size: int = 1) -> Table:
    """The compute table: one row for each run of a layer.

    Volumes and MACs are those of ``dummy_input``, whatever its batch; ``batch_size`` is accepted because Distiller's
    callers pass it, and says nothing more. A convolution's MACs are ``volume(OFM) * C_i / groups * volume(kernel)``.
    For simplenet_cifar and a 32 x 32 image the MACs are 352800, 240000, 48000, 10080 and 840.
    """
    rows = tuple(astuple(cost) for cost in layer_costs(model, dummy_input))
    return Table("Compute:", COMPUTE_COLUMNS, rows)


def model_performance_tbl_summary(model: nn.Module, dummy_input: Any, batch_size: int = 1) -> str:
    """:func:`model_performance_summary` as text."""
    return str(model_performance_summary(model, dummy_input, batch_size))


@contextmanager
def _observed(model: nn.Module, costs: list[LayerCost]) -> Iterator[None]:
    """Hooks on every layer with a cost, removed at the end."""

    def hook_for(name: str, cost: _Cost) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            costs.extend(cost(name, (module, args, kwargs, output)))

        return hook

    handles = []
    try:
        for raw_name, module in model.named_modules():
            cost = next((function for kinds, function in _COSTS if isinstance(module, kinds)), None)
            if cost is not None:
                hook = hook_for(canonical_name(raw_name) or raw_name, cost)
                handles.append(module.register_forward_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; each module gets its own mode back, as parts of a model may be frozen in it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _argument(call: _Call, position: int, name: str) -> Any:
    _, args, kwargs, _ = call
    return args[position] if len(args) > position else kwargs[name]


def _cost(name: str, kind: str, attributes: str, shapes: Sequence[Any], weights: int, macs: int) -> LayerCost:
    ifm, ofm = (tuple(int(size) for size in shape) for shape in shapes)
    sizes = (size_to_str(ifm), math.prod(ifm), size_to_str(ofm), math.prod(ofm))
    return LayerCost(name, kind, attributes, *sizes, weights, int(macs))


def _convolution(name: str, call: _Call) -> list[LayerCost]:
    module, _, _, output = call
    layer: Any = module
    inputs: Tensor = _argument(call, 0, "input")
    # Each output value (for a transposed one: each input value) takes as many MACs as one slice of the weight has.
    taps = inputs if layer.transposed else output
    macs = taps.numel() * layer.weight[0].numel()
    attributes = f"k={size_to_str(layer.kernel_size)}"
    shapes = (inputs.shape, output.shape)
    return [_cost(name, type(module).__name__, attributes, shapes, layer.weight.numel(), macs)]


def _linear(name: str, call: _Call) -> list[LayerCost]:
    module, _, _, output = call
    weight: Tensor = module.weight  # type: ignore[assignment]
    inputs: Tensor = _argument(call, 0, "input" if isinstance(module, nn.Linear) else "input1")
    macs = output.numel() * weight[0].numel()
    return [_cost(name, type(module).__name__, "", (inputs.shape, output.shape), weight.numel(), macs)]


def _attention(name: str, call: _Call) -> list[LayerCost]:
    module, _, _, output = call
    attention: Any = module
    query, key, value = (_argument(call, i, n) for i, n in enumerate(("query", "key", "value")))
    width = attention.embed_dim
    projected = sum(tensor.numel() for tensor in (query, key, value))  # each value meets one row of width weights
    weights = width * (width + attention.kdim + attention.vdim)
    kind, heads, attended = type(module).__name__, f"heads={attention.num_heads}", output[0]
    out = attention.out_proj.weight.numel()
    return [
        _cost(f"{name}.in_proj".lstrip("."), kind, heads, (query.shape, attended.shape), weights, projected * width),
        _cost(f"{name}.out_proj".lstrip("."), kind, heads, (attended.shape,) * 2, out, attended.numel() * width),
    ]


def _recurrent(name: str, call: _Call) -> list[LayerCost]:
    module, _, _, output = call
    inputs = _argument(call, 0, "input")
    inputs = inputs.data if isinstance(inputs, PackedSequence) else inputs
    result = output[0].data if isinstance(output[0], PackedSequence) else output[0]
    # Every step multiplies each weight matrix once; a packed sequence lists its steps without padding.
    weights = sum(p.numel() for n, p in module.named_parameters(recurse=False) if n.startswith("weight"))
    steps = inputs.numel() // inputs.shape[-1]
    return [_cost(name, type(module).__name__, "", (inputs.shape, result.shape), weights, steps * weights)]


def _cell(name: str, call: _Call) -> list[LayerCost]:
    module, _, _, output = call
    inputs: Tensor = _argument(call, 0, "input")
    result = output[0] if isinstance(output, tuple) else output
    weights = sum(p.numel() for n, p in module.named_parameters(recurse=False) if n.startswith("weight"))
    macs = inputs.numel() // inputs.shape[-1] * weights
    return [_cost(name, type(module).__name__, "", (inputs.shape, result.shape), weights, macs)]


_COSTS: tuple[tuple[Any, _Cost], ...] = (
    (nn.modules.conv._ConvNd, _convolution),
    ((nn.Linear, nn.Bilinear), _linear),
    (nn.MultiheadAttention, _attention),
    (nn.RNNBase, _recurrent),
    (nn.RNNCellBase, _cell),
)
