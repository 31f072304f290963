"""A file that does not fit, or was tampered with, leaves model, optimizer and scheduler as they were."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from distiller_ng.checkpoint import load_checkpoint, save_checkpoint
from distiller_ng.config import dict_config
from distiller_ng.errors import CheckpointError
from distiller_ng.graph.changes import changes_of

X = torch.randn(2, 3, 6, 6)
SCHEDULE = {
    "pruners": {
        "filters": {"class": "GroupPruner", "sparsity": 0.5, "weights": ["0.weight"]},
        "fine": {"class": "SparsityLevelParameterPruner", "levels": {"5.weight": 0.3}},
    },
    "extensions": {"thinner": {"class": "FilterRemover", "thinning_func_str": "remove_filters"}},
    "policies": [
        {"pruner": {"instance_name": "filters"}, "epochs": [0]},
        {"pruner": {"instance_name": "fine"}, "epochs": [0, 1]},
        {"extension": {"instance_name": "thinner"}, "epochs": [0]},
    ],
}


def run(seed=0, optimizer=torch.optim.Adam):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )
    found = optimizer(model.parameters(), lr=0.01)
    return model, found, dict_config(model, found, SCHEDULE, example_inputs=(X,))


@pytest.fixture
def saved(tmp_path):
    """The path and the content of a checkpoint of a thinned model."""
    model, optimizer, scheduler = run()
    for _ in scheduler.epochs(1):
        for batch in scheduler.minibatches([X, X]):
            optimizer.zero_grad()
            scheduler.backward(model(batch).square().mean())
            optimizer.step()
    assert model[0].out_channels == 4
    path = save_checkpoint(0, None, model, optimizer, scheduler, dir=tmp_path)
    return path, torch.load(path, weights_only=True)


def everything(model, optimizer, scheduler):
    """A copy of all that must not change, comparable with ``same``."""
    return copy.deepcopy(
        (
            list(model.state_dict().items()),
            [str(module) for module in model.modules()],
            [id(parameter) for parameter in model.parameters()],
            changes_of(model),
            optimizer.state_dict(),
            scheduler.masks.state_dict(),
            [entry.state_dict() for entry in scheduler._entries],
            str(scheduler.resume_point),
        )
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def refused(path, match, optimizer=torch.optim.Adam):
    parts = run(seed=1, optimizer=optimizer)
    parts[2].masks.set("0.weight", torch.ones(8, 3, 3, 3), owner="mine")
    before = everything(*parts)
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint(parts[0], path, parts[1], scheduler=parts[2])
    assert same(before, everything(*parts))
    assert parts[0][0].out_channels == 8
    for _ in parts[2].epochs(1):  # and it trains
        for batch in parts[2].minibatches([X, X]):
            parts[1].zero_grad()
            parts[2].backward(parts[0](batch).square().mean())
            parts[1].step()
    assert parts[0][0].out_channels == 4


def test_another_optimizer(saved):
    refused(saved[0], "optimizer is a torch.optim.Adam", torch.optim.SGD)


def _optimizer(state):
    state["optimizer_state_dict"]["state"][0]["exp_avg"] = torch.zeros(3)


def _no_optimizer_state(state):
    state["optimizer_state_dict"] = 7


def _other_schedule(state):
    del state["compression_sched"]["policies"][0]


def _no_position(state):
    del state["compression_sched"]["lifecycle"]


def _no_generators(state):
    state["compression_sched"]["rng"] = None


def _policy_state(state):
    state["compression_sched"]["policies"][1]["state"] = 3


def _no_tensor(state):
    state["state_dict"]["0.weight"] = "x"


def _no_number(state):
    state["epoch"] = "x"


def _no_steps(state):
    state["structure"] = json.dumps([{"transform": "thinning", "version": 1, "config": {}, "metadata": {}}])


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (_optimizer, r"'exp_avg' of shape \[3\]"),
        (_no_optimizer_state, "optimizer state is damaged"),
        (_other_schedule, "another schedule"),
        (_no_position, "state is damaged"),
        (_no_generators, "state is damaged"),
        (_policy_state, "state is damaged"),
        (_no_tensor, "0.weight is a str"),
        (_no_number, "damaged"),
        (_no_steps, "thinning steps is damaged"),
    ],
)
def test_damaged_parts(saved, damage, match):
    path, content = saved
    damage(content)
    torch.save(content, path)
    refused(path, match)


def test_a_changed_byte_of_a_weight(saved):
    path, content = saved
    data = path.read_bytes()
    weight = content["state_dict"]["5.weight"].numpy().tobytes()
    assert data.count(weight) >= 1
    path.write_bytes(data.replace(weight, bytes([weight[0] ^ 1]) + weight[1:]))
    refused(path, "changed since it was written")


def test_a_file_without_checksums_is_read(saved):
    path, content = saved
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content, path)
    finally:
        torch.serialization.set_crc32_options(before)
    model, *_ = load_checkpoint(run(1)[0], path)
    assert model[0].out_channels == 4


def test_a_model_wrapped_for_data_parallelism_is_not_thinned_below_its_buckets(saved):
    model = run(1)[0]
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = model
    with pytest.raises(CheckpointError, match="wrap it"):
        load_checkpoint(wrapped, saved[0])
    assert model[0].out_channels == 8
    load_checkpoint(model, saved[0])
    load_checkpoint(wrapped, saved[0])  # thinned before it was wrapped
    assert torch.equal(model[0].weight, saved[1]["state_dict"]["0.weight"])
