"""Sharing a budget out among layers, and windows for numbers of epochs."""

from __future__ import annotations

import itertools

import pytest

from distiller_ng.automatic._first_allocation import Layer, allocate, least_share
from distiller_ng.automatic._first_target import TECHNIQUES, Target
from distiller_ng.automatic._first_windows import windows_for
from distiller_ng.errors import ArgumentError


def linear(**sizes):
    """The share of the weights that stays."""
    total = sum(sizes.values())
    return lambda levels: 1 - sum(size * levels[name] for name, size in sizes.items()) / total


def test_the_example_of_the_docstring():
    layers = [Layer("a", {0.5: 4.0}), Layer("b", {0.5: 2.0})]
    assert allocate(layers, linear(a=100, b=300), 0.6) == {"a": 0.0, "b": 0.54}


def test_damage_between_and_behind_measurements():
    layer = Layer("a", {0.5: 2.0})
    assert [layer.damage(level) for level in (0.0, 0.25, 0.5, 0.75)] == [0.0, 1.0, 2.0, 4.0]
    better_with_more = Layer("a", {0.3: 3.0, 0.5: 1.0, 0.7: 4.0})
    assert better_with_more.damage(0.5) == 3.0


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.35])
def test_no_worse_than_an_exhaustive_search(share):
    sizes = {"a": 100, "b": 250, "c": 60}
    layers = [Layer("a", {0.3: 1.0, 0.6: 3.0}), Layer("b", {0.3: 0.5, 0.6: 6.0}), Layer("c", {0.3: 0.1, 0.6: 0.2})]
    cost = linear(**sizes)
    found = allocate(layers, cost, share)
    assert cost(found) <= share + 1e-9
    damage = sum(layer.damage(found[layer.name]) for layer in layers)
    grid = [round(0.05 * n, 2) for n in range(20)]
    choices = (dict(zip(sizes, levels, strict=True)) for levels in itertools.product(grid, repeat=3))
    best = min(sum(o.damage(c[o.name]) for o in layers) for c in choices if cost(c) <= share + 1e-9)
    assert damage <= 1.05 * best + 0.05


def test_a_layer_that_hides_a_cliff_behind_a_flat_beginning_is_no_bargain():
    layers = [Layer("cliff", {0.3: 0.0, 0.5: 50.0}), Layer("slope", {0.3: 1.0, 0.5: 2.0, 0.7: 3.0})]
    found = allocate(layers, linear(cliff=100, slope=100), 0.6)
    assert found["cliff"] <= 0.3 < found["slope"]


def test_layers_alike_share_and_small_ones_stay():
    found = allocate([Layer("a", {}), Layer("b", {}), Layer("small", {})], linear(a=1000, b=1000, small=10), 0.5)
    assert abs(found["a"] - found["b"]) <= 0.05 and found["small"] < 0.3


def test_caps_and_single_levels():
    layers = [Layer("a", {}, cap=0.5), Layer("b", {}, cap=0.0)]
    cost = linear(a=100, b=100)
    assert least_share(layers, cost) == 0.75 and allocate(layers, cost, 0.7) is None
    assert allocate(layers, cost, 0.75) == {"a": 0.5, "b": 0.0}
    assert allocate([Layer("a", {}, only=(0.5,)), Layer("b", {0.5: 1.0}, only=(0.5,))], cost, 0.8) == {
        "a": 0.5,
        "b": 0.0,
    }


@pytest.mark.parametrize("name", sorted(TECHNIQUES))
@pytest.mark.parametrize("epochs", [2, 3, 4, 5, 6, 9, 20, 50, 100, 365])
def test_windows_follow_each_other(name, epochs):
    technique = TECHNIQUES[name]
    windows = windows_for(technique, epochs)
    last = 0.0
    if technique.group is not None:
        start, end, every = windows.prune
        assert 0 < start < end <= epochs and every > 0
        if epochs >= 5:
            assert (end - 1 - start) % every == 0, "the last decision is the final level"
        last = end
    if technique.group == "filter":
        assert last <= windows.thin < epochs
        last = windows.thin
    if technique.bits == 8:
        assert last <= windows.quantize < epochs
        assert windows.freeze is None or windows.quantize < windows.freeze < epochs


def test_windows_of_twenty_and_a_hundred_epochs():
    assert windows_for(TECHNIQUES["weights"], 20).prune == (2, 12, 1)
    assert windows_for(TECHNIQUES["weights"], 100).prune == (10, 59, 2)
    assert windows_for(TECHNIQUES["weights"], 1).prune == (0.1, 0.6, 0.05)


@pytest.mark.parametrize("epochs", [0, -1, 1.5, True])
def test_wrong_epochs(epochs):
    with pytest.raises(ArgumentError, match="epochs is a whole number from 1"):
        windows_for(TECHNIQUES["weights"], epochs)


def test_too_few_epochs_for_filters():
    with pytest.raises(ArgumentError, match="filters are removed between two epochs: give 2 epochs or more"):
        windows_for(TECHNIQUES["filters"], 1)


def test_targets():
    assert Target.read("size=30%") == Target("size", 0.3) and str(Target.read(" macs = .5 ")) == "macs=0.50"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("macs", "is no target: write size=0.3"),
        ("mac=0.5", "unknown target 'mac'. Did you mean 'macs'?"),
        ("macs=half", "'half' is not a number: write macs=0.5"),
        ("macs=2", "lies above 0 and below 1"),
        ("macs=nan", "lies above 0 and below 1"),
        (0.5, "a target is a text"),
    ],
)
def test_wrong_targets(text, said):
    with pytest.raises(ArgumentError, match=said):
        Target.read(text)
