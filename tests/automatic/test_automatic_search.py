"""The budgeted search: always within the budget, never worse than uniform, the same after an interruption."""

from __future__ import annotations

import json
import math

import pytest
import torch
from automatic_nets import Attention, Shared
from torch import nn

import distiller_ng as distiller
from distiller_ng.automatic import search_compression
from distiller_ng.automatic._search_space import SearchSpace, Unit
from distiller_ng.automatic.candidates import Candidates
from distiller_ng.automatic.search_picture import layers_table, overview_table, pareto_table, search_to_picture
from distiller_ng.errors import ArgumentError, GraphError, TargetError

SMALL = {"population": 5, "generations": 2, "seed": 3}
X = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A residual block behind a depthwise convolution, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.one = nn.Conv2d(8, 12, 3, padding=1)
        self.two = nn.Conv2d(12, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.depth(self.stem(x)).relu()
        x = (x + self.two(self.one(x).relu())).relu()
        return self.fc(x.mean((2, 3)))


def net():
    torch.manual_seed(0)
    return Net().eval()


REFERENCE = net()(X).detach()


def agreement(model):
    """How often the model still says what the original says, and how far its outputs are off."""
    with torch.no_grad():
        out = model(X)
    same = 100 * (out.argmax(1) == REFERENCE.argmax(1)).float().mean().item()
    return same, 100.0, (out - REFERENCE).square().mean().item()


def plain(result):
    return json.dumps(result.as_dict())


@pytest.mark.parametrize(
    ("budget", "settings"),
    [
        ({"macs": 0.5}, {}),
        ({"macs": 0.5}, {"group": "filter"}),
        ({"size": 0.2}, {"bits": [2, 4, 8]}),
        ({"size": 0.25, "macs": 0.6}, {"bits": [4, 8], "group": "filter"}),
        ({"params": 0.3, "size": 0.5}, {}),
        ({"size": 0.3}, {"bits": [4, 8, 32], "max_sparsity": 0}),
    ],
)
def test_every_candidate_is_within_the_budget_and_the_best_is_never_worse_than_uniform(budget, settings):
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = search_compression(model, X[:1], agreement, budget, **SMALL, **settings)
    for one in found.history:
        assert all(one.shares[name] <= limit + 1e-9 for name, limit in budget.items())
    assert found.best.rank >= found.uniform.rank
    assert found.best in found.history and found.uniform.origin == "uniform"
    assert found.original.top1 == 100 and found.original.shares["macs"] == 1
    assert agreement(found.compressed_model()) == pytest.approx((found.best.top1, found.best.top5, found.best.loss))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_best_beats_the_same_level_everywhere():
    found = search_compression(net(), X[:1], agreement, {"macs": 0.4}, population=8, generations=4)
    assert found.best.loss < 0.8 * found.uniform.loss


def test_each_candidate_is_evaluated_once():
    seen = []

    def evaluate(model):
        seen.append(tuple(p.count_nonzero().item() for p in model.parameters()))
        return agreement(model)

    found = search_compression(net(), X[:1], evaluate, {"macs": 0.5}, **SMALL)
    assert len(seen) == len(found.history) + 1  # the original
    assert len({json.dumps(one.as_dict()["choices"]) for one in found.history}) == len(found.history)


def test_the_seed_decides():
    one, same, other = (
        search_compression(net(), X[:1], agreement, {"macs": 0.5}, population=5, generations=1, seed=seed)
        for seed in (1, 1, 2)
    )
    assert plain(one) == plain(same) != plain(other)


@pytest.mark.parametrize("after", [1, 7, 12])
def test_an_interrupted_search_goes_on_to_the_same_result(tmp_path, after):
    calls = []

    def evaluate(model):
        calls.append(1)
        if len(calls) == after:
            raise KeyboardInterrupt
        return (*agreement(model)[:2], agreement(model)[2] + torch.rand(()).item() * 1e-3)

    file = tmp_path / "search.json"
    with pytest.raises(KeyboardInterrupt):
        search_compression(net(), X[:1], evaluate, {"macs": 0.5}, **SMALL, results_file=file)
    resumed = search_compression(net(), X[:1], evaluate, {"macs": 0.5}, **SMALL, results_file=file)
    assert len(calls) == len(resumed.history) + 2  # one was lost
    calls.append(1)
    whole = search_compression(net(), X[:1], evaluate, {"macs": 0.5}, **SMALL)
    assert plain(resumed) == plain(whole)


def test_a_file_of_another_search_is_refused(tmp_path):
    file = tmp_path / "search.json"
    run = {"population": 2, "generations": 0, "results_file": file}
    search_compression(net(), X[:1], agreement, {"macs": 0.5}, **run)
    search_compression(net(), X[:1], agreement, {"macs": 0.3}, **run)  # another budget may use what is known
    with pytest.raises(ArgumentError, match=r"another group \('element', asked for is 'filter'\)"):
        search_compression(net(), X[:1], agreement, {"macs": 0.5}, group="filter", **run)
    other = net()
    with torch.no_grad():
        other.fc.bias += 1
    with pytest.raises(ArgumentError, match="a search of other weights: remove it"):
        search_compression(other, X[:1], agreement, {"macs": 0.5}, **run)
    file.write_text("{}")
    with pytest.raises(ArgumentError, match="holds no search"):
        search_compression(net(), X[:1], agreement, {"macs": 0.5}, **run)


@pytest.mark.slow
def test_processes_give_the_same_result():
    alone, together = (
        search_compression(
            net(), X[:1], agreement, {"macs": 0.5}, group="filter", population=4, generations=1, processes=many
        )
        for many in (1, 2)
    )
    assert [one.choices for one in alone.history] == [one.choices for one in together.history]
    assert together.best.loss == pytest.approx(alone.best.loss)


def test_what_cannot_be_sent_to_a_process_is_told():
    with pytest.raises(ArgumentError, match=r"processes=2: .* importable by name"):
        search_compression(net(), X[:1], lambda model: 1.0, {"macs": 0.5}, population=2, processes=2)


def test_accuracy_alone_is_enough_and_nan_is_the_worst():
    scores = iter([50.0, *[math.nan, 3.0] * 20])
    found = search_compression(net(), X[:1], lambda model: next(scores), {"macs": 0.5}, population=4, generations=0)
    assert found.best.top1 == 3.0 and math.isnan(found.best.loss)
    assert all(not math.isnan(one.top1) for one in found.pareto())


def test_a_function_that_trains_leaves_the_model_alone():
    model = net()
    before = model.fc.weight.clone()

    def train(copy):
        torch.nn.functional.mse_loss(copy.train()(X), REFERENCE).backward()
        torch.optim.SGD(copy.parameters(), 0.1).step()
        return agreement(copy.eval())

    search_compression(model, X[:1], train, {"macs": 0.5}, population=3, generations=0)
    assert torch.equal(model.fc.weight, before) and model.fc.weight.grad is None


def test_the_pareto_front_is_what_nothing_beats():
    found = search_compression(net(), X[:1], agreement, {"macs": 0.7}, **SMALL)
    front = found.pareto()
    for one in front:
        better = [o for o in found.history if o.top1 >= one.top1 and o.shares["macs"] < one.shares["macs"]]
        assert not better
    assert [one.shares["macs"] for one in front] == sorted(one.shares["macs"] for one in front)
    assert max(one.top1 for one in found.history) == front[-1].top1


def test_a_latency_budget_is_measured(monkeypatch):
    def share(candidate, original, inputs):  # what a machine whose time is its channels would show
        return (
            sum(p.numel() for p in candidate.parameters()) / sum(p.numel() for p in original.parameters()) * 0.9 + 0.1
        )

    monkeypatch.setattr("distiller_ng.automatic.search.latency_share", share)
    found = search_compression(net(), X[:1], agreement, {"latency": 0.6}, group="filter", population=4, generations=1)
    assert all(0.1 < one.shares["latency"] <= 0.6 for one in found.history)
    assert len(found.history) > 4


def test_a_real_latency_is_a_share():
    from distiller_ng.automatic._search_latency import latency_share
    from distiller_ng.graph.inputs import as_example_inputs

    large, small = nn.Sequential(nn.Linear(600, 600)), nn.Sequential(nn.Linear(600, 6))
    assert 0 < latency_share(small, large, as_example_inputs(torch.randn(32, 600))) < 0.9


ODD = {
    "shared": (Shared, (torch.randn(4, 6),)),
    "attention": (Attention, (torch.randn(2, 5, 8),)),
    "linear": (lambda: nn.Sequential(nn.Linear(4, 10, bias=False), nn.ReLU(), nn.Linear(10, 3)), (torch.randn(2, 4),)),
    "one layer": (lambda: nn.Linear(4, 3), (torch.randn(2, 4),)),
    "parallel": (lambda: nn.DataParallel(Net()), (X[:1],)),
    "bfloat16": (lambda: Net().bfloat16(), (X[:1].bfloat16(),)),
    "channels last": (lambda: Net().to(memory_format=torch.channels_last), (X[:1],)),
    "recurrent": (lambda: nn.LSTM(4, 6), (torch.randn(3, 1, 4),)),
}


@pytest.mark.parametrize("bits", [(), (4, 8)])
@pytest.mark.parametrize("name", ODD)
def test_odd_models(name, bits):
    factory, inputs = ODD[name]
    torch.manual_seed(0)
    model = factory().eval()

    def norm(copy):
        out = copy(*inputs)
        return float((out[0] if isinstance(out, tuple) else out).float().abs().mean())

    budget = {"size": 0.5}
    found = search_compression(model, inputs, norm, budget, bits=bits, population=3, generations=1)
    assert found.best.shares["size"] <= 0.5
    assert "version: 1" in found.schedule_text(4)


@pytest.mark.parametrize(("group", "bits"), [("element", ()), ("filter", ()), ("filter", (4, 8)), ("element", (4,))])
def test_the_schedule_trains_to_the_levels_found(tmp_path, group, bits):
    model = net()
    budget = {"size": 0.2} if bits else {"macs": 0.5}
    found = search_compression(model, X[:1], agreement, budget, group=group, bits=bits, population=4, generations=1)
    (tmp_path / "found.yaml").write_text(found.schedule_text(4))
    expected = found.compressed_model()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    scheduler = distiller.file_config(model, optimizer, str(tmp_path / "found.yaml"), example_inputs=(X[:1],))
    for epoch in range(4):
        scheduler.on_epoch_begin(epoch)
        for step in range(2):
            scheduler.on_minibatch_begin(epoch, step, 2)
            loss = scheduler.before_backward_pass(epoch, step, 2, model(X[:8]).square().mean())
            loss.backward()
            scheduler.before_parameter_optimization(epoch, step, 2, optimizer)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.on_minibatch_end(epoch, step, 2)
        scheduler.on_epoch_end(epoch)
    for name, layer in (("stem", model.stem), ("one", model.one), ("two", model.two), ("fc", model.fc)):
        weight = getattr(expected, name).weight
        assert layer.weight.shape == weight.shape
        if group == "element" and not bits:
            assert int((layer.weight == 0).sum()) == pytest.approx(int((weight == 0).sum()), abs=1)
        if bits:
            few = found.best.choices[f"{name}.weight"].bits
            assert f"weight_bits={few})" in str(layer)


@pytest.mark.parametrize("epochs", [2, 3, 5, 20, 200])
@pytest.mark.parametrize("group", ["element", "filter"])
def test_schedules_for_any_number_of_epochs_are_valid(tmp_path, group, epochs):
    found = search_compression(net(), X[:1], agreement, {"macs": 0.5}, group=group, population=2, generations=0)
    (tmp_path / "found.yaml").write_text(found.schedule_text(epochs))
    model = net()
    scheduler = distiller.file_config(
        model, torch.optim.SGD(model.parameters(), 0.1), str(tmp_path / "found.yaml"), example_inputs=(X[:1],)
    )
    assert scheduler is not None


def test_a_schedule_needs_two_epochs():
    found = search_compression(net(), X[:1], agreement, {"macs": 0.5}, population=2, generations=0)
    with pytest.raises(ArgumentError, match="a whole number from 2 on"):
        found.schedule_text(1)


def test_tables_and_picture(tmp_path):
    found = search_compression(net(), X[:1], agreement, {"macs": 0.5}, group="filter", population=4, generations=0)
    assert [row[0] for row in overview_table(found).rows] == ["as it is", "uniform", "best"]
    table = layers_table(found)
    assert [row[-1] for row in table.rows if row[0] == "two.weight"] == ["with stem.weight"]
    assert len(pareto_table(found).rows) == len(found.pareto())
    search_to_picture(found, tmp_path / "search.svg")
    assert "Pareto front" in (tmp_path / "search.svg").read_text() or (tmp_path / "search.svg").stat().st_size > 1000
    with pytest.raises(ArgumentError, match="a picture ends in"):
        search_to_picture(found, tmp_path / "search.gif")


@pytest.mark.parametrize(
    ("budget", "settings", "text"),
    [
        ({}, {}, "what may remain"),
        ({"flops": 0.5}, {}, r"no budget is called 'flops'"),
        ({"macs": 0}, {}, "above 0 and at most 1"),
        ({"macs": 50}, {}, "above 0 and at most 1"),
        ({"macs": "half"}, {}, "above 0 and at most 1"),
        ({"latency": 0.5}, {}, "needs group 'filter'"),
        ({"macs": 0.01}, {}, r"no candidate is within macs=0.01: with every parameter at its smallest 0\.\d+ of macs"),
        ({"size": 0.1}, {"bits": [8], "max_sparsity": 0}, "no candidate is within size=0.1"),
        ({"macs": 0.5}, {"group": "layers"}, "unknown group"),
        ({"macs": 0.5}, {"bits": [16]}, "or 32 for floating point"),
        ({"macs": 0.5}, {"bits": 8}, r"bits is a list like \[4, 8\]"),
        ({"macs": 0.5}, {"max_sparsity": 1}, "max_sparsity is a number from 0 to below 1"),
        ({"macs": 0.5}, {"max_sparsity": 0}, "nothing can be decided"),
        ({"macs": 0.5}, {"population": 1}, "population is a whole number from 2 on"),
        ({"macs": 0.5}, {"generations": -1}, "generations is a whole number from 0 on"),
        ({"macs": 0.5}, {"processes": 0}, "processes is a whole number from 1 on"),
    ],
)
def test_mistakes_are_told(budget, settings, text):
    with pytest.raises(ArgumentError, match=text):
        search_compression(net(), X[:1], agreement, budget, **settings)


def test_other_mistakes():
    with pytest.raises(ArgumentError, match="evaluate is a function"):
        search_compression(net(), X[:1], 97.0, {"macs": 0.5})
    with pytest.raises(ArgumentError, match=r"top-1 in percent, or \(top1, top5, loss\).*got 'good'"):
        search_compression(net(), X[:1], lambda model: "good", {"macs": 0.5})
    with pytest.raises(TargetError, match=r"conv9"):
        search_compression(net(), X[:1], agreement, {"macs": 0.5}, params=["conv9.weight"])
    with pytest.raises(GraphError):
        search_compression(net(), torch.randn(1, 5), agreement, {"macs": 0.5}, group="filter")


def test_levels_of_units_take_as_many_channels_as_their_step():
    for width in (2, 3, 7, 24, 99):
        unit = Unit(("w",), width, width - 1)
        assert [int(unit.level(step) * width + 1e-9) for step in range(width)] == list(range(width))


def test_units_are_the_coupled_groups():
    candidates = Candidates(net(), X[:1], group="filter")
    space = SearchSpace(candidates, "__ALL_PRUNABLE__", [8], 0.9)
    assert [unit.names for unit in space.units] == [("stem.weight", "depth.weight", "two.weight"), ("one.weight",)]
    assert [unit.steps for unit in space.units] == [8, 12]
    assert space.quantized[-1] == "fc.weight"
