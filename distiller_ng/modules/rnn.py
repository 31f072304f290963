"""The LSTM made of modules, so that every part of it can be pruned, watched and quantized (layer 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from distiller_ng.modules._recurrent import RecurrentCell, RecurrentStack, States, zero_states
from distiller_ng.modules._rnn_conversion import (
    converted_cell,
    converted_stack,
    converted_submodules,
    torch_cell,
    torch_stack,
)
from distiller_ng.modules.eltwise import EltwiseAdd, EltwiseMult

__all__ = ["DistillerLSTM", "DistillerLSTMCell", "convert_model_to_distiller_lstm"]

_LstmState = tuple[Tensor, Tensor]


class DistillerLSTMCell(RecurrentCell):
    """One step of an LSTM, numerically ``nn.LSTMCell``.

    ``i, f, g, o`` are quarters of ``fc_gate_x(x) + fc_gate_h(h)``; the next cell state is ``sigmoid(f) * c +
    sigmoid(i) * tanh(g)`` and the next hidden state ``sigmoid(o) * tanh(c)``. Each operation is a module of its own:
    ``eltwiseadd_gate``, ``act_i``, ``act_f``, ``act_g``, ``act_o``, ``eltwisemult_cell_forget``,
    ``eltwisemult_cell_input``, ``eltwiseadd_cell``, ``act_h``, ``eltwisemult_hidden``.

    Source: S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory", https://doi.org/10.1162/neco.1997.9.8.1735. With
    all parameters 0 and ``c`` = 1 the next cell state is 0.5 and the next hidden state 0.5 * tanh(0.5) = 0.231. Raises
    :class:`ArgumentError` for sizes below 1.
    """

    gates = 4
    state_kinds = 2

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        super().__init__(input_size, hidden_size, bias)
        self.eltwiseadd_gate = EltwiseAdd()
        self.act_i, self.act_f, self.act_g, self.act_o = nn.Sigmoid(), nn.Sigmoid(), nn.Tanh(), nn.Sigmoid()
        self.eltwisemult_cell_forget = EltwiseMult()
        self.eltwisemult_cell_input = EltwiseMult()
        self.eltwiseadd_cell = EltwiseAdd()
        self.act_h = nn.Tanh()
        self.eltwisemult_hidden = EltwiseMult()
        self.init_weights()

    def forward(self, x: Tensor, h: _LstmState | None = None, *, hx: _LstmState | None = None) -> _LstmState:
        """``[B, input_size]`` (or ``[input_size]``) and ``(h, c)``, zeros by default, to the next ``(h, c)``.

        ``hx`` is what torch calls ``h``.
        """
        state = hx if h is None else h
        hidden, cell = self.step(x, self.initial_states(x) if state is None else state)
        return hidden, cell

    def step(self, x: Tensor, states: States) -> States:
        """The next hidden and cell state."""
        hidden, cell = states
        gates = self.eltwiseadd_gate(self.fc_gate_x(x), self.fc_gate_h(hidden))
        i, f, g, o = torch.chunk(gates, 4, dim=-1)
        i, f, g, o = self.act_i(i), self.act_f(f), self.act_g(g), self.act_o(o)
        kept, added = self.eltwisemult_cell_forget(f, cell), self.eltwisemult_cell_input(i, g)
        cell = self.eltwiseadd_cell(kept, added)
        return self.eltwisemult_hidden(o, self.act_h(cell)), cell

    def init_hidden(self, batch_size: int, device: torch.device | str | None = None) -> _LstmState:
        """Zeros, ``[batch_size, hidden_size]`` twice; on the parameters' device unless one is given."""
        hidden, cell = zero_states(self, 2, (batch_size, self.hidden_size), device)
        return hidden, cell

    def to_pytorch_impl(self) -> nn.LSTMCell:
        """An ``nn.LSTMCell`` with copies of the parameters."""
        return torch_cell(self, nn.LSTMCell)

    @staticmethod
    def from_pytorch_impl(lstmcell: nn.LSTMCell) -> DistillerLSTMCell:
        """A cell with copies of the parameters of ``lstmcell``. Raises :class:`ArgumentError` for anything else."""
        return converted_cell(lstmcell, nn.LSTMCell, DistillerLSTMCell, share=False)


class DistillerLSTM(RecurrentStack):
    """An LSTM of :class:`DistillerLSTMCell` modules, numerically ``nn.LSTM``.

    Takes what ``nn.LSTM`` takes: ``[T, B, input_size]``, with ``batch_first`` ``[B, T, input_size]``, unbatched
    ``[T, input_size]``, or a ``PackedSequence``. The arguments are Distiller's, in its order (with its default
    ``dropout`` of 0.5); projections (``proj_size``) do not exist. See :class:`RecurrentStack` for dropout and for
    ``bidirectional_type``. ``DistillerLSTM(10, 20, 2)`` has ``cells.1.fc_gate_x.weight`` of shape ``[80, 20]``, with
    ``bidirectional=True`` of ``[80, 40]``. Raises :class:`ArgumentError` for wrong arguments and shapes.
    """

    cell_class = DistillerLSTMCell

    def forward(
        self, x: Tensor | PackedSequence, h: _LstmState | None = None, *, hx: _LstmState | None = None
    ) -> tuple[Tensor | PackedSequence, _LstmState]:
        """The last layer's hidden states ``[T, B, directions * hidden_size]``, in the form of ``x``, and ``(h, c)``.

        Both states, given (zeros by default) and returned, are ``[num_layers * directions, B, hidden_size]``; ``hx``
        is what torch calls ``h``.
        """
        output, (hidden, cell) = self.run(x, hx if h is None else h)
        return output, (hidden, cell)

    def init_hidden(self, batch_size: int, device: torch.device | str | None = None) -> _LstmState:
        """Zeros, ``[num_layers * directions, batch_size, hidden_size]`` twice."""
        shape = (self.num_layers * len(self.directions), batch_size, self.hidden_size)
        hidden, cell = zero_states(self, 2, shape, device)
        return hidden, cell

    def to_pytorch_impl(self) -> nn.LSTM:
        """An ``nn.LSTM`` with copies of the parameters.

        Raises :class:`ArgumentError` for what torch does not have: ``bidirectional_type`` 1 with several layers, and
        linear layers that were replaced, by a quantizer for example.
        """
        return torch_stack(self, nn.LSTM)

    @staticmethod
    def from_pytorch_impl(lstm: nn.LSTM) -> DistillerLSTM:
        """A :class:`DistillerLSTM` with copies of the parameters of ``lstm``, in its mode, precision and device.

        Raises :class:`ArgumentError` for anything else, for projections and for parametrized weights.
        """
        return converted_stack(lstm, nn.LSTM, DistillerLSTM, share=False)


def convert_model_to_distiller_lstm(model: nn.Module) -> nn.Module:
    """Replace, in place, every ``nn.LSTM`` and ``nn.LSTMCell`` inside ``model``; the model, or its replacement.

    The new modules own the very parameters of the old ones, so an optimizer that has them goes on; their names change
    (``rnn.weight_ih_l0`` -> ``rnn.cells.0.fc_gate_x.weight``). A module used twice stays one module. All are
    checked before the first is replaced: :class:`ArgumentError` as for :meth:`DistillerLSTM.from_pytorch_impl`.
    """

    def convert(module: nn.Module) -> nn.Module | None:
        if isinstance(module, nn.LSTM):
            return converted_stack(module, nn.LSTM, DistillerLSTM, share=True)
        if isinstance(module, nn.LSTMCell):
            return converted_cell(module, nn.LSTMCell, DistillerLSTMCell, share=True)
        return None

    return converted_submodules(model, convert)
