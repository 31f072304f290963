"""Tracing: any inputs, any wrapper, names and lines for everything, the model as it was."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, GraphError
from distiller_ng.graph.inputs import ExampleInputs, as_example_inputs, flat_tensors
from distiller_ng.graph.trace import op_name, trace

X = torch.randn(2, 4)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.b.weight = self.a.weight

    def forward(self, x, scale=1.0):
        with torch.no_grad():
            x = self.norm(x) * 2
            with torch.enable_grad():
                x = x + 1
        return self.b(self.a(x)) * scale


def test_operators_parameters_and_places():
    traced = trace(nn.Sequential(Tied()), X)
    assert [op_name(node) for node in traced.nodes] == ["batch_norm", "mul", "add", "linear", "linear", "mul"]
    first, second = (node for node in traced.nodes if op_name(node) == "linear")
    assert [traced.tensors[node] for node in (first.args[1], second.args[1])] == ["0.a.weight", "0.a.weight"]
    assert traced.module_of(first) == "0.a"
    assert traced.modules_of(first) == ["", "0", "0.a"]
    assert "test_trace.py:" in traced.source_of(first)
    assert traced.describe(second).startswith("operator 'linear' in module '0.b', ")
    assert [op_name(node) for node in traced.outputs] == ["mul"]


def test_regions_without_gradients_or_of_another_precision_are_followed():
    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.a(x).float()

    assert "linear" in [op_name(node) for node in trace(Cast(), X).nodes]


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager"), lambda m: m])
def test_wrappers_are_looked_through(wrap):
    traced = trace(wrap(Tied()), (X, 2.0))
    assert type(traced.model) is Tied
    assert set(traced.tensors.values()) >= {"a.weight", "a.bias", "b.bias", "norm.weight"}


def test_the_model_is_left_as_it_was():
    model = Tied().train()
    model.norm.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = torch.get_rng_state()
    trace(model, X)
    assert model.training
    assert not model.norm.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)


@dataclass
class Box:
    first: Tensor
    rest: list


class Boxed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x):
        return Box(self.a(x), [self.b(x), None, "text"])


def test_objects_that_hold_tensors_are_opened():
    traced = trace(Boxed(), X)
    assert [traced.module_of(node) for node in traced.outputs] == ["a", "b"]
    assert set(traced.tensors.values()) == {"a.weight", "a.bias", "b.weight", "b.bias"}
    assert [tuple(t.shape) for t in flat_tensors(Boxed()(X))] == [(2, 3), (2, 2)]


class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


class Broken(nn.Module):
    def forward(self, x):
        return x.missing


@pytest.mark.parametrize(
    ("model", "inputs", "parts"),
    [
        (Branch(), X, ["Branch cannot be traced at", "test_trace.py:", "if x.sum() > 0"]),
        (Broken(), X, ["Broken cannot be traced at", "return x.missing", "AttributeError"]),
        (nn.Linear(3, 2), X, ["Linear cannot be traced", "Check that it runs on the example inputs"]),
        (Tied(), (X, 1.0, 2), ["Tied cannot be traced"]),
    ],
)
def test_what_cannot_be_traced_names_the_line(model, inputs, parts):
    with pytest.raises(GraphError) as caught:
        trace(model, inputs)
    assert all(part in str(caught.value) for part in parts)


def test_example_inputs():
    assert as_example_inputs(X).args == (X,)
    assert as_example_inputs([X, 2]).args == (X, 2)
    assert as_example_inputs({"x": X}).kwargs == {"x": X}
    given = ExampleInputs((X,), {"scale": 2.0})
    assert as_example_inputs(given) is given
    with pytest.raises(ArgumentError, match="got str"):
        as_example_inputs("x")
    with pytest.raises(ArgumentError, match="got NoneType"):
        as_example_inputs(None)
