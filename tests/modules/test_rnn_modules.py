"""LSTM and GRU made of modules: equal to torch's, in every form of input, both ways, and in training."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import distiller_ng as distiller
from distiller_ng.data_loggers import collect_quant_stats
from distiller_ng.errors import ArgumentError
from distiller_ng.modules import (
    DistillerGRU,
    DistillerGRUCell,
    DistillerLSTM,
    DistillerLSTMCell,
    convert_model_to_distiller_gru,
    convert_model_to_distiller_lstm,
)

KINDS = {"lstm": (nn.LSTM, DistillerLSTM), "gru": (nn.GRU, DistillerGRU)}
CELLS = {"lstm": (nn.LSTMCell, DistillerLSTMCell), "gru": (nn.GRUCell, DistillerGRUCell)}
each_kind = pytest.mark.parametrize("kind", ["lstm", "gru"])


def pair(kind, *args, **kwargs):
    torch.manual_seed(0)
    theirs, ours = KINDS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = theirs(*args, **kwargs).eval()
    return module, ours.from_pytorch_impl(module)


def tensors(result):
    if isinstance(result, PackedSequence):
        return [result.data, result.batch_sizes]
    if isinstance(result, tuple):
        return [one for part in result for one in tensors(part)]
    return [result]


def same(left, right, atol=1e-6):
    left, right = tensors(left), tensors(right)
    assert len(left) == len(right)
    for a, b in zip(left, right):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=atol)


def states(kind, *shape):
    return (torch.randn(shape), torch.randn(shape)) if kind == "lstm" else torch.randn(shape)


# -- shapes and equality -----------------------------------------------------------------------------------------------


def test_weight_shapes_are_distillers():
    lstm = DistillerLSTM(10, 20, 2, bidirectional=True)
    assert lstm.cells[0].fc_gate_x.weight.shape == lstm.cells_reverse[0].fc_gate_x.weight.shape == (80, 10)
    assert lstm.cells[1].fc_gate_x.weight.shape == (80, 40)
    assert lstm.cells[1].fc_gate_h.weight.shape == (80, 20)
    assert lstm.dropout_factor == 0.5
    assert DistillerLSTM(10, 20, 2).cells[1].fc_gate_x.weight.shape == (80, 20)
    assert DistillerGRU(10, 20, 2).cells[1].fc_gate_x.weight.shape == (60, 20)
    names = [name for name, _ in lstm.cells[0].named_children()]
    assert names == [
        "fc_gate_x", "fc_gate_h", "eltwiseadd_gate", "act_i", "act_f", "act_g", "act_o", "eltwisemult_cell_forget",
        "eltwisemult_cell_input", "eltwiseadd_cell", "act_h", "eltwisemult_hidden",
    ]  # fmt: skip


@each_kind
@pytest.mark.parametrize("sizes", [(1, 1, 2), (3, 5, 7)])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_outputs_equal_torchs(kind, sizes, bidirectional, bias, batch_first):
    theirs, ours = pair(kind, *sizes, bias=bias, bidirectional=bidirectional, batch_first=batch_first)
    x = torch.randn(4, 6, sizes[0])
    layers = sizes[2] * (2 if bidirectional else 1)
    same(ours(x), theirs(x))
    initial = states(kind, layers, 4 if batch_first else 6, sizes[1])
    same(ours(x, initial), theirs(x, initial))
    unbatched = states(kind, layers, sizes[1])
    same(ours(x[0]), theirs(x[0]))
    same(ours(x[0], unbatched), theirs(x[0], unbatched))


@pytest.mark.slow
@pytest.mark.parametrize("bidirectional", [False, True])
def test_outputs_equal_torchs_for_a_large_lstm(bidirectional):
    theirs, ours = pair("lstm", 1500, 1500, 2, bidirectional=bidirectional)
    x = torch.randn(3, 2, 1500)
    with torch.no_grad():
        same(ours(x), theirs(x), atol=1e-5)


@each_kind
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_packed_sequences(kind, bidirectional, ordered):
    theirs, ours = pair(kind, 3, 5, 2, bidirectional=bidirectional)
    lengths = [5, 4, 4, 1] if ordered else [1, 4, 5, 4]
    x = pack_sequence([torch.randn(length, 3) for length in lengths], enforce_sorted=ordered)
    found, wanted = ours(x), theirs(x)
    same(found, wanted)
    assert isinstance(found[0], PackedSequence) and type(found[0].batch_sizes) is type(wanted[0].batch_sizes)
    initial = states(kind, 4 if bidirectional else 2, 4, 5)
    same(ours(x, initial), theirs(x, initial))
    padded = pack_padded_sequence(torch.randn(2, 3, 3), [3, 2], batch_first=True)
    same(ours(padded), theirs(padded))


@each_kind
def test_gradients_equal_torchs(kind):
    theirs, ours = pair(kind, 3, 4, 2, bidirectional=True)
    x = torch.randn(5, 2, 3)
    ours(x)[0].square().sum().backward()
    theirs(x)[0].square().sum().backward()
    for layer in range(2):
        for suffix, cells in (("", ours.cells), ("_reverse", ours.cells_reverse)):
            for name, linear in (("ih", cells[layer].fc_gate_x), ("hh", cells[layer].fc_gate_h)):
                for what in ("weight", "bias"):
                    grad = getattr(theirs, f"{what}_{name}_l{layer}{suffix}").grad
                    torch.testing.assert_close(getattr(linear, what).grad, grad, rtol=1e-4, atol=1e-5)


@each_kind
@pytest.mark.parametrize("bias", [False, True])
def test_cells_equal_torchs(kind, bias):
    theirs, ours = CELLS[kind]
    theirs = theirs(3, 4, bias=bias)
    ours = ours.from_pytorch_impl(theirs)
    x = torch.randn(5, 3)
    same(ours(x), theirs(x))
    initial = states(kind, 5, 4)
    same(ours(x, initial), theirs(x, initial))
    same(ours(x[0]), theirs(x[0]))
    same(ours.to_pytorch_impl()(x), theirs(x))
    same(ours(x, ours.init_hidden(5)), theirs(x))


def test_worked_examples():
    cell, gru = DistillerLSTMCell(1, 1), DistillerGRUCell(1, 1)
    for parameter in (*cell.parameters(), *gru.parameters()):
        nn.init.zeros_(parameter)
    one = torch.ones(1, 1)
    with torch.no_grad():
        (hidden, state), halved = cell(one, (one, one)), gru(one, one)
    assert float(state) == 0.5 and float(hidden) == pytest.approx(0.231, abs=1e-3)
    assert float(halved) == 0.5


# -- training ----------------------------------------------------------------------------------------------------------


@each_kind
def test_b17_dropout_acts_between_layers_never_on_the_state(kind):
    torch.manual_seed(0)
    ours = KINDS[kind][1](8, 64, 2, dropout=0.9).train()
    output, final = ours(torch.randn(3, 16, 8))
    for state in final if kind == "lstm" else [final]:
        assert float((state == 0).float().mean()) == 0.0  # Distiller's had 95 % zeros
    assert float((output == 0).float().mean()) == 0.0
    single = KINDS[kind][1](8, 64, 1, dropout=0.9)
    x = torch.randn(3, 2, 8)
    trained = single.train()(x)
    same(trained, single.eval()(x))


@each_kind
def test_dropout_drops_as_torch_does(kind):
    theirs, ours = pair(kind, 4, 256, 2, dropout=0.6)
    seen = []
    ours.dropout.register_forward_hook(lambda module, args, output: seen.append(output))
    ours.train()(torch.randn(10, 4, 4))
    assert len(seen) == 1
    assert float((seen[0] == 0).float().mean()) == pytest.approx(0.6, abs=0.03)
    ours.eval()
    x = torch.randn(3, 2, 4)
    same(ours(x), theirs.eval()(x))
    all_dropped = KINDS[kind][1](4, 8, 2, dropout=1.0).train()
    first, second = all_dropped(x)[0], all_dropped(x + 1)[0]
    assert torch.equal(first, second)


@each_kind
def test_b12_init_weights(kind):
    torch.manual_seed(0)
    for module in (KINDS[kind][1](8, 100, 2, bidirectional=True), CELLS[kind][1](8, 100)):
        before = copy.deepcopy(module.state_dict())
        module.init_weights()
        for name, parameter in module.named_parameters():
            assert not torch.equal(parameter, before[name])
            assert 0.08 < float(parameter.detach().abs().max()) <= 0.1


def test_separate_directions():
    torch.manual_seed(0)
    both = DistillerLSTM(3, 4, 2, bidirectional=True, bidirectional_type=1).eval()
    assert both.cells[1].fc_gate_x.weight.shape == (16, 4)
    forward, backward = DistillerLSTM(3, 4, 2).eval(), DistillerLSTM(3, 4, 2).eval()
    forward.cells, backward.cells = both.cells, both.cells_reverse
    x = torch.randn(5, 2, 3)
    output, (hidden, _) = both(x)
    ahead, (hidden_ahead, _) = forward(x)
    back, (hidden_back, _) = backward(x.flip(0))
    torch.testing.assert_close(output, torch.cat([ahead, back.flip(0)], dim=2))
    torch.testing.assert_close(hidden, torch.stack([hidden_ahead[0], hidden_back[0], hidden_ahead[1], hidden_back[1]]))
    with pytest.raises(ArgumentError, match="bidirectional_type=1"):
        both.to_pytorch_impl()
    single = DistillerLSTM(3, 4, 1, bidirectional=True, bidirectional_type=1).eval()
    same(single.to_pytorch_impl()(x), single(x))


# -- conversion --------------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("bidirectional", [False, True])
def test_round_trip(kind, bidirectional):
    theirs, ours = pair(kind, 3, 5, 2, dropout=0.25, batch_first=True, bias=True, bidirectional=bidirectional)
    back = ours.to_pytorch_impl()
    assert theirs.state_dict().keys() == back.state_dict().keys()
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in theirs.state_dict().items())
    assert (back.dropout, back.batch_first, back.training) == (0.25, True, False)
    assert ours.dropout_factor == 0.25 and not ours.cells[0].training
    with torch.no_grad():
        ours.cells[0].fc_gate_x.weight.zero_()
    assert theirs.weight_ih_l0.abs().sum() > 0 and back.weight_ih_l0.abs().sum() > 0  # copies
    x = torch.randn(2, 4, 3)
    same(back(x), theirs(x))
    back(x)[0].sum().backward()


@each_kind
def test_conversion_draws_no_random_numbers_and_keeps_details(kind):
    theirs, ours = KINDS[kind]
    module = theirs(2, 3).double().train()
    module.weight_ih_l0.requires_grad_(False)
    before = torch.get_rng_state()
    converted = ours.from_pytorch_impl(module)
    converted.to_pytorch_impl()
    assert torch.equal(before, torch.get_rng_state())
    assert converted.cells[0].fc_gate_x.weight.dtype == torch.float64
    assert not converted.cells[0].fc_gate_x.weight.requires_grad and converted.cells[0].fc_gate_h.weight.requires_grad
    assert converted.training and converted.cells[0].act_h.training if kind == "lstm" else converted.training


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(4, 4, 2)
        self.again = self.rnn
        self.parts = nn.ModuleList([nn.LSTMCell(4, 4), nn.GRU(4, 4), nn.GRUCell(4, 4)])
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = self.again(self.rnn(x)[0])[0]
        x = self.parts[1](x)[0]
        return self.fc(self.parts[2](self.parts[0](x[-1])[0]))


def test_models_are_converted_in_place_with_their_own_parameters():
    torch.manual_seed(0)
    model, x = Model().eval(), torch.randn(3, 2, 4)
    wanted, parameters = model(x), {id(p) for p in model.parameters()}
    assert convert_model_to_distiller_lstm(model) is model
    assert type(model.rnn) is DistillerLSTM and model.again is model.rnn
    assert type(model.parts[0]) is DistillerLSTMCell and type(model.parts[1]) is nn.GRU
    torch.testing.assert_close(model(x), wanted)
    assert convert_model_to_distiller_gru(model) is model
    assert type(model.parts[1]) is DistillerGRU and type(model.parts[2]) is DistillerGRUCell
    torch.testing.assert_close(model(x), wanted)
    assert {id(p) for p in model.parameters()} == parameters
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(x).sum().backward()
    optimizer.step()
    assert not torch.allclose(model(x), wanted)


def test_code_written_for_torchs_layers_goes_on_working():
    for kind in KINDS:
        theirs, ours = pair(kind, 3, 4, 2)
        ours.flatten_parameters()
        assert ours.proj_size == 0 and ours.hidden_size == 4 and ours.num_layers == 2 and not ours.batch_first
        x, initial = torch.randn(5, 2, 3), states(kind, 2, 2, 4)
        same(ours(x, hx=initial), theirs(x, hx=initial))
        cell = CELLS[kind][0](3, 4)
        one = states(kind, 2, 4)
        same(CELLS[kind][1].from_pytorch_impl(cell)(x[0], hx=one), cell(x[0], hx=one))


def test_a_model_that_is_one_lstm():
    lstm = nn.LSTM(2, 3)
    assert type(convert_model_to_distiller_lstm(lstm)) is DistillerLSTM
    plain = nn.Linear(2, 2)
    assert convert_model_to_distiller_lstm(plain) is plain


def test_word_language_model_keeps_its_results():
    from distiller_ng.models.language.rnn_model import RNNModel

    torch.manual_seed(0)
    model = RNNModel("LSTM", 11, 8, 8, 2).eval()
    tokens, hidden = torch.randint(0, 11, (5, 3)), model.init_hidden(3)
    wanted = model(tokens, hidden)
    convert_model_to_distiller_lstm(model)
    same(model(tokens, hidden), wanted)
    stats = collect_quant_stats(model, lambda model: model(tokens, hidden))
    assert {"encoder", "decoder", "rnn.cells.0.fc_gate_x", "rnn.cells.1.eltwisemult_hidden"} <= stats.keys()
    assert stats["rnn.cells.0.eltwiseadd_gate"]["output"]["total_numel"] == 5 * 3 * 32
    assert list(stats["rnn.cells.0.eltwiseadd_gate"]["inputs"]) == [0, 1]


def test_conversions_that_would_lose_something_are_refused():
    class Own(nn.LSTM):
        def forward(self, x):
            return super().forward(x)[0]

    model = nn.Sequential(nn.LSTM(2, 2), Own(2, 2))
    with pytest.raises(ArgumentError, match="1: Own has a forward"):
        convert_model_to_distiller_lstm(model)
    assert type(model[0]) is nn.LSTM  # nothing was replaced
    with pytest.raises(ArgumentError, match="proj_size=1"):
        DistillerLSTM.from_pytorch_impl(nn.LSTM(2, 2, proj_size=1))
    normed = nn.LSTM(2, 2)
    nn.utils.parametrizations.weight_norm(normed, "weight_ih_l0")
    with pytest.raises(ArgumentError, match="parametrized"):
        DistillerLSTM.from_pytorch_impl(normed)
    for wrong in (nn.GRU(2, 2), nn.Linear(2, 2), None):
        with pytest.raises(ArgumentError, match=r"expected a torch\.nn\.LSTM"):
            DistillerLSTM.from_pytorch_impl(wrong)
    replaced = DistillerLSTM(2, 2, 1)
    replaced.cells[0].fc_gate_x = nn.Sequential(nn.Linear(2, 8))
    with pytest.raises(ArgumentError, match="fc_gate_x is a Sequential"):
        replaced.to_pytorch_impl()


# -- wrong input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": 0}, "input_size"),
        ({"hidden_size": 2.0}, "hidden_size"),
        ({"num_layers": 0}, "num_layers"),
        ({"dropout": 1.5}, "dropout"),
        ({"dropout": True}, "dropout"),
        ({"bidirectional_type": 3}, "1 or 2"),
    ],
)
@each_kind
def test_wrong_arguments(kind, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        KINDS[kind][1](**{"input_size": 2, "hidden_size": 2, "num_layers": 1, **arguments})


@each_kind
@pytest.mark.parametrize("shape", [(4,), (3, 2, 5), (0, 2, 3), (2, 3, 3, 3)])
def test_wrong_shapes(kind, shape):
    with pytest.raises(ArgumentError, match="3 features"):
        KINDS[kind][1](3, 4, 1)(torch.ones(shape))


@each_kind
def test_wrong_states(kind):
    module, x = KINDS[kind][1](3, 4, 2), torch.ones(5, 2, 3)
    with pytest.raises(ArgumentError, match=r"shape \(2, 2, 4\)"):
        module(x, states(kind, 1, 2, 4))
    same(module.eval()(x, module.init_hidden(2)), module(x))


def test_names_at_top_level():
    assert distiller.modules.DistillerLSTM is DistillerLSTM
