"""The dependency graph as a whole: queries, errors, and work that grows with the model and no faster."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distiller_ng.errors import GraphError, TargetError
from distiller_ng.graph.coupling import Coupling
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.graph.labels import FIXED

X = torch.randn(2, 3, 6, 5)


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(150, 2))


def test_queries():
    graph = DependencyGraph.trace(small(), X)
    assert graph.removable("0.weight", 0).tolist() == [True] * 4
    assert graph.removable("4.weight", 0).tolist() == [False, False]
    assert graph.feeds("0.weight", 0)
    assert not graph.feeds("2.weight", 1)
    assert (graph.channels_of("0.weight", 0) == graph.channels_of("2.weight", 1)).all()
    assert graph.dims_of("4.weight") == 2
    assert len(set(graph.channels_of("4.weight", 1).tolist())) == 5


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        (lambda g: g.group("0.wieght", 0, [0]), TargetError, r"Did you mean.*0\.weight"),
        (lambda g: g.channels_of("9.weight", 0), TargetError, "no parameter '9.weight'"),
        (lambda g: g.channels_of("0.weight", 3), GraphError, "dimension 3 are not channels"),
        (lambda g: g.group("0", 0, range(4)), GraphError, "would leave nothing of '0.weight'"),
        (lambda g: g.group("4", 0, [0]), GraphError, "part of the model's output"),
    ],
)
def test_wrong_questions(query, error, message):
    graph = DependencyGraph.trace(small(), X)
    with pytest.raises(error, match=message):
        query(graph)


def test_names_of_wrapped_models_mean_the_same():
    graph = DependencyGraph.trace(nn.DataParallel(small()), X)
    assert str(graph.group("module.0", 0, [1])) == str(graph.group("0", 0, [1]))
    assert "0.weight[dim 0: 1]" in str(graph.group("module.0.weight", 0, [1]))


def test_parameters_that_take_no_part_are_named():
    model = small()
    model.extra = nn.Linear(2, 2)
    model.forward = lambda x: nn.Sequential.forward(model[:5], x)
    with pytest.raises(GraphError, match="takes no part in the forward pass"):
        DependencyGraph.trace(model, X).channels_of("extra.weight", 0)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.Conv2d(width, width, 1, groups=2)

    def forward(self, x):
        return x + self.b(self.n(self.a(x)).relu())


def pairs(model, monkeypatch):
    """How many equalities were collected, in how many calls."""
    calls = []
    real = Coupling.union
    monkeypatch.setattr(Coupling, "union", lambda self, a, b: (calls.append(a.size), real(self, a, b))[1])
    DependencyGraph.trace(model, torch.randn(1, 8, 4, 4))
    monkeypatch.undo()
    return len(calls), sum(calls)


def test_work_grows_with_the_model(monkeypatch):
    few, many = (nn.Sequential(*(Block(8) for _ in range(n)), nn.Conv2d(8, 2, 1)) for n in (4, 16))
    calls, size = pairs(few, monkeypatch)
    more_calls, more_size = pairs(many, monkeypatch)
    assert more_calls <= 4.5 * calls
    assert more_size <= 4.5 * size


def test_choices_leave_most_channels():
    """A view of (2, 4) may lose rows or columns: four columns are more than two rows."""

    class View(nn.Module):
        def __init__(self):
            super().__init__()
            self.n, self.a, self.b = 2, nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.b(self.a(x).view(-1, self.n, 4).tanh().flatten(1))

    graph = DependencyGraph.trace(View(), torch.randn(5, 3))
    assert (
        graph.channels_of("a.weight", 0).reshape(2, 4).tolist() == [graph.channels_of("a.weight", 0)[:4].tolist()] * 2
    )


def test_coupling_settles_pairs():
    coupling = Coupling()
    a, b = coupling.fresh(3), coupling.fresh(3)
    coupling.union(a, b[::-1].copy())
    coupling.fix(a[:1], "a reason")
    coupling.resolve()
    assert coupling.roots[a].tolist() == coupling.roots[b[::-1]].tolist()
    assert coupling.roots[b[2]] == coupling.roots[FIXED]
    assert len(set(coupling.roots[a].tolist())) == 3
    assert coupling.reasons == [(int(a[0]), "a reason")]


def test_buffers_alone_are_no_channels():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 2)
            self.register_buffer("ids", torch.arange(9)[None])
            self.table = nn.Embedding(9, 4)

        def forward(self, x):
            return self.a(x + self.table(self.ids[:, : x.shape[1]]))

    graph = DependencyGraph.trace(Positions(), torch.randn(2, 5, 4))
    assert not graph.removable("table.weight", 1).any()  # the input has its width
    assert all(not graph.removable("ids", dim).any() for name, dim in graph.axes if name == "ids")
    assert ("table.weight", 0) not in graph.axes or not graph.removable("table.weight", 0).any()
