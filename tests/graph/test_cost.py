"""Costs of a traced model, with and without some of its channels."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from distiller_ng.errors import ArgumentError
from distiller_ng.graph.cost import CostModel, MacsCost, ParamsCost
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.models import create_model
from distiller_ng.reports.compute import layer_costs
from distiller_ng.thinning.apply import apply_plan
from distiller_ng.thinning.plan import ThinningPlan


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.depth = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.back = nn.Conv2d(12, 8, 1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.fc = nn.Linear(8 * 16, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.up(self.back(self.depth(F.relu(self.wide(x)))))
        return self.fc(F.avg_pool2d(x, 2).flatten(1))


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 12, 1)
        self.grouped = nn.Conv2d(12, 24, 3, groups=4)
        self.transposed = nn.ConvTranspose2d(24, 8, 3, groups=2)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.last(self.transposed(self.grouped(self.first(x))))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.lstm = nn.LSTM(6, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(16, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x, _ = self.lstm(self.embed(x))
        x, _ = self.gru(x)
        return self.head(x)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 12) for _ in range(3))
        self.out = nn.Linear(12, 8)
        self.heads = 3

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


MODELS = {
    "residual": (Residual, (2, 3, 8, 8)),
    "grouped": (Grouped, (1, 3, 6, 6)),
    "recurrent": (Recurrent, (2, 5, 4)),
    "attention": (Attention, (2, 5, 8)),
}


def traced(name):
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model = build()
    return model, torch.randn(shape), DependencyGraph.trace(model, torch.randn(shape))


def some_channels(graph, seed):
    """A third of the removable channels, in whole steps, leaving some of every dimension."""
    numbers = sorted({int(n) for channels in graph.axes.values() for n in channels} - graph.frozen)
    generator = torch.Generator().manual_seed(seed)
    chosen = {n for n in numbers if torch.rand((), generator=generator) < 0.34} or {numbers[seed]}
    for channels in graph.axes.values():
        if set(channels.tolist()) <= chosen:
            chosen -= {int(channels[0])}
    return chosen


@pytest.mark.parametrize("name", MODELS)
def test_macs_are_those_of_the_compute_summary(name):
    model, x, graph = traced(name)
    measured = {}
    for cost in layer_costs(model, x):
        measured[cost.name] = measured.get(cost.name, 0) + cost.macs
    assert MacsCost().by_layer(graph) == measured
    assert MacsCost().of(graph) == sum(measured.values())


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_counted_once(name):
    model, _, graph = traced(name)
    assert ParamsCost().of(graph) == sum(p.numel() for p in model.parameters())
    assert ParamsCost().by_layer(graph) == {n: p.numel() for n, p in model.named_parameters()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MODELS)
def test_cost_after_removal_is_that_of_the_thinned_model(name, seed):
    model, x, graph = traced(name)
    removed = some_channels(graph, seed)
    macs, params = MacsCost().of(graph, removed), ParamsCost().of(graph, removed)
    products = MacsCost(products=True).of(graph, removed)
    assert macs < MacsCost().of(graph)
    assert params < ParamsCost().of(graph)
    apply_plan(model, ThinningPlan.for_channels(graph, sorted(removed)), x)
    assert macs == sum(cost.macs for cost in layer_costs(model, x))
    assert params == sum(p.numel() for p in model.parameters())
    assert products == MacsCost(products=True).of(DependencyGraph.trace(model, x))


def test_places_of_a_grouped_convolution():
    # One place of 3 in each of 4 groups of inputs: first 12 -> 8 filters, grouped reads 2 channels instead of 3.
    _, _, graph = traced("grouped")
    channels = graph.channels_of("first.weight", 0)
    removed = set(channels[[0, 3, 6, 9]].tolist())
    assert MacsCost().by_layer(graph, removed) == {
        "first": 36 * 8 * 3,
        "grouped": 16 * 24 * 2 * 9,
        "transposed": 16 * 24 * 4 * 9,
        "last": 36 * 2 * 8,
    }


def test_channels_of_a_transposed_grouped_convolution():
    # Both groups of outputs lose the first of 4 places: last reads 6 channels.
    _, _, graph = traced("grouped")
    removed = set(graph.channels_of("last.weight", 1)[[0, 4]].tolist())
    costs = MacsCost().by_layer(graph, removed)
    assert (costs["transposed"], costs["last"]) == (16 * 24 * 3 * 9, 36 * 2 * 6)


def test_attention_heads_and_products_of_activations():
    _, _, graph = traced("attention")
    projections = 4 * 10 * 8 * 12
    products = 2 * (2 * 3 * 5 * 5 * 4)
    assert MacsCost().of(graph) == projections
    assert MacsCost(products=True).of(graph) == projections + products
    head = set(graph.channels_of("q.weight", 0)[:4].tolist()) | set(graph.channels_of("v.weight", 0)[:4].tolist())
    assert MacsCost().of(graph, head) == projections * 2 // 3
    assert MacsCost(products=True).of(graph, head) == (projections + products) * 2 // 3


class Written(nn.Module):
    """Products with parameters that no layer module makes."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 8)
        self.w = nn.Parameter(torch.randn(8, 4))
        self.b = nn.Parameter(torch.randn(4))
        self.mixing = nn.Parameter(torch.randn(4, 3))

    def forward(self, x):
        x = torch.addmm(self.b, self.fc(x), self.w)
        return torch.einsum("bi,ij->bj", x, self.mixing) @ self.mixing.t()


def test_products_with_parameters_are_layers():
    graph = DependencyGraph.trace(Written(), torch.randn(5, 6))
    assert MacsCost().of(graph) == 5 * (6 * 8 + 8 * 4 + 4 * 3 + 3 * 4)
    first = set(graph.channels_of("fc.weight", 0)[:2].tolist())
    assert MacsCost().of(graph, first) == 5 * (6 * 6 + 6 * 4 + 4 * 3 + 3 * 4)
    assert ParamsCost().of(graph, first) == 6 * 6 + 6 + 6 * 4 + 4 + 12


class Batched(nn.Module):
    def forward(self, x):
        y = torch.baddbmm(x, x, x.transpose(1, 2) @ x)
        return y, torch.einsum("b...i,b...j->b...ij", x, y)


def test_products_of_activations_by_shape():
    graph = DependencyGraph.trace(Batched(), torch.randn(2, 5, 3))
    assert MacsCost().of(graph) == 0
    assert MacsCost(products=True).of(graph) == 2 * 3 * 3 * 5 + 2 * 5 * 3 * 3 + 2 * 5 * 3 * 3


def test_a_module_called_twice_costs_twice_and_has_its_parameters_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4, bias=False)

        def forward(self, x):
            return self.fc(self.fc(x))

    graph = DependencyGraph.trace(Twice(), torch.randn(3, 4))
    assert MacsCost().by_layer(graph) == {"fc": 2 * 3 * 16}
    assert ParamsCost().of(graph) == 16


def test_cells_and_bilinear_layers():
    class Cells(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.gru, self.pair = nn.LSTMCell(3, 4), nn.GRUCell(4, 5), nn.Bilinear(5, 4, 2)

        def forward(self, x):
            h, _ = self.lstm(x)
            return self.pair(self.gru(h), h)

    graph = DependencyGraph.trace(Cells(), torch.randn(7, 3))
    expected = {"lstm": 7 * 16 * 7, "gru": 7 * 15 * 9, "pair": 7 * 2 * 5 * 4}
    assert MacsCost().by_layer(graph) == expected
    assert {cost.name: cost.macs for cost in layer_costs(graph.model, torch.randn(7, 3))} == expected


def test_wrapped_and_unused_parts():
    model = nn.DataParallel(nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 1, 1)))
    model.module.unused = nn.Linear(3, 3)
    model.module.forward = lambda x: model.module[2](model.module[1](model.module[0](x)))
    graph = DependencyGraph.trace(model, torch.randn(1, 2, 8))
    assert MacsCost().by_layer(graph) == {"0": 6 * 4 * 6, "2": 6 * 4}
    assert ParamsCost().of(graph) == 28 + 5 + 12


class Masked(nn.Module):
    """Weights that are computed, sliced and transposed before a layer uses them."""

    def __init__(self):
        super().__init__()
        self.first = parametrizations.weight_norm(nn.Conv2d(3, 6, 1))
        self.second = parametrizations.spectral_norm(nn.Conv2d(6, 4, 1))
        self.both = nn.Parameter(torch.randn(10, 4))

    def forward(self, x):
        x = self.second(self.first(x)).mean((2, 3))
        x = F.linear(x, self.both[:7]).relu()
        return x[:, :4] @ (self.both[:3].t() @ self.both[3:6])


def test_weights_that_are_computed():
    torch.manual_seed(0)
    graph = DependencyGraph.trace(Masked(), torch.randn(2, 3, 5, 5))
    costs = MacsCost().by_layer(graph)
    assert costs == {"first": 50 * 18, "second": 50 * 24, "": 2 * 4 * 7 + 2 * 4 * 4}
    channels = graph.channels_of("first.parametrizations.weight.original1", 0)
    removed = {int(channels[0]), int(channels[4])} - graph.frozen
    if removed:
        assert MacsCost().by_layer(graph, removed)["first"] == 50 * 3 * (6 - len(removed))


def test_cross_attention_uses_parts_of_one_weight():
    model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    inputs = (torch.randn(1, 4, 8), torch.randn(1, 3, 8))
    graph = DependencyGraph.trace(model, inputs)
    assert MacsCost().of(graph) == sum(cost.macs for cost in layer_costs(model, inputs)) == 4480


def test_unbatched_convolution():
    graph = DependencyGraph.trace(nn.Conv2d(2, 3, 3), torch.randn(2, 5, 5))
    assert MacsCost().of(graph) == 9 * 3 * 18


def test_a_model_without_layers_costs_nothing():
    graph = DependencyGraph.trace(nn.ReLU(), torch.randn(2))
    assert (MacsCost().of(graph), ParamsCost().of(graph), MacsCost().by_layer(graph)) == (0.0, 0.0, {})


@pytest.mark.parametrize("cost", [MacsCost(), ParamsCost()], ids=lambda c: c.name)
@pytest.mark.parametrize("removed", [[-1], {10**6}])
def test_numbers_the_graph_does_not_have(cost, removed):
    _, _, graph = traced("residual")
    with pytest.raises(ArgumentError, match="channels_of"):
        cost.of(graph, removed)


def test_any_collection_of_numbers_in_any_order():
    _, _, graph = traced("residual")
    numbers = graph.channels_of("stem.weight", 0)[:3]
    expected = MacsCost().of(graph, frozenset(numbers.tolist()))
    assert MacsCost().of(graph, numbers) == MacsCost().of(graph, [*numbers.tolist(), int(numbers[0])]) == expected


def test_copies_and_pickles():
    _, _, graph = traced("attention")
    cost = MacsCost(products=True)
    expected = cost.of(graph)
    for twin in (copy.deepcopy(cost), pickle.loads(pickle.dumps(cost))):
        assert twin.of(graph) == expected


def test_the_protocol_is_met():
    assert isinstance(MacsCost(), CostModel)
    assert isinstance(ParamsCost(), CostModel)
    assert (MacsCost().name, ParamsCost().name) == ("macs", "params")


@pytest.mark.parametrize(
    ("arch", "dataset", "macs"),
    [("resnet20_cifar", "cifar10", 40813184), ("simplenet_cifar", "cifar10", 651720)],
)
def test_macs_of_models_of_the_zoo(arch, dataset, macs):
    model = create_model(False, dataset, arch, parallel=False)
    assert MacsCost().of(DependencyGraph.trace(model, torch.randn(1, 3, 32, 32))) == macs
