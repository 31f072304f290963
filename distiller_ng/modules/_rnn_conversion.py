"""Between torch's recurrent layers and those made of modules, in both directions (layer 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from distiller_ng.errors import ArgumentError
from distiller_ng.modules._recurrent import RecurrentCell, RecurrentStack

__all__ = ["converted_cell", "converted_stack", "converted_submodules", "torch_cell", "torch_stack"]

Cell = TypeVar("Cell", bound=RecurrentCell)
Stack = TypeVar("Stack", bound=RecurrentStack)
TorchCell = TypeVar("TorchCell", bound=nn.RNNCellBase)
TorchStack = TypeVar("TorchStack", bound=nn.RNNBase)

# The parameters of torch's layers, without layer number and direction, and where they are here.
_PLACES = {
    "weight_ih": ("fc_gate_x", "weight"),
    "weight_hh": ("fc_gate_h", "weight"),
    "bias_ih": ("fc_gate_x", "bias"),
    "bias_hh": ("fc_gate_h", "bias"),
}


def converted_cell(source: nn.RNNCellBase, wanted: type[nn.RNNCellBase], kind: type[Cell], *, share: bool) -> Cell:
    """A cell with the parameters of torch's; ``share`` takes the parameters themselves, not copies."""
    _check_source(source, wanted)
    with torch.device("meta"):  # draws no random numbers and allocates nothing: parameters come from the source
        cell = kind(source.input_size, source.hidden_size, bool(source.bias))
    _fill(cell, source, "", share=share)
    return cell.train(source.training)


def converted_stack(source: nn.RNNBase, wanted: type[nn.RNNBase], kind: type[Stack], *, share: bool) -> Stack:
    """A stack with the parameters of torch's; ``share`` takes the parameters themselves, not copies."""
    _check_source(source, wanted)
    if source.proj_size:
        raise ArgumentError(f"{wanted.__name__} with proj_size={source.proj_size}: projections are not supported")
    sizes = (source.input_size, source.hidden_size, source.num_layers)
    with torch.device("meta"):
        stack = kind(*sizes, bool(source.bias), source.batch_first, float(source.dropout), bool(source.bidirectional))
    for cell, suffix in _cells_of(stack):
        _fill(cell, source, suffix, share=share)
    return stack.train(source.training)


def torch_cell(cell: RecurrentCell, kind: type[TorchCell]) -> TorchCell:
    """torch's cell with copies of the parameters of ours."""
    _check_linear(cell)
    make: Callable[..., TorchCell] = kind
    with torch.device("meta"):
        made = make(cell.input_size, cell.hidden_size, cell.bias)
    _drain(cell, made, "")
    return made.train(cell.training)


def torch_stack(stack: RecurrentStack, kind: type[TorchStack]) -> TorchStack:
    """torch's layer with copies of the parameters of ours."""
    if stack.bidirectional and stack.bidirectional_type == 1 and stack.num_layers > 1:
        raise ArgumentError(
            f"{kind.__name__} has no two separate directions (bidirectional_type=1) with {stack.num_layers} layers",
            argument=("bidirectional_type",),
        )
    for cell, _ in _cells_of(stack):
        _check_linear(cell)
    between = stack.dropout_factor if stack.num_layers > 1 else 0.0  # torch warns of one that has no effect
    options = {"bias": stack.bias, "batch_first": stack.batch_first, "bidirectional": stack.bidirectional}
    make: Callable[..., TorchStack] = kind
    with torch.device("meta"):
        made = make(stack.input_size, stack.hidden_size, stack.num_layers, dropout=between, **options)
    for cell, suffix in _cells_of(stack):
        _drain(cell, made, suffix)
    made.flatten_parameters()
    return made.train(stack.training)


def converted_submodules(model: nn.Module, convert: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Put ``convert(module)`` in the place of each module for which it is not None, wherever that is used.

    Everything is converted before anything is replaced; an error names the module.
    """
    made: dict[int, nn.Module] = {}
    for name, module in model.named_modules():
        try:
            new = convert(module)
        except ArgumentError as error:
            raise ArgumentError(f"{name or 'the model'}: {error}") from error
        if new is not None:
            made[id(module)] = new
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() hides the second name of a child
            if child is not None and id(child) in made:
                setattr(parent, name, made[id(child)])
    return made.get(id(model), model)


def _cells_of(stack: RecurrentStack) -> Iterator[tuple[RecurrentCell, str]]:
    """Each cell with the ending of its parameters' names in torch: ``_l0``, ``_l0_reverse``, ``_l1``, ..."""
    for cells, direction in zip(stack.directions, ("", "_reverse")):
        for layer, cell in enumerate(cells):
            if isinstance(cell, RecurrentCell):
                yield cell, f"_l{layer}{direction}"


def _check_source(source: Any, wanted: type[nn.Module]) -> None:
    if not isinstance(source, wanted):
        raise ArgumentError(f"expected a torch.nn.{wanted.__name__}, got {type(source).__name__}")
    if type(source).forward is not wanted.forward:
        raise ArgumentError(
            f"{type(source).__name__} has a forward() of its own, which the conversion of {wanted.__name__} would lose"
        )
    if is_parametrized(source):
        raise ArgumentError(
            f"{wanted.__name__} with parametrized weights: remove_parametrizations() first, as the replacement owns "
            "plain parameters"
        )


def _check_linear(cell: RecurrentCell) -> None:
    for name in ("fc_gate_x", "fc_gate_h"):
        if type(getattr(cell, name)) is not nn.Linear:
            raise ArgumentError(
                f"{name} is a {type(getattr(cell, name)).__name__}, not the linear layer it was: only unchanged "
                "recurrent layers can become torch's"
            )


def _places(bias: bool) -> Iterator[tuple[str, str, str]]:
    for name, (layer, parameter) in _PLACES.items():
        if bias or parameter == "weight":
            yield name, layer, parameter


def _fill(cell: RecurrentCell, source: nn.Module, suffix: str, *, share: bool) -> None:
    for name, layer, place in _places(cell.bias):
        parameter = getattr(source, name + suffix)
        setattr(getattr(cell, layer), place, parameter if share else _copy(parameter))


def _drain(cell: RecurrentCell, target: nn.Module, suffix: str) -> None:
    for name, layer, place in _places(cell.bias):
        setattr(target, name + suffix, _copy(getattr(getattr(cell, layer), place)))


def _copy(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
