"""Recurrent layers of torch's for a while, or for good, as layers made of modules (layer 2)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.modules._rnn_conversion import converted_cell, converted_stack
from distiller_ng.modules.gru import DistillerGRU, DistillerGRUCell
from distiller_ng.modules.rnn import DistillerLSTM, DistillerLSTMCell

__all__ = ["RecurrentParts", "place_recurrent_parts_", "recurrent_parts", "shown_recurrent_parts"]

_logger = logging.getLogger(__name__)

#: ``{full name: what stands for the layer}``; they own the layer's very parameters.
RecurrentParts = dict[str, nn.Module]


def recurrent_parts(model: nn.Module) -> RecurrentParts:
    """What every ``nn.LSTM``, ``nn.GRU`` and their cells inside ``model`` would be, made of modules.

    A layer with two names is in it under the first. Layers that have no such form (projections, parametrized weights,
    subclasses with a ``forward`` of their own) are left out, and ``model`` itself.
    """
    found: RecurrentParts = {}
    for name, module in model.named_modules():
        if not name:
            continue
        try:
            made = _made(module)
        except ArgumentError as error:
            _logger.info("%s stays as it is: %s", name, error)
            continue
        if made is not None:
            found[name] = made
    return found


def place_recurrent_parts_(model: nn.Module, parts: RecurrentParts) -> list[tuple[nn.Module, str, nn.Module]]:
    """Put ``parts`` into ``model`` wherever the layers they stand for are; what was where, to put it back."""
    new = {id(model.get_submodule(name)): part for name, part in parts.items()}
    placed = []
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and id(child) in new:
                new[id(child)].train(child.training)
                parent._modules[name] = new[id(child)]
                placed.append((parent, name, child))
    return placed


@contextmanager
def shown_recurrent_parts(model: nn.Module, parts: RecurrentParts | None = None) -> Iterator[RecurrentParts]:
    """Inside, ``model`` has layers made of modules where it has torch's; afterwards it is what it was.

    ``parts`` are those of :func:`recurrent_parts` unless given. Numerically nothing changes.
    """
    chosen = recurrent_parts(model) if parts is None else parts
    placed = place_recurrent_parts_(model, chosen)
    try:
        yield chosen
    finally:
        for parent, name, child in placed:
            parent._modules[name] = child


def _made(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.LSTM):
        return converted_stack(module, nn.LSTM, DistillerLSTM, share=True)
    if isinstance(module, nn.GRU):
        return converted_stack(module, nn.GRU, DistillerGRU, share=True)
    if isinstance(module, nn.LSTMCell):
        return converted_cell(module, nn.LSTMCell, DistillerLSTMCell, share=True)
    if isinstance(module, nn.GRUCell):
        return converted_cell(module, nn.GRUCell, DistillerGRUCell, share=True)
    return None
