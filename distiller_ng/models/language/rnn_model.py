"""The word language model that Distiller's recurrent-network schedules are written for (layer 5)."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, did_you_mean

__all__ = ["Hidden", "RNNModel"]

Hidden: TypeAlias = "Tensor | tuple[Tensor, Tensor]"
_INIT_RANGE = 0.1
_RNN_TYPES = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")


class RNNModel(nn.Module):
    """encoder (embedding), rnn, decoder (linear), with dropout between them.

    ``rnn_type`` is LSTM, GRU, RNN_TANH or RNN_RELU; ``ntoken`` the size of the vocabulary, ``ninp`` of an embedding,
    ``nhid`` of the hidden state. ``dropout`` is a probability. ``tie_weights`` makes encoder and decoder share one
    weight, which then appears once among the parameters, as ``encoder.weight``: Ofir Press, Lior Wolf, "Using the
    Output Embedding to Improve Language Models", https://arxiv.org/abs/1608.05859. Example:
    ``RNNModel("LSTM", 10000, 650, 650, 2)`` has ``rnn.weight_ih_l0`` of shape ``[2600, 650]``. Raises
    :class:`ArgumentError` for an unknown type, a size below 1, and tying with ``nhid`` different from ``ninp``.
    """

    def __init__(
        self,
        rnn_type: str,
        ntoken: int,
        ninp: int,
        nhid: int,
        nlayers: int,
        dropout: float = 0.5,
        tie_weights: bool = False,
    ) -> None:
        super().__init__()
        for key, value in (("ntoken", ntoken), ("ninp", ninp), ("nhid", nhid), ("nlayers", nlayers)):
            if value < 1:
                raise ArgumentError(f"{key} must be 1 or more, not {value}", argument=(key,))
        if tie_weights and nhid != ninp:
            raise ArgumentError(
                f"tie_weights needs nhid == ninp, but nhid is {nhid} and ninp {ninp}", argument=("tie_weights",)
            )
        self.rnn_type, self.ntoken, self.ninp, self.nhid, self.nlayers = rnn_type, ntoken, ninp, nhid, nlayers
        self.tie_weights = tie_weights
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(ntoken, ninp)
        self.rnn = _recurrent(rnn_type, ninp, nhid, nlayers, dropout)
        self.decoder = nn.Linear(nhid, ntoken)
        if tie_weights:
            self.decoder.weight = self.encoder.weight
        nn.init.uniform_(self.encoder.weight, -_INIT_RANGE, _INIT_RANGE)
        nn.init.uniform_(self.decoder.weight, -_INIT_RANGE, _INIT_RANGE)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, input: Tensor, hidden: Hidden) -> tuple[Tensor, Hidden]:
        """Token numbers ``[T, B]`` and a state to logits ``[T, B, ntoken]`` and the next state."""
        output, hidden = self.rnn(self.drop(self.encoder(input)), hidden)
        decoded: Tensor = self.decoder(self.drop(output))
        return decoded, hidden

    def init_hidden(self, bsz: int) -> Hidden:
        """The zero state for a batch of ``bsz``: ``[nlayers, bsz, nhid]``, twice for an LSTM (hidden and cell)."""
        weight = self.encoder.weight
        zeros = torch.zeros(self.nlayers, bsz, self.nhid, dtype=weight.dtype, device=weight.device)
        return (zeros, zeros.clone()) if self.rnn_type == "LSTM" else zeros


def _recurrent(rnn_type: str, ninp: int, nhid: int, nlayers: int, dropout: float) -> nn.RNNBase:
    # torch applies this dropout between layers only, and warns when there is a single one.
    between = dropout if nlayers > 1 else 0.0
    if rnn_type == "LSTM":
        return nn.LSTM(ninp, nhid, nlayers, dropout=between)
    if rnn_type == "GRU":
        return nn.GRU(ninp, nhid, nlayers, dropout=between)
    if rnn_type in _RNN_TYPES:
        kind = rnn_type.removeprefix("RNN_").lower()
        return nn.RNN(ninp, nhid, nlayers, nonlinearity=kind, dropout=between)
    raise ArgumentError(f"unknown rnn_type {rnn_type!r}. {did_you_mean(rnn_type, _RNN_TYPES)}", argument=("rnn_type",))
