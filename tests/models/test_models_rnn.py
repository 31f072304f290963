"""The LSTM language model."""

import warnings

import pytest
import torch

from distiller_ng.errors import ArgumentError
from distiller_ng.models import RNNModel


def test_parameter_names_and_shapes():
    model = RNNModel("LSTM", 30, 6, 8, 2)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {
        "encoder.weight": (30, 6),
        "rnn.weight_ih_l0": (32, 6),
        "rnn.weight_hh_l0": (32, 8),
        "rnn.bias_ih_l0": (32,),
        "rnn.bias_hh_l0": (32,),
        "rnn.weight_ih_l1": (32, 8),
        "rnn.weight_hh_l1": (32, 8),
        "rnn.bias_ih_l1": (32,),
        "rnn.bias_hh_l1": (32,),
        "decoder.weight": (30, 8),
        "decoder.bias": (30,),
    }
    assert model.encoder.weight.abs().max() <= 0.1
    assert model.decoder.bias.abs().max() == 0


@pytest.mark.parametrize(("rnn_type", "states"), [("LSTM", 2), ("GRU", 1), ("RNN_TANH", 1), ("RNN_RELU", 1)])
def test_forward_gives_logits_and_the_next_state(rnn_type, states):
    torch.manual_seed(0)
    model = RNNModel(rnn_type, 30, 6, 8, 2).eval()
    hidden = model.init_hidden(4)
    assert (len(hidden) if isinstance(hidden, tuple) else 1) == states
    tokens = torch.randint(30, (5, 4))
    decoded, after = model(tokens, hidden)
    assert decoded.shape == (5, 4, 30)
    first = after[0] if states == 2 else after
    assert first.shape == (2, 4, 8)
    # Reading in two pieces, handing the state over, is the same as reading at once.
    begin, state = model(tokens[:2], model.init_hidden(4))
    end, _ = model(tokens[2:], state)
    torch.testing.assert_close(torch.cat([begin, end]), decoded)


def test_tied_weights_are_one_parameter():
    model = RNNModel("LSTM", 30, 8, 8, 1, tie_weights=True)
    assert model.decoder.weight is model.encoder.weight
    assert "decoder.weight" not in dict(model.named_parameters())


def test_one_layer_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RNNModel("GRU", 5, 4, 4, 1, dropout=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("LSTN", 5, 4, 4, 1), "Did you mean 'LSTM'"),
        (("LSTM", 5, 4, 6, 1, 0.5, True), "nhid is 6 and ninp 4"),
        (("LSTM", 5, 4, 0, 1), "nhid must be 1 or more"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        RNNModel(*arguments)
