"""Plans as data, conflicts between coupled layers, constants that move into biases."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from thinning_checks import State, error_of, run
from torch import nn

import distiller_ng as distiller
from distiller_ng.errors import CheckpointError, GraphError
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.thinning.apply import apply_plan
from distiller_ng.thinning.plan import Cut, ThinningPlan

X = (torch.randn(3, 4, 6, 5),)


class Sum(nn.Module):
    """Two convolutions that are added, and one that reads the sum."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 2, 3)

    def forward(self, x):
        return self.out(torch.relu(self.a(x) + self.b(x)))


def zero_filters(layer, *indices):
    with torch.no_grad():
        layer.weight[list(indices)] = 0
        if layer.bias is not None:
            layer.bias[list(indices)] = 0


def test_a_plan_lists_what_goes():
    model = Sum()
    zero_filters(model.a, 1, 3)
    zero_filters(model.b, 1, 3)
    plan = distiller.plan_thinning(model, X)
    assert plan.cuts == (
        Cut("a.weight", 0, (1, 3), 6),
        Cut("a.bias", 0, (1, 3), 6),
        Cut("b.weight", 0, (1, 3), 6),
        Cut("b.bias", 0, (1, 3), 6),
        Cut("out.weight", 1, (1, 3), 6),
    )
    assert plan.asked_by == ("a.weight", "b.weight")
    assert "a.weight    dim 0: 6 -> 4" in str(plan)
    assert str(ThinningPlan()) == "nothing to remove"


def test_plans_are_saved_and_loaded(tmp_path):
    model = Sum()
    zero_filters(model.a, 0)
    plan = distiller.plan_thinning(model, X)
    loaded = ThinningPlan.load(plan.save(tmp_path / "plan.json"))
    assert loaded == plan
    apply_plan(model, loaded, X)
    assert model.a.out_channels == model.b.out_channels == model.out.in_channels == 5
    with pytest.raises(GraphError, match="was made for 'a.weight' with 6 entries"):
        apply_plan(model, loaded, X)
    assert model.a.weight.shape[0] == 5


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 9}', '{"version": 1, "cuts": 3}', "\x00\xff"])
def test_damaged_plans(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(CheckpointError):
        ThinningPlan.load(path)


def test_a_plan_of_another_model_changes_nothing(tmp_path):
    model = Sum()
    zero_filters(model.a, 0)
    data = json.loads(json.dumps(distiller.plan_thinning(model, X).as_dict()))
    data["cuts"].append(["nowhere.weight", 0, [0], 6])
    before = State.of(model)
    with pytest.raises(ValueError, match="nowhere.weight"):
        apply_plan(model, ThinningPlan.from_dict(data), X)
    assert State.of(model).values == before.values


def test_coupled_layers_with_other_zeros_keep_them(caplog):
    model = Sum()
    zero_filters(model.a, 0, 1)
    zero_filters(model.b, 1, 2)
    with caplog.at_level(logging.WARNING):
        report = distiller.remove_filters(model, example_inputs=X)
    assert model.a.out_channels == 5
    assert "1 zero structures of 'a.weight' stay: it is coupled with 'b.weight'" in caplog.text
    assert report.error <= 1e-6


def test_the_first_layer_decides_by_the_ancestors_rule(caplog):
    """Each loses its own filters; what reads the sum loses those of the first."""
    model = Sum()
    zero_filters(model.a, 0, 1)
    zero_filters(model.b, 1, 2)
    a, b, out = (layer.weight.detach().clone() for layer in (model.a, model.b, model.out))
    with caplog.at_level(logging.WARNING):
        distiller.remove_filters(model, example_inputs=X, conflict="first")
    assert torch.equal(model.a.weight, a[[2, 3, 4, 5]])
    assert torch.equal(model.b.weight, b[[0, 3, 4, 5]])
    assert torch.equal(model.out.weight, out[:, [2, 3, 4, 5]])
    assert "coupled layers lose different filters (conflict: first)" in caplog.text


def test_different_numbers_cannot_be_settled():
    model = Sum()
    zero_filters(model.a, 0, 1)
    zero_filters(model.b, 1)
    before = State.of(model)
    with pytest.raises(GraphError, match=r"different numbers of filters: .*'a.weight': 2, 'b.weight': 1"):
        distiller.remove_filters(model, example_inputs=X, conflict="first")
    assert State.of(model).values == before.values


class LinearSum(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 7), nn.Linear(4, 7), nn.Linear(7, 2)

    def forward(self, x):
        return self.c(self.a(x) + self.b(x))


@pytest.mark.parametrize("gone", [(0, 2, 5), (1,), (0, 6)])
def test_b20_linear_layers_that_are_added(gone):
    """Distiller compared the directives of the two in pairs, which stumbled over odd lengths."""
    model = LinearSum()
    zero_filters(model.a, *gone)
    zero_filters(model.b, *gone)
    x = (torch.randn(3, 4),)
    before = run(model, x)
    distiller.remove_filters(model, example_inputs=x)
    assert model.a.out_features == model.b.out_features == model.c.in_features == 7 - len(gone)
    assert error_of(run(model, x), before) < 1e-6


class Shifted(nn.Module):
    """A norm leaves its shift in a channel whose filter is zero."""

    def __init__(self, padding, linear):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.next = nn.Linear(6, 3) if linear else nn.Conv2d(6, 3, 3, padding=padding)
        nn.init.uniform_(self.bn.bias, 0.5, 1)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x)))
        return self.next(x.mean((2, 3)) if isinstance(self.next, nn.Linear) else x)


@pytest.mark.parametrize(("padding", "linear", "exact"), [(0, True, True), (0, False, True), (1, False, False)])
def test_constants_move_into_the_next_bias(padding, linear, exact, caplog):
    model = Shifted(padding, linear)
    zero_filters(model.conv, 2, 4)
    before = run(model, X)
    with caplog.at_level(logging.WARNING):
        report = distiller.remove_filters(model, example_inputs=X)
    assert model.conv.out_channels == 4
    assert report.folded == (("next",) if exact else ())
    assert (error_of(run(model, X), before) < 1e-6) == exact
    other = (torch.randn(2, 4, 6, 5),)
    assert run(model, other)[0].shape[0] == 2
    assert ("changed the model's outputs" in caplog.text) != exact


def test_values_that_happen_to_be_constant_are_not_folded():
    """A dead unit of live weights is removed as its masked twin has it."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Hardtanh(), nn.Linear(5, 2))
    with torch.no_grad():
        model[0].bias.fill_(-100)  # every input of the second layer is 0, so its outputs are its biases
    x = (torch.randn(1, 4),)
    graph = DependencyGraph.trace(model, x)
    report = apply_plan(model, ThinningPlan.for_channels(graph, graph.channels_of("2.weight", 0)[:2].tolist()), x)
    assert report.folded == ()
    assert model[4].in_features == 3


def test_a_gate_makes_no_constant():
    """One example of batch size 1 looks constant everywhere; another input shows that it is not."""

    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.bn, self.g, self.out = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(4, 1), nn.Linear(5, 2)
            nn.init.uniform_(self.bn.bias, 0.5, 1)

        def forward(self, x):
            return self.out(self.bn(self.a(x)) * self.g(x))

    model = Gate()
    zero_filters(model.a, 0)
    report = distiller.remove_filters(model, example_inputs=(torch.randn(1, 4),))
    assert report.folded == ()
    assert model.a.out_features == 4


def test_heads_go_twice():
    """Attention that lost heads can lose more, also between two sequences."""
    model = nn.TransformerDecoderLayer(16, 4, 12, batch_first=True)
    x = (torch.randn(2, 5, 16), torch.randn(2, 3, 16))
    for heads in (3, 2):
        graph = DependencyGraph.trace(model, x)
        for attention in ("self_attn", "multihead_attn"):
            graph = DependencyGraph.trace(model, x)
            channel = int(graph.channels_of(attention + ".in_proj_weight", 0)[0])
            assert apply_plan(model, ThinningPlan.for_channels(graph, [channel]), x).error < 1e-4
        assert model.self_attn.num_heads == model.multihead_attn.num_heads == heads
        assert model.self_attn.in_proj_weight.shape == (3 * heads * 4, 16)
