"""Functions called in a model's forward: names, operands, whose they are."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distiller_ng.graph.functional_calls import call_kind, function_call, may_own_calls, watching_calls
from distiller_ng.modules.functional import FunctionModule, module_for_call

X, Y = torch.rand(2, 3), torch.rand(2, 3)


class Listener:
    def __init__(self, model):
        self.names = {module: name for name, module in model.named_modules()}
        self.found, self.outputs = [], []

    def before_call(self, owner, name, call):
        self.found.append(f"{self.names[owner]}.{name}".lstrip("."))

    def after_call(self, owner, name, call, output):
        self.outputs.append(output)


class Recorder(torch.overrides.TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = function_call(func, args, kwargs or {})
        if found is not None:
            self.calls.append(found)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "expression, kind, operands, settings",
    [
        ("X + Y", "add", 2, {}),
        ("1.0 + X", "add", 2, {}),
        ("torch.add(X, other=Y, alpha=2)", "add", 2, {"alpha": 2}),
        ("1 - X", "sub", 2, {}),
        ("X.multiply(Y)", "mul", 2, {}),
        ("2 / X", "div", 2, {}),
        ("X @ Y.T", "matmul", 2, {}),
        ("torch.mm(X, Y.T)", "matmul", 2, {}),
        ("torch.bmm(X[None], mat2=Y.T[None])", "bmm", 2, {}),
        ("torch.cat([X, Y, X], 1)", "cat", 3, {"dim": 1}),
        ("torch.concatenate((X, Y), axis=1)", "cat", 2, {"dim": 1}),
        ("torch.stack([X, Y])", "stack", 2, {"dim": 0}),
        ("F.relu(X)", "relu", 1, {}),
        ("X.relu()", "relu", 1, {}),
        ("F.leaky_relu(X, 0.2)", "leaky_relu", 1, {"negative_slope": 0.2}),
        ("X.mean(dim=1)", "mean", 1, {"dim": 1}),
        ("F.layer_norm(X, (3,))", "layer_norm", 2, {"weight": None, "bias": None, "eps": 1e-5}),
        ("X.softmax(-1)", "softmax", 2, {}),
        ("F.max_pool1d(X, 2)", "max_pool1d", 2, None),
        ("X.split(1)", "split", 2, {"dim": 0}),
    ],
)
def test_calls_in_one_form(expression, kind, operands, settings):
    with Recorder() as recorder:
        expected = eval(expression)
    (call,) = recorder.calls
    assert (call.kind, len(call.operands), call.target) == (kind, operands, None)
    assert settings is None or dict(call.settings) == settings
    found = module_for_call(kind)(*call.operands, function=call.function, **call.settings)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "statement", ["x += Y", "x *= 2", "x.sub_(Y)", "x.clamp_(min=0.5)", "F.relu(x, True)", "F.elu(x, inplace=True)"]
)
def test_calls_in_place_compute_out_of_place(statement):
    x = X.clone() - 0.5
    names = {"x": x, "Y": Y, "F": F}
    before = x.clone()
    with Recorder() as recorder:
        exec(statement, names)
    (call,) = recorder.calls
    assert call.target is x
    expected, operands = x.clone(), (before, *call.operands[1:])
    assert torch.equal(call.function(*operands, **call.settings), expected)
    assert torch.equal(x, expected)


@pytest.mark.parametrize(
    "expression", ["torch.arange(3) + 1", "X > 0", "torch.add(X, Y, out=X.clone())", "X.view(-1)", "torch.zeros(2)"]
)
def test_calls_of_no_interest(expression):
    with Recorder() as recorder:
        eval(expression)
    assert not recorder.calls


def test_kinds_of_names():
    assert [call_kind(name) for name in ("add", "add_12", "adaptive_avg_pool2d", "conv2d_1")] == [
        "add",
        "add",
        "adaptive_avg_pool2d",
        "conv2d",
    ]
    assert [call_kind(name) for name in ("conv1", "add_0", "add_x", "fc", "", "_1")] == [None] * 6


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.gelu = nn.Linear(3, 3), nn.GELU()

    def forward(self, x):
        return helper(self.gelu(self.fc(x)), x)


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.add = Inner(), nn.Identity()
        self.attention = nn.MultiheadAttention(3, 1)

    def forward(self, x):
        x = self.inner(x) + self.inner.forward(x)
        x, _ = self.attention(x, x, x)
        return helper(F.gelu(x), x) + 1


def helper(x, y):
    return x + y


def test_a_call_belongs_to_the_innermost_module_that_runs():
    model, x = Outer().eval(), torch.rand(4, 3)
    expected, listener, other = model(x), Listener(model), Listener(model)
    with watching_calls(model, listener):
        assert torch.equal(model(x), expected)
        with watching_calls(model, other):
            model(x)
    # What GELU and attention do inside is theirs; "add" is a module of the outer model.
    names = ["inner.add", "inner.add", "add_1", "gelu", "add_2", "add_3"]
    assert listener.found == names * 2
    assert other.found == names
    assert torch.equal(listener.outputs[5], expected)
    assert type(model) is Outer and type(model.inner.fc) is nn.Linear
    assert not any("call_listeners" in vars(module) for module in model.modules())


def test_hooks_are_no_part_of_the_model():
    model = nn.Sequential(Inner(), Inner())
    for module in model.modules():
        module.register_forward_hook(lambda module, args, output: output + 0)
        module.register_forward_pre_hook(lambda module, args: (args[0] * 1,))
    listener = Listener(model)
    with watching_calls(model, listener):
        model(X)
    assert listener.found == ["0.add", "1.add"]


def test_an_exception_leaves_nothing_behind():
    model = nn.Sequential(Inner())
    listener = Listener(model)
    with pytest.raises(RuntimeError, match="mat1"), watching_calls(model, listener):
        model(torch.rand(2, 4))
    assert type(model[0]) is Inner
    with watching_calls(model, listener):
        model(X)
    assert listener.found == ["0.add"]


def test_what_may_own_calls():
    assert may_own_calls(nn.Sequential(nn.ReLU()))
    assert may_own_calls(nn.TransformerEncoderLayer(4, 1))
    for module in (nn.ReLU(), nn.MultiheadAttention(4, 1), nn.LSTM(2, 2), FunctionModule("add")):
        assert not may_own_calls(module)


def test_a_traced_program_shows_the_calls_too():
    model = Outer().eval()
    listener = Listener(model)
    with watching_calls(model, listener):
        program = torch.export.export(model, (torch.rand(4, 3),), strict=False)
    assert listener.found == ["inner.add", "inner.add", "add_1", "gelu", "add_2", "add_3"]
    four = torch.rand(4, 3)
    torch.testing.assert_close(program.module()(four), model(four))


def test_modules_for_calls_can_be_copied():
    add = pickle.loads(pickle.dumps(module_for_call("add")))
    assert add(X, Y, function=torch.sub).equal(X - Y)
    assert repr(add) == "FunctionalEltwiseAdd(add)"
    assert repr(module_for_call("softmax")) == "FunctionModule(softmax)"
