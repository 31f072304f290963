"""Checkpoints of thinned models: a fresh model and the file give the thinned model, as often as one likes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import distiller_ng as distiller
from distiller_ng.checkpoint import load_checkpoint, load_model, save_checkpoint
from distiller_ng.config import dict_config
from distiller_ng.errors import ArgumentError, CheckpointError
from distiller_ng.graph.changes import changes_of


def new_model(width=8):
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 4),
    )


class Attention(nn.Module):
    """Torch's attention (replaced when it loses heads), and a width written in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 4, batch_first=True)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 3)
        self.hidden = 12

    def forward(self, x):
        y = self.up(self.attend(x, x, x, need_weights=False)[0])
        return self.down(torch.relu(y).reshape(-1, self.hidden))


X = torch.randn(2, 3, 6, 6)
SCHEDULE = {
    "pruners": {
        "filters": {
            "class": "L1RankedStructureParameterPruner",
            "group_type": "Filters",
            "desired_sparsity": 0.5,
            "weights": ["0.weight"],
        },
        "fine": {"class": "SparsityLevelParameterPruner", "levels": {"3.weight": 0.3}},
    },
    "extensions": {"thinner": {"class": "FilterRemover", "thinning_func_str": "remove_filters"}},
    "policies": [
        {"pruner": {"instance_name": "filters"}, "epochs": [0, 1, 2]},
        {"pruner": {"instance_name": "fine"}, "epochs": [0, 1, 2]},
        {"extension": {"instance_name": "thinner"}, "epochs": [1]},
    ],
}


def train(model, optimizer, scheduler, epochs, steps=3):
    for epoch in epochs:
        scheduler.on_epoch_begin(epoch, optimizer)
        for step in range(steps):
            torch.manual_seed(100 * epoch + step)
            x, y = torch.randn(4, 3, 6, 6), torch.randint(4, (4,))
            scheduler.on_minibatch_begin(epoch, step, steps, optimizer)
            loss = scheduler.before_backward_pass(
                epoch, step, steps, nn.functional.cross_entropy(model(x), y), optimizer
            )
            optimizer.zero_grad()
            loss.backward()
            scheduler.before_parameter_optimization(epoch, step, steps, optimizer)
            optimizer.step()
            scheduler.on_minibatch_end(epoch, step, steps, optimizer)
        scheduler.on_epoch_end(epoch, optimizer)


def fresh_run(optimizer_class=torch.optim.AdamW):
    model = new_model()
    optimizer = optimizer_class(model.parameters(), lr=0.01)
    return model, optimizer, dict_config(model, optimizer, SCHEDULE, example_inputs=(X,))


def test_loaded_three_times_it_stays_the_same(tmp_path):
    model, optimizer, scheduler = fresh_run()
    train(model, optimizer, scheduler, [0, 1])
    assert model[0].out_channels == 4 == model[3].in_channels
    path = save_checkpoint(1, None, model, optimizer, scheduler, dir=tmp_path)
    loaded = new_model()
    for _ in range(3):
        load_checkpoint(loaded, path)
        assert loaded[0].out_channels == 4
        assert torch.equal(loaded.eval()(X), model.eval()(X))
        path = save_checkpoint(1, None, loaded, dir=tmp_path, name="again")
    assert changes_of(loaded) == changes_of(model)


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("stop", [0, 1])
def test_a_run_resumes_exactly_across_thinning(tmp_path, optimizer_class, stop):
    whole, whole_optimizer, scheduler = fresh_run(optimizer_class)
    train(whole, whole_optimizer, scheduler, [0, 1, 2])
    killed, optimizer, scheduler = fresh_run(optimizer_class)
    train(killed, optimizer, scheduler, range(stop + 1))
    path = save_checkpoint(stop, None, killed, optimizer, scheduler, dir=tmp_path)
    model, optimizer, scheduler = fresh_run(optimizer_class)
    load_checkpoint(model, path, optimizer, scheduler=scheduler)
    train(model, optimizer, scheduler, range(stop + 1, 3))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    for name, masker in scheduler.masks.items():
        assert (masker.mask is None) or masker.mask.shape == model.get_parameter(name).shape


def test_levels_do_not_compound():
    """50 % of the 8 filters there were, in three epochs and with removal in between: 4 stay."""
    model, optimizer, scheduler = fresh_run()
    train(model, optimizer, scheduler, [0, 1, 2])
    assert model[0].out_channels == 4
    assert scheduler.masks["0.weight"].mask is None or float(scheduler.masks["0.weight"].mask.min()) == 1.0


def test_deployment(tmp_path):
    model, optimizer, scheduler = fresh_run()
    train(model, optimizer, scheduler, [0, 1])
    path = save_checkpoint(1, None, model, optimizer, scheduler, dir=tmp_path)
    deployed = load_model(new_model, path)
    assert not deployed.training
    assert torch.equal(deployed(X), model.eval()(X))
    exported = torch.export.export(deployed, (X,))
    torch.testing.assert_close(exported.module()(X), model(X))
    assert distiller.load_model is load_model


def test_replaced_attention_and_followed_integers(tmp_path):
    model = Attention().eval()
    x = torch.randn(2, 5, 8)
    graph = distiller.DependencyGraph.trace(model, x)
    heads = graph.channels_of("attend.in_proj_weight", 0)
    units = graph.channels_of("up.weight", 0)
    plan = distiller.ThinningPlan.for_channels(graph, {int(heads[0]), int(units[3]), int(units[7])})
    distiller.thinning.apply.apply_plan(model, plan, x)
    assert (model.hidden, model.attend.num_heads) == (10, 3)
    path = save_checkpoint(0, None, model, dir=tmp_path)
    loaded = load_model(Attention, path)
    assert loaded.hidden == 10
    assert torch.equal(loaded(x), model(x))
    assert sorted(loaded.state_dict()) == sorted(Attention().state_dict())


def test_a_copy_knows_its_structure(tmp_path):
    model, optimizer, scheduler = fresh_run()
    train(model, optimizer, scheduler, [0, 1])
    best = copy.deepcopy(model)
    path = save_checkpoint(1, None, best, dir=tmp_path)
    assert torch.equal(load_model(new_model, path)(X), best.eval()(X))


def test_what_does_not_fit_leaves_the_model_alone(tmp_path):
    model, optimizer, scheduler = fresh_run()
    train(model, optimizer, scheduler, [0, 1])
    path = save_checkpoint(1, None, model, optimizer, scheduler, dir=tmp_path)
    other = new_model(width=10)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="0.weight"):
        load_checkpoint(other, path)
    assert other[0].out_channels == 10
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    assert changes_of(other) == []


def test_weights_that_do_not_fit_after_thinning_leave_the_model_alone(tmp_path):
    model, optimizer, scheduler = fresh_run()
    train(model, optimizer, scheduler, [0, 1])
    path = save_checkpoint(1, None, model, optimizer, scheduler, dir=tmp_path)
    content = torch.load(path, weights_only=True)
    content["state_dict"]["8.weight"] = torch.zeros(4, 99)
    torch.save(content, path)
    other = new_model()
    with pytest.raises(CheckpointError, match="8.weight"):
        load_checkpoint(other, path)
    assert other[0].out_channels == 8


def test_a_model_thinned_otherwise_is_refused(tmp_path):
    model, optimizer, scheduler = fresh_run()
    train(model, optimizer, scheduler, [0, 1])
    path = save_checkpoint(1, None, model, optimizer, scheduler, dir=tmp_path)
    other = new_model()
    with torch.no_grad():
        other[0].weight[:2] = 0
    distiller.remove_filters(other, example_inputs=X)
    with pytest.raises(CheckpointError, match="thinned otherwise"):
        load_checkpoint(other, path)


@pytest.mark.parametrize("factory", [new_model(), None, lambda: 3])
def test_a_factory_builds_a_model(tmp_path, factory):
    path = save_checkpoint(0, None, new_model(), dir=tmp_path)
    with pytest.raises(ArgumentError, match="factory"):
        load_model(factory, path)
