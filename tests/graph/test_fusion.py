"""Fusing chains of modules."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import distiller_ng as distiller
from distiller_ng.errors import ArgumentError, GraphError
from distiller_ng.model_transforms import fuse_modules
from distiller_ng.modules import EltwiseAdd


class Wrapped(nn.Module):
    """A Sequential under a name of its own, as Distiller's tests have it."""

    def __init__(self, *parts):
        super().__init__()
        self.seq = nn.Sequential(*parts)

    def forward(self, x):
        return self.seq(x)


class Bypass(nn.Module):
    def __init__(self, prologue, bypassed):
        super().__init__()
        self.prologue, self.bypassed, self.add = nn.Sequential(*prologue), bypassed, EltwiseAdd()

    def forward(self, x):
        x = self.prologue(x)
        return self.add(x, self.bypassed(x))


class Join(nn.Module):
    def __init__(self, m1, m2):
        super().__init__()
        self.m1, self.m2, self.add = m1, m2, EltwiseAdd()

    def forward(self, x):
        return self.add(self.m1(x), self.m2(x))


class Part(nn.Module):
    def __init__(self, fuseable=True):
        super().__init__()
        self.fuseable = fuseable

    def forward(self, x):
        return F.relu(x)


class A(Part):
    pass


class B(Part):
    pass


class C(Part):
    pass


class D(Part):
    pass


TYPES = (A, (B, C), D)
X = torch.randn(10, 10)


def first_of(modules):
    return modules[0] if all(module.fuseable for module in modules) else None


def fused():
    return Wrapped(A(), nn.Identity(), nn.Identity())


def structure(model):
    return [(name, type(module)) for name, module in model.named_modules()]


UNCHANGED = {
    "first refused": Wrapped(A(fuseable=False), B(), D()),
    "second refused": Wrapped(A(), B(fuseable=False), D()),
    "last refused": Wrapped(A(), C(), D(fuseable=False)),
    "too short": Wrapped(B()),
    "no beginning": Wrapped(B(), D()),
    "broken": Wrapped(A(), B(), A(), D()),
    "one too many": Wrapped(A(), B(), C(), D()),
    "branch": Bypass((A(), B()), D()),
    "nothing": Wrapped(nn.Identity()),
}
CHANGED = {
    "B": (Wrapped(A(), B(), D()), fused()),
    "C": (Wrapped(A(), C(), D()), fused()),
    "begun twice": (Wrapped(A(), A(), B(), D()), Wrapped(A(), A(), nn.Identity(), nn.Identity())),
    "two": (Wrapped(Wrapped(A(), B(), D()), Wrapped(A(), C(), D())), Wrapped(fused(), fused())),
    "two around another": (
        Wrapped(Wrapped(A(), B(), D()), A(), B(), Wrapped(A(), C(), D())),
        Wrapped(fused(), A(), B(), fused()),
    ),
    "branches": (Join(Wrapped(A(), B(), D()), Wrapped(A(), C(), D())), Join(fused(), fused())),
}


@pytest.fixture(params=["plain", "parallel", "compiled"])
def wrap(request):
    return {"plain": lambda m: m, "parallel": nn.DataParallel, "compiled": torch.compile}[request.param]


@pytest.mark.parametrize("name", UNCHANGED)
def test_broken_chains_stay(name, wrap):
    model = wrap(deepcopy(UNCHANGED[name]))
    before = list(model.modules())
    assert fuse_modules(model, TYPES, first_of, X) is model
    assert all(old is new for old, new in zip(before, model.modules(), strict=True))


@pytest.mark.parametrize("name", CHANGED)
def test_unbroken_chains_are_fused(name, wrap):
    model, expected = (wrap(deepcopy(m)) for m in CHANGED[name])
    assert structure(fuse_modules(model, types_sequence=TYPES, fuse_fn=first_of, dummy_input=X)) == structure(expected)


def test_an_adjacency_map_made_before():
    model = Wrapped(A(), B(), D())
    with pytest.raises(ValueError, match="adjacency_map"):
        fuse_modules(model, TYPES, first_of, dummy_input=None, adjacency_map=None)
    entries = distiller.SummaryGraph(deepcopy(model), X).adjacency_map()
    for given in ({"dummy_input": X}, {"adjacency_map": entries}, {"dummy_input": X, "adjacency_map": entries}):
        assert structure(fuse_modules(deepcopy(model), TYPES, first_of, **given)) == structure(fused())
    parallel = fuse_modules(nn.DataParallel(deepcopy(model)), TYPES, first_of, adjacency_map=entries)
    assert structure(parallel) == structure(nn.DataParallel(fused()))
    of_parallel = distiller.SummaryGraph(nn.DataParallel(deepcopy(model)), X).adjacency_map()
    assert structure(fuse_modules(deepcopy(model), TYPES, first_of, adjacency_map=of_parallel)) == structure(fused())


def test_the_new_module_lists_what_it_stands_for():
    model = Wrapped(A(), B(), D()).train()
    model.seq[1].eval()
    new = nn.Tanh()
    fuse_modules(model, [A, [B, C], D], lambda modules: new, X)
    assert model.seq[0] is new
    assert new.fused_modules == ["seq.1", "seq.2"]
    assert [model.seq[1].training, model.seq[2].training] == [False, True]
    torch.testing.assert_close(model(X), X.tanh())


def test_the_new_module_may_hold_the_old_ones():
    model = nn.Sequential(nn.Linear(10, 4), nn.Tanh(), nn.ReLU())
    old = list(model)
    expected = model(X)
    fuse_modules(model, (nn.Linear, nn.Tanh), lambda modules: nn.Sequential(*modules), X)
    assert list(model[0]) == old[:2]
    assert [type(part) for part in model] == [nn.Sequential, nn.Identity, nn.ReLU]
    torch.testing.assert_close(model(X), expected)


def test_branches_whose_operations_take_turns():
    class Turns(nn.Module):
        def __init__(self):
            super().__init__()
            self.a1, self.a2, self.b1, self.b2 = A(), A(), B(), B()

        def forward(self, x):
            x1, x2 = self.a1(x), self.a2(x)
            return self.b1(x1) + self.b2(x2)

    model = fuse_modules(Turns(), (A, B), lambda modules: modules[0], X)
    assert [type(m) for m in (model.a1, model.a2, model.b1, model.b2)] == [A, A, nn.Identity, nn.Identity]
    assert (model.a1.fused_modules, model.a2.fused_modules) == (["b1"], ["b2"])


class Returned(nn.Module):
    """Also returns what is between the two modules."""

    def __init__(self):
        super().__init__()
        self.a, self.b = A(), B()

    def forward(self, x):
        y = self.a(x)
        return self.b(y), y


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = A(), B()

    def forward(self, x):
        return self.b(self.a(self.b(self.a(x))))


class Alias(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = A(), B()
        self.other = self.b

    def forward(self, x):
        return self.other(self.b(self.a(x)))


class Between(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = A(), B()

    def forward(self, x):
        return self.b(self.a(x) + 1)


class Twisted(nn.Module):
    """The second module reads something else too."""

    def __init__(self):
        super().__init__()
        self.a, self.b = A(), nn.Bilinear(10, 10, 1)

    def forward(self, x):
        return self.b(self.a(x), x * 2)


class ReadsInput(Twisted):
    def forward(self, x):
        return self.b(self.a(x), x)


@pytest.mark.parametrize("build", [Returned, Twice, Alias, Between, Twisted, ReadsInput])
def test_what_is_used_elsewhere_is_not_fused(build):
    model = build()
    before = structure(model)
    fuse_modules(model, (A, (B, nn.Bilinear)), lambda modules: nn.Tanh(), X)
    assert structure(model) == before


def test_a_map_of_dedicated_modules_only_hides_no_branch():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = A(), B()

        def forward(self, x):
            y = self.a(x)
            return self.b(y) + y

    model = Hidden()
    entries = distiller.SummaryGraph(model, X).adjacency_map(dedicated_modules_only=True)
    fuse_modules(model, (A, B), lambda modules: nn.Tanh(), adjacency_map=entries)
    assert type(model.b) is B


def test_modules_of_several_operations():
    class Swish(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(x)

    model = fuse_modules(
        nn.Sequential(nn.Linear(10, 10), Swish(), nn.ReLU()), (nn.Linear, Swish, nn.ReLU), lambda m: nn.Tanh(), X
    )
    assert [type(part) for part in model] == [nn.Tanh, nn.Identity, nn.Identity]


def test_a_module_under_two_names_is_replaced_under_both():
    model = Wrapped(A(), B(), D())
    model.alias = model.seq[1]
    fuse_modules(model, TYPES, first_of, X)
    assert isinstance(model.alias, nn.Identity)
    assert model.alias is model.seq[1]


def test_an_error_leaves_the_structure_as_it_was():
    calls = []

    def fails_at_the_second(modules):
        calls.append(modules)
        if len(calls) == 2:
            raise KeyError("mine")
        return nn.Tanh()

    model = Wrapped(Wrapped(A(), B(), D()), Wrapped(A(), C(), D()))
    before = structure(model)
    with pytest.raises(KeyError, match="mine"):
        fuse_modules(model, TYPES, fails_at_the_second, X)
    assert structure(model) == before


@pytest.mark.parametrize("types", [(), "ab", None, (A, "B"), (A, ()), (A, (B, 3))])
def test_wrong_sequences(types):
    with pytest.raises(ArgumentError, match="types_sequence") as caught:
        fuse_modules(Wrapped(A()), types, first_of, X)
    assert caught.value.argument[0] == "types_sequence"


def test_other_mistakes():
    with pytest.raises(ArgumentError, match="returned list"):
        fuse_modules(Wrapped(A(), B(), D()), TYPES, list, X)
    with pytest.raises(GraphError, match="cannot be traced"):
        fuse_modules(Wrapped(nn.Linear(3, 3)), TYPES, first_of, X)
