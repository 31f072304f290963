"""What goes together, op family by op family: literal groups, and reasons for what cannot go."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distiller_ng.errors import GraphError
from distiller_ng.graph.dependency import DependencyGraph


class Net(nn.Module):
    """Layers by name, and what to do with them."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            if isinstance(layer, nn.Module):
                self.add_module(name, layer)
            elif isinstance(layer, torch.Tensor):
                self.register_parameter(name, nn.Parameter(layer))
            else:
                setattr(self, name, layer)

    def forward(self, *args):
        return self.run(self, *args)


def conv(i, o, k=1, **options):
    return nn.Conv2d(i, o, k, bias=False, **options)


def linear(i, o):
    return nn.Linear(i, o, bias=False)


X = torch.randn(2, 2, 4, 6)
V = torch.randn(2, 5)
S = torch.randn(2, 3, 5)

GROUPS = {
    "conv and norm": (
        lambda: Net(lambda m, x: m.b(m.n(m.a(x)).relu()), a=nn.Conv2d(2, 4, 1), n=nn.BatchNorm2d(4), b=conv(4, 3)),
        X,
        ("a", 0, [1]),
        (
            "a.weight[dim 0: 1], a.bias[dim 0: 1], n.weight[dim 0: 1], n.bias[dim 0: 1], n.running_mean[dim 0: 1], "
            "n.running_var[dim 0: 1], b.weight[dim 1: 1]"
        ),
    ),
    "inputs of a layer": (
        lambda: Net(lambda m, x: m.b(m.a(x)), a=conv(2, 4), b=conv(4, 3)),
        X,
        ("b", 1, [0, 2, 3]),
        "a.weight[dim 0: 0, 2-3], b.weight[dim 1: 0, 2-3]",
    ),
    "conv1d": (
        lambda: Net(lambda m, x: m.b(m.a(x.flatten(2))), a=nn.Conv1d(2, 4, 3), b=nn.Conv1d(4, 3, 3, bias=False)),
        X,
        ("a", 0, [3]),
        "a.weight[dim 0: 3], a.bias[dim 0: 3], b.weight[dim 1: 3]",
    ),
    "transposed": (
        lambda: Net(lambda m, x: m.b(m.a(x)), a=nn.ConvTranspose2d(2, 4, 2), b=nn.ConvTranspose2d(4, 3, 2)),
        X,
        ("a", 0, [2]),
        "a.weight[dim 1: 2], a.bias[dim 0: 2], b.weight[dim 0: 2]",
    ),
    "depthwise": (
        lambda: Net(lambda m, x: m.b(m.d(m.a(x))), a=conv(2, 4), d=conv(4, 4, 3, groups=4), b=conv(4, 3)),
        X,
        ("a", 0, [2]),
        "a.weight[dim 0: 2], d.weight[dim 0: 2], b.weight[dim 1: 2]",
    ),
    "depthwise with a multiplier": (
        lambda: Net(lambda m, x: m.b(m.d(m.a(x))), a=conv(2, 3), d=conv(3, 6, 3, groups=3), b=conv(6, 3)),
        X,
        ("d", 0, [3]),
        "a.weight[dim 0: 1], d.weight[dim 0: 2-3], b.weight[dim 1: 2-3]",
    ),
    "grouped: whole groups, or the same places of each": (
        lambda: Net(lambda m, x: m.b(m.g(m.a(x))), a=conv(2, 6), g=conv(6, 6, 1, groups=2), b=conv(6, 3)),
        X,
        ("a", 0, [1]),
        "a.weight[dim 0: 1, 4], g.weight[dim 1: 1]",
    ),
    "linear behind a map that is not square": (
        lambda: Net(lambda m, x: m.fc(m.a(x).flatten(1)), a=conv(2, 3), fc=linear(3 * 24, 4)),
        X,
        ("a", 0, [1]),
        "a.weight[dim 0: 1], fc.weight[dim 1: 24-47]",
    ),
    "linear behind a permuted map": (
        lambda: Net(lambda m, x: m.fc(m.a(x).permute(0, 2, 3, 1).reshape(2, -1)), a=conv(2, 3), fc=linear(72, 4)),
        X,
        ("a", 0, [2]),
        "a.weight[dim 0: 2], fc.weight[dim 1: " + ", ".join(str(i) for i in range(2, 72, 3)) + "]",
    ),
    "view into channels": (
        lambda: Net(lambda m, x: m.c(m.fc(x).view(-1, m.n, 2, 2)), fc=linear(5, 12), c=conv(3, 2), n=3),
        V,
        ("c", 1, [1]),
        "fc.weight[dim 0: 4-7], c.weight[dim 1: 1]",
    ),
    "residual": (
        lambda: Net(lambda m, x: m.c(m.a(x) + m.b(x)), a=conv(2, 4), b=conv(2, 4), c=conv(4, 3)),
        X,
        ("a", 0, [0]),
        "a.weight[dim 0: 0], b.weight[dim 0: 0], c.weight[dim 1: 0]",
    ),
    "a gate of one channel": (
        lambda: Net(lambda m, x: m.c(m.a(x) * m.g(x)), a=conv(2, 4), g=conv(2, 1), c=conv(4, 3)),
        X,
        ("a", 0, [0]),
        "a.weight[dim 0: 0], c.weight[dim 1: 0]",
    ),
    "squeeze and excite": (
        lambda: Net(
            lambda m, x: m.c(m.a(x) * m.e(m.r(m.a(x).mean((2, 3)))).sigmoid()[..., None, None]),
            **{"a": conv(2, 4), "r": linear(4, 3), "e": linear(3, 4), "c": conv(4, 3)},
        ),
        X,
        ("a", 0, [3]),
        "a.weight[dim 0: 3], r.weight[dim 1: 3], e.weight[dim 0: 3], c.weight[dim 1: 3]",
    ),
    "concatenation": (
        lambda: Net(lambda m, x: m.c(torch.cat([m.a(x), x, m.b(x)], 1)), a=conv(2, 3), b=conv(2, 4), c=conv(9, 3)),
        X,
        ("b", 0, [1]),
        "b.weight[dim 0: 1], c.weight[dim 1: 6]",
    ),
    "chunks lose the same places": (
        lambda: Net(lambda m, x: m.c(torch.mul(*m.a(x).chunk(2, 1))), a=conv(2, 6), c=conv(3, 2)),
        X,
        ("a", 0, [1]),
        "a.weight[dim 0: 1, 4], c.weight[dim 1: 1]",
    ),
    "parts whose sizes are attributes": (
        lambda: Net(lambda m, x: m.c(m.a(x).split(m.n, 1)[1]), a=conv(2, 6), c=conv(4, 2), n=[2, 4]),
        X,
        ("a", 0, [3]),
        "a.weight[dim 0: 3], c.weight[dim 1: 1]",
    ),
    "behind a fixed slice": (
        lambda: Net(lambda m, x: m.c(m.a(x)[:, 2:]), a=conv(2, 6), c=conv(4, 2)),
        X,
        ("a", 0, [4]),
        "a.weight[dim 0: 4], c.weight[dim 1: 2]",
    ),
    "pixel shuffle": (
        lambda: Net(lambda m, x: m.c(F.pixel_shuffle(m.a(x), 2)), a=conv(2, 12), c=conv(3, 2)),
        X,
        ("c", 1, [1]),
        "a.weight[dim 0: 4-7], c.weight[dim 1: 1]",
    ),
    "group norm": (
        lambda: Net(lambda m, x: m.c(m.n(m.a(x))), a=conv(2, 6), n=nn.GroupNorm(3, 6), c=conv(6, 2)),
        X,
        ("a", 0, [3]),
        "a.weight[dim 0: 2-3], n.weight[dim 0: 2-3], n.bias[dim 0: 2-3], c.weight[dim 1: 2-3]",
    ),
    "instance norm and slopes": (
        lambda: Net(
            lambda m, x: m.c(m.p(m.n(m.a(x)))),
            **{"a": conv(2, 4), "n": nn.InstanceNorm2d(4, affine=True), "p": nn.PReLU(4), "c": conv(4, 2)},
        ),
        X,
        ("a", 0, [3]),
        "a.weight[dim 0: 3], n.weight[dim 0: 3], n.bias[dim 0: 3], p.weight[dim 0: 3], c.weight[dim 1: 3]",
    ),
    "a parameter and its broadcast": (
        lambda: Net(lambda m, x: m.c(m.a(x) * m.s), a=conv(2, 4), s=torch.ones(4, 1, 1), c=conv(4, 2)),
        X,
        ("a", 0, [3]),
        "a.weight[dim 0: 3], c.weight[dim 1: 3], s[dim 0: 3]",
    ),
    "embedding": (
        lambda: Net(lambda m, x: m.c(m.e(x.long().abs() % 3)), e=nn.Embedding(3, 4), c=linear(4, 2)),
        V,
        ("e", 0, [3]),
        "e.weight[dim 1: 3], c.weight[dim 1: 3]",
    ),
    "gated mlp": (
        lambda: Net(lambda m, x: m.c(F.silu(m.a(x)) * m.b(x)), a=linear(5, 4), b=linear(5, 4), c=linear(4, 2)),
        V,
        ("b", 0, [2]),
        "a.weight[dim 0: 2], b.weight[dim 0: 2], c.weight[dim 1: 2]",
    ),
    "hidden units": (
        lambda: Net(lambda m, x: m.c(m.r(x)[0]), r=nn.GRU(5, 3, bias=False, batch_first=True), c=linear(3, 2)),
        S,
        ("r.weight_hh_l0", 1, [1]),
        "r.weight_ih_l0[dim 0: 1, 4, 7], r.weight_hh_l0[dim 0: 1, 4, 7], r.weight_hh_l0[dim 1: 1], c.weight[dim 1: 1]",
    ),
    "hidden units of both directions": (
        lambda: Net(
            lambda m, x: m.c(m.r(x)[0]),
            **{"r": nn.RNN(5, 3, bias=False, batch_first=True, bidirectional=True), "c": linear(6, 2)},
        ),
        S,
        ("r.weight_hh_l0", 0, [0]),
        (
            "r.weight_ih_l0[dim 0: 0], r.weight_hh_l0[dim 0: 0], r.weight_hh_l0[dim 1: 0], "
            "r.weight_ih_l0_reverse[dim 0: 0], r.weight_hh_l0_reverse[dim 0: 0], r.weight_hh_l0_reverse[dim 1: 0], "
            "c.weight[dim 1: 0, 3]"
        ),
    ),
    "heads": (
        lambda: Net(
            lambda m, x: m.a(m.i(x), m.i(x), m.i(x), need_weights=False)[0],
            **{"i": linear(5, 4), "a": nn.MultiheadAttention(4, 2, bias=False, batch_first=True)},
        ),
        S,
        ("a.in_proj_weight", 0, [4]),
        "a.in_proj_weight[dim 0: 0-1, 4-5, 8-9], a.out_proj.weight[dim 1: 0-1]",
    ),
    "called twice": (
        lambda: Net(lambda m, x: m.c(m.b(m.b(m.a(x)).relu())), a=conv(2, 4), b=conv(4, 4), c=conv(4, 2)),
        X,
        ("a", 0, [3]),
        "a.weight[dim 0: 3], b.weight[dim 1: 3], b.weight[dim 0: 3], c.weight[dim 1: 3]",
    ),
    "a masked weight": (
        lambda: Net(
            lambda m, x: m.c(F.conv2d(x, m.w * m.s)), w=torch.ones(4, 2, 1, 1), s=torch.ones(4, 1, 1, 1), c=conv(4, 2)
        ),
        X,
        ("w", 0, [1]),
        "w[dim 0: 1], s[dim 0: 1], c.weight[dim 1: 1]",
    ),
    "a weight of low rank": (
        lambda: Net(lambda m, x: m.c(F.linear(x, m.b @ m.a)), a=torch.ones(2, 5), b=torch.ones(4, 2), c=linear(4, 2)),
        V,
        ("b", 1, [1]),
        "b[dim 1: 1], a[dim 0: 1]",
    ),
    "einsum over a channel": (
        lambda: Net(
            lambda m, x: torch.einsum("bpi,bqi->bpq", m.a(x), m.b(x)), **{"a": linear(5, 4), "b": linear(5, 4)}
        ),
        S,
        ("a", 0, [1]),
        "a.weight[dim 0: 1], b.weight[dim 0: 1]",
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups(name):
    build, inputs, (layer, axis, indices), expected = GROUPS[name]
    group = DependencyGraph.trace(build(), inputs).group(layer, axis, indices)
    assert sorted(str(group).split("], ")) == sorted(expected.split("], "))


FROZEN = {
    "layer norm": (lambda x: F.layer_norm(x.movedim(1, -1), (4,)), "statistics run across these channels"),
    "softmax": (lambda x: x.softmax(1), "softmax runs across these channels"),
    "mean": (lambda x: x.mean(1, keepdim=True) * torch.ones(3, 1, 1), "mean runs across these channels"),
    "roll": (lambda x: x.roll(1, 1), "shifted by a fixed number of places"),
    "negative padding": (lambda x: F.pad(x, (0, 0, 0, 0, -1, 0)), "cut or mirrored across channels"),
    "local response": (lambda x: F.local_response_norm(x, 2), "works across these dimensions"),
    "an operator nobody knows": (lambda x: torch.linalg.qr(x)[0], "is not understood"),
    "parts of fixed sizes": (lambda x: torch.cat(x.split([1, 3], 1)[::-1], 1), "split into parts of [1, 3]"),
    "strided slices": (lambda x: x[:, ::2], "counts its channels by number"),
    "a constant of its size": (lambda x: x + torch.tensor([1.0, 2, 3, 4])[:, None, None], "size cannot change"),
}


@pytest.mark.parametrize("name", FROZEN)
def test_reasons_name_operator_module_and_line(name):
    run, reason = FROZEN[name]
    model = nn.Sequential(conv(2, 4), Net(lambda m, x: run(x)))
    graph = DependencyGraph.trace(model, X)
    assert not graph.removable("0.weight", 0).any()
    with pytest.raises(GraphError) as caught:
        graph.group("0", 0, [2])
    message = str(caught.value)
    assert "channels of '0.weight' cannot be removed" in message
    assert reason in message
    assert "in module '1'" in message
    assert "test_rules_groups.py:" in message
    assert "Leave '0.weight' out of the targets" in message
