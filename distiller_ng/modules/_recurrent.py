"""What LSTM and GRU made of modules have in common: layers, directions, packed sequences, dropout (layer 2)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from distiller_ng.errors import ArgumentError

__all__ = ["RecurrentCell", "RecurrentStack", "States", "check_count", "zero_states"]

#: One tensor ``[B, H]`` a kind of state: hidden and cell for an LSTM, hidden alone for a GRU.
States: TypeAlias = "tuple[Tensor, ...]"


class RecurrentCell(nn.Module, ABC):
    """One step of a recurrent layer; ``gates`` linear outputs of ``hidden_size`` each from the input and the state.

    Raises :class:`ArgumentError` for sizes below 1.
    """

    gates: int
    state_kinds: int

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        super().__init__()
        for argument, size in (("input_size", input_size), ("hidden_size", hidden_size)):
            check_count(size, argument)
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        self.fc_gate_x = nn.Linear(input_size, self.gates * hidden_size, bias=bias)
        self.fc_gate_h = nn.Linear(hidden_size, self.gates * hidden_size, bias=bias)

    @abstractmethod
    def step(self, x: Tensor, states: States) -> States:
        """``[B, input_size]`` and the states ``[B, hidden_size]`` to the next states; the hidden one comes first."""

    def initial_states(self, x: Tensor) -> States:
        """Zeros for the batch of ``x``."""
        shape = (*x.shape[:-1], self.hidden_size)
        return tuple(x.new_zeros(shape) for _ in range(self.state_kinds))

    def init_weights(self) -> None:
        """Draw all parameters anew, uniformly in ``+-1 / sqrt(hidden_size)``, as torch does."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        """The sizes, for the printed model."""
        return f"{self.input_size}, {self.hidden_size}, bias={self.bias}"


class RecurrentStack(nn.Module, ABC):
    """Layers of cells in one or both directions; numerically ``nn.LSTM`` or ``nn.GRU``.

    ``cells`` (and ``cells_reverse``) hold one cell a layer. Dropout acts on what a layer hands to the next one, in
    training only: never on the state that goes to the next step, nor on the output of the last layer.
    ``bidirectional_type`` 2, which torch has, gives each layer both directions of the layer below; 1 runs two separate
    stacks and joins their outputs at the end.

    Raises :class:`ArgumentError` for sizes below 1, a dropout outside 0 .. 1 and another ``bidirectional_type``.
    """

    cell_class: type[RecurrentCell]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.5,
        bidirectional: bool = False,
        bidirectional_type: int = 2,
    ) -> None:
        super().__init__()
        check_count(num_layers, "num_layers")
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0.0 <= dropout <= 1.0:
            raise ArgumentError(f"dropout must be a probability, 0 to 1, got {dropout!r}", argument=("dropout",))
        if bidirectional_type not in (1, 2):
            message = f"bidirectional_type must be 1 or 2, got {bidirectional_type!r}"
            raise ArgumentError(message, argument=("bidirectional_type",))
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first = bias, batch_first
        self.bidirectional, self.bidirectional_type = bidirectional, bidirectional_type
        wide = hidden_size * (2 if bidirectional and bidirectional_type == 2 else 1)
        sizes = [input_size] + [wide] * (num_layers - 1)
        self.cells = nn.ModuleList(self.cell_class(size, hidden_size, bias) for size in sizes)
        if bidirectional:
            self.cells_reverse = nn.ModuleList(self.cell_class(size, hidden_size, bias) for size in sizes)
        self.dropout = nn.Dropout(dropout)
        self.init_weights()

    @property
    def dropout_factor(self) -> float:
        """The probability with which a value between layers is dropped."""
        return self.dropout.p

    @property
    def directions(self) -> list[nn.ModuleList]:
        """The cells of each direction."""
        return [self.cells, self.cells_reverse] if self.bidirectional else [self.cells]

    def init_weights(self) -> None:
        """Draw all parameters anew, uniformly in ``+-1 / sqrt(hidden_size)``, as torch does."""
        for cells in self.directions:
            for cell in cells:
                if isinstance(cell, RecurrentCell):
                    cell.init_weights()

    @property
    def proj_size(self) -> int:
        """0: there are no projections. For code written for torch's layers, as :meth:`flatten_parameters` is."""
        return 0

    def flatten_parameters(self) -> None:
        """Does nothing: there is no one piece of memory that torch's fast kernels would need."""

    def extra_repr(self) -> str:
        """What the constructor was given, for the printed model."""
        both = f", bidirectional=True, bidirectional_type={self.bidirectional_type}" if self.bidirectional else ""
        first = ", batch_first=True" if self.batch_first else ""
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, bias={self.bias}{first}{both}"

    # -- running ----------------------------------------------------------------------------------------------------

    def run(self, x: Tensor | PackedSequence, states: Sequence[Tensor] | None) -> tuple[Any, States]:
        """Output of the last layer, in the form of ``x``, and the final states ``[layers * directions, B, H]``."""
        if isinstance(x, PackedSequence):
            data, sizes = x.data, x.batch_sizes.tolist()
            initial = self._initial(states, data, sizes[0], batched=True)
            if x.sorted_indices is not None and states is not None:
                initial = tuple(state.index_select(1, x.sorted_indices) for state in initial)
            output, final = self._run_layers(data, sizes, initial)
            if x.unsorted_indices is not None:
                final = tuple(state.index_select(1, x.unsorted_indices) for state in final)
            return PackedSequence(output, x.batch_sizes, x.sorted_indices, x.unsorted_indices), final
        return self._run_padded(x, states)

    def _run_padded(self, x: Tensor, states: Sequence[Tensor] | None) -> tuple[Tensor, States]:
        batched = x.dim() == 3
        if x.dim() not in (2, 3) or x.shape[-1] != self.input_size or x.numel() == 0:
            order = "[batch, time, features]" if self.batch_first else "[time, batch, features]"
            raise ArgumentError(
                f"{type(self).__name__} needs a sequence {order} or [time, features] with {self.input_size} features "
                f"and at least one step, got shape {tuple(x.shape)}"
            )
        steps = x.unsqueeze(1) if not batched else x.transpose(0, 1) if self.batch_first else x
        length, batch = steps.shape[:2]
        initial = self._initial(states, x, batch, batched=batched)
        flat, final = self._run_layers(steps.reshape(length * batch, -1), [batch] * length, initial)
        output = flat.reshape(length, batch, -1)
        if not batched:
            return output.squeeze(1), tuple(state.squeeze(1) for state in final)
        return (output.transpose(0, 1) if self.batch_first else output), final

    def _initial(self, states: Sequence[Tensor] | None, x: Tensor, batch: int, *, batched: bool) -> States:
        """Given states, checked, or zeros: ``[layers * directions, batch, H]``."""
        kinds = self.cell_class.state_kinds
        shape = (self.num_layers * len(self.directions), batch, self.hidden_size)
        if states is None:
            return tuple(x.new_zeros(shape) for _ in range(kinds))
        given = shape if batched else (shape[0], shape[2])
        if len(states) != kinds or any(tuple(state.shape) != given for state in states):
            got = [tuple(state.shape) for state in states]
            raise ArgumentError(f"{type(self).__name__} needs {kinds} initial state(s) of shape {given}, got {got}")
        return tuple(state.reshape(shape) for state in states)

    def _run_layers(self, data: Tensor, sizes: list[int], initial: States) -> tuple[Tensor, States]:
        """All steps one after the other, ``[sum(sizes), features]``; ``sizes``, never growing, are the batch's."""
        separate = self.bidirectional and self.bidirectional_type == 1
        inputs = [data] * len(self.directions)
        finals: list[States] = []
        for layer in range(self.num_layers):
            if layer:
                inputs = [self.dropout(one) for one in inputs] if separate else [self.dropout(inputs[0])] * len(inputs)
            outputs = []
            for direction, cells in enumerate(self.directions):
                states = tuple(state[layer * len(self.directions) + direction] for state in initial)
                output, final = _run_cell(cells[layer], inputs[direction], sizes, states, backwards=direction == 1)
                outputs.append(output)
                finals.append(final)
            joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
            inputs = outputs if separate else [joined] * len(outputs)
        return joined, tuple(torch.stack(kind) for kind in zip(*finals))


def _run_cell(
    cell: nn.Module, data: Tensor, sizes: list[int], states: States, *, backwards: bool
) -> tuple[Tensor, States]:
    """One layer in one direction: its hidden state after each step, in the order of the data, and its last states."""
    steps = list(torch.split(data, sizes))
    outputs: list[Tensor] = []
    if backwards:
        running = tuple(state[: sizes[-1]] for state in states)
        for x in reversed(steps):
            size, before = x.shape[0], running[0].shape[0]  # len() would make it a constant of a traced graph
            if size > before:  # sequences that end here
                waiting = tuple(state[before:size] for state in states)
                running = tuple(torch.cat(pair) for pair in zip(running, waiting))
            running = cell.step(x, running)  # type: ignore[operator]
            outputs.append(running[0])
        return torch.cat(outputs[::-1]), running
    ended: list[States] = []
    running = states
    for x in steps:
        size = x.shape[0]
        if size < running[0].shape[0]:
            ended.append(tuple(state[size:] for state in running))
            running = tuple(state[:size] for state in running)
        running = cell.step(x, running)  # type: ignore[operator]
        outputs.append(running[0])
    final = tuple(torch.cat(parts) for parts in zip(running, *ended[::-1]))
    return torch.cat(outputs), final


def zero_states(
    module: nn.Module, kinds: int, shape: tuple[int, ...], device: torch.device | str | None = None
) -> States:
    """Zeros in the precision of a module's parameters, on their device unless one is given."""
    first = next(module.parameters())
    where = first.device if device is None else device
    return tuple(torch.zeros(shape, dtype=first.dtype, device=where) for _ in range(kinds))


def check_count(value: Any, argument: str) -> None:
    """Raise :class:`ArgumentError` unless ``value`` is a whole number from 1 on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"{argument} must be a whole number from 1 on, got {value!r}", argument=(argument,))
