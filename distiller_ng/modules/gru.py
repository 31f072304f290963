"""The GRU made of modules, so that every part of it can be pruned, watched and quantized (layer 2)."""

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
from distiller_ng.modules.eltwise import EltwiseAdd, EltwiseMult, EltwiseSub

__all__ = ["DistillerGRU", "DistillerGRUCell", "convert_model_to_distiller_gru"]


class DistillerGRUCell(RecurrentCell):
    """One step of a GRU, numerically ``nn.GRUCell``.

    With thirds of ``fc_gate_x(x)`` and ``fc_gate_h(h)``: ``r = sigmoid(x_r + h_r)``, ``z = sigmoid(x_z + h_z)``,
    ``n = tanh(x_n + r * h_n)``, and the next state is ``n + z * (h - n)``. Each operation is a module of its own:
    ``eltwiseadd_reset``, ``act_r``, ``eltwiseadd_update``, ``act_z``, ``eltwisemult_reset``, ``eltwiseadd_new``,
    ``act_n``, ``eltwisesub_hidden``, ``eltwisemult_update``, ``eltwiseadd_hidden``.

    Source: K. Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine
    Translation", https://arxiv.org/abs/1406.1078, in the variant torch has. With all parameters 0 the state is halved.
    Raises :class:`ArgumentError` for sizes below 1.
    """

    gates = 3
    state_kinds = 1

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        super().__init__(input_size, hidden_size, bias)
        self.eltwiseadd_reset, self.act_r = EltwiseAdd(), nn.Sigmoid()
        self.eltwiseadd_update, self.act_z = EltwiseAdd(), nn.Sigmoid()
        self.eltwisemult_reset, self.eltwiseadd_new, self.act_n = EltwiseMult(), EltwiseAdd(), nn.Tanh()
        self.eltwisesub_hidden, self.eltwisemult_update = EltwiseSub(), EltwiseMult()
        self.eltwiseadd_hidden = EltwiseAdd()
        self.init_weights()

    def forward(self, x: Tensor, h: Tensor | None = None, *, hx: Tensor | None = None) -> Tensor:
        """``[B, input_size]`` (or ``[input_size]``) and the state, zeros by default, to the next state.

        ``hx`` is what torch calls ``h``.
        """
        state = hx if h is None else h
        return self.step(x, self.initial_states(x) if state is None else (state,))[0]

    def step(self, x: Tensor, states: States) -> States:
        """The next hidden state."""
        (hidden,) = states
        x_reset, x_update, x_new = torch.chunk(self.fc_gate_x(x), 3, dim=-1)
        h_reset, h_update, h_new = torch.chunk(self.fc_gate_h(hidden), 3, dim=-1)
        reset = self.act_r(self.eltwiseadd_reset(x_reset, h_reset))
        update = self.act_z(self.eltwiseadd_update(x_update, h_update))
        new = self.act_n(self.eltwiseadd_new(x_new, self.eltwisemult_reset(reset, h_new)))
        kept = self.eltwisemult_update(update, self.eltwisesub_hidden(hidden, new))
        return (self.eltwiseadd_hidden(new, kept),)

    def init_hidden(self, batch_size: int, device: torch.device | str | None = None) -> Tensor:
        """Zeros, ``[batch_size, hidden_size]``; on the parameters' device unless one is given."""
        return zero_states(self, 1, (batch_size, self.hidden_size), device)[0]

    def to_pytorch_impl(self) -> nn.GRUCell:
        """An ``nn.GRUCell`` with copies of the parameters."""
        return torch_cell(self, nn.GRUCell)

    @staticmethod
    def from_pytorch_impl(grucell: nn.GRUCell) -> DistillerGRUCell:
        """A cell with copies of the parameters of ``grucell``. Raises :class:`ArgumentError` for anything else."""
        return converted_cell(grucell, nn.GRUCell, DistillerGRUCell, share=False)


class DistillerGRU(RecurrentStack):
    """A GRU of :class:`DistillerGRUCell` modules, numerically ``nn.GRU``.

    Takes what ``nn.GRU`` takes: ``[T, B, input_size]``, with ``batch_first`` ``[B, T, input_size]``, unbatched
    ``[T, input_size]``, or a ``PackedSequence``. The arguments are those of :class:`DistillerLSTM`; see
    :class:`RecurrentStack` for dropout and for ``bidirectional_type``. ``DistillerGRU(10, 20, 2)`` has
    ``cells.1.fc_gate_x.weight`` of shape ``[60, 20]``. Raises :class:`ArgumentError` for wrong arguments and shapes.
    """

    cell_class = DistillerGRUCell

    def forward(
        self, x: Tensor | PackedSequence, h: Tensor | None = None, *, hx: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """The last layer's hidden states ``[T, B, directions * hidden_size]``, in the form of ``x``, and the state.

        The state, given (zeros by default) and returned, is ``[num_layers * directions, B, hidden_size]``; ``hx`` is
        what torch calls ``h``.
        """
        state = hx if h is None else h
        output, (hidden,) = self.run(x, None if state is None else (state,))
        return output, hidden

    def init_hidden(self, batch_size: int, device: torch.device | str | None = None) -> Tensor:
        """Zeros, ``[num_layers * directions, batch_size, hidden_size]``."""
        shape = (self.num_layers * len(self.directions), batch_size, self.hidden_size)
        return zero_states(self, 1, shape, device)[0]

    def to_pytorch_impl(self) -> nn.GRU:
        """An ``nn.GRU`` with copies of the parameters; raises as :meth:`DistillerLSTM.to_pytorch_impl`."""
        return torch_stack(self, nn.GRU)

    @staticmethod
    def from_pytorch_impl(gru: nn.GRU) -> DistillerGRU:
        """A :class:`DistillerGRU` with copies of the parameters of ``gru``, in its mode, precision and device.

        Raises :class:`ArgumentError` for anything else and for parametrized weights.
        """
        return converted_stack(gru, nn.GRU, DistillerGRU, share=False)


def convert_model_to_distiller_gru(model: nn.Module) -> nn.Module:
    """Replace, in place, every ``nn.GRU`` and ``nn.GRUCell`` inside ``model``; the model, or its replacement.

    As :func:`convert_model_to_distiller_lstm`: the parameters stay the same objects and get other names.
    """

    def convert(module: nn.Module) -> nn.Module | None:
        if isinstance(module, nn.GRU):
            return converted_stack(module, nn.GRU, DistillerGRU, share=True)
        if isinstance(module, nn.GRUCell):
            return converted_cell(module, nn.GRUCell, DistillerGRUCell, share=True)
        return None

    return converted_submodules(model, convert)
