"""Property: a pruned random network equals its group-masked twin, or a GraphError leaves it as it was."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_networks import RandomNet
from thinning_checks import State, leaves, prune_at_random

from distiller_ng.errors import GraphError
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.thinning.plan import ThinningPlan

STARTS = st.sampled_from(["2d", "2d", "1d", "3d", "tokens", "vector"])
NETWORKS = st.tuples(STARTS, st.lists(st.integers(0, 999), min_size=1, max_size=5), st.integers(0, 10_000))
OPTIONS = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck), "database": None}


def prune(network):
    start, picks, seed = network
    torch.manual_seed(seed)
    model = RandomNet(start, picks, seed)
    inputs = (model.example,)
    refuse_frozen(model, inputs)
    outcome, channels, message = prune_at_random(model, inputs, seed)
    assert outcome in ("equal", "refused", "nothing")
    assert (outcome == "equal") == (channels > 0)
    return outcome, message


def refuse_frozen(model, inputs):
    """Channels that can never go are refused before anything is touched."""
    graph = DependencyGraph.trace(model, inputs)
    outputs = leaves(model.eval()(*inputs))
    before = State.of(model).values
    frozen = [c for numbers in graph.axes.values() for c in numbers.tolist() if c in graph.frozen]
    if frozen:
        with pytest.raises(GraphError):
            ThinningPlan.for_channels(graph, frozen[:1])
    assert State.of(model).values == before
    assert all(torch.equal(a, b) for a, b in zip(leaves(model(*inputs)), outputs, strict=True))


@settings(max_examples=20, **OPTIONS)
@given(NETWORKS)
def test_random_networks(network):
    outcome, message = prune(network)
    assert outcome != "refused", message  # every block here is one that can follow


@pytest.mark.slow
@settings(max_examples=300, **OPTIONS)
@given(NETWORKS)
def test_hundreds_of_random_networks(network):
    prune(network)
