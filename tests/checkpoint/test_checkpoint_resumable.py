"""Distiller's resume: load_checkpoint, then file_config with the scheduler it returned, in a loop of hooks."""

import copy
import logging

import pytest
import torch
from torch import nn

import distiller_ng as distiller
from distiller_ng.checkpoint import load_checkpoint, save_checkpoint

SCHEDULE = {
    "version": 1,
    "pruners": {
        "splicing": {
            "class": "SplicingPruner",
            "sensitivities": {"0.weight": 0.3},
            "low_thresh_mult": 0.9,
            "hi_thresh_mult": 1.1,
        },
        "sensitivity": {"class": "SensitivityPruner", "sensitivities": {"2.weight": 0.4}},
        "agp": {
            "class": "AutomatedGradualPruner",
            "initial_sparsity": 0.1,
            "final_sparsity": 0.7,
            "weights": ["4.weight"],
        },
    },
    "lr_schedulers": {"plateau": {"class": "ReduceLROnPlateau", "factor": 0.5, "patience": 0}},
    "policies": [
        *(
            {"pruner": {"instance_name": name}, "starting_epoch": 0, "ending_epoch": 5, "frequency": 1}
            for name in ("splicing", "sensitivity", "agp")
        ),
        {"lr_scheduler": {"instance_name": "plateau"}, "starting_epoch": 0, "ending_epoch": 6, "frequency": 1},
    ],
}


def new_model(seed=0):
    torch.manual_seed(seed)
    parts = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 3)]
    return nn.Sequential(*parts)


def train(model, optimizer, scheduler, epochs, folder=None):
    generator = torch.Generator().manual_seed(7)
    x, y = torch.randn(24, 6, generator=generator), torch.arange(24) % 3
    for epoch in epochs:
        scheduler.on_epoch_begin(epoch, optimizer)
        for i in range(3):
            scheduler.on_minibatch_begin(epoch, i, 3, optimizer)
            loss = nn.functional.cross_entropy(model(x[i::3]), y[i::3])
            loss = scheduler.before_backward_pass(epoch, i, 3, loss, optimizer)
            optimizer.zero_grad()
            loss.backward()
            scheduler.before_parameter_optimization(epoch, i, 3, optimizer)
            optimizer.step()
            scheduler.on_minibatch_end(epoch, i, 3, optimizer)
        scheduler.on_epoch_end(epoch, optimizer, metrics={"min": 1.0 + (epoch % 2), "max": 0.0})
        if folder is not None:
            save_checkpoint(epoch, "a", model, optimizer, scheduler, name=str(epoch), dir=folder)


def full_run(folder):
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    train(model, optimizer, distiller.dict_config(model, optimizer, SCHEDULE), range(6), folder)
    return model, optimizer


@pytest.mark.parametrize("stop", [0, 2, 4])
def test_the_runs_own_schedule_continues_exactly(tmp_path, stop, caplog):
    expected, its_optimizer = full_run(tmp_path)
    model, scheduler, optimizer, start = load_checkpoint(new_model(3), tmp_path / f"{stop}_checkpoint.pth.tar")
    result = distiller.dict_config(model, optimizer, SCHEDULE, scheduler, start - 1)
    assert result is scheduler
    assert scheduler.resume_point.epoch == start == stop + 1
    scheduler.resume_point.restore_rng()
    train(model, optimizer, scheduler, range(start, 6))
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert optimizer.param_groups[0]["lr"] == its_optimizer.param_groups[0]["lr"] < 0.2
    assert "not restored" not in caplog.text


def other_schedule():
    other = copy.deepcopy(SCHEDULE)
    del other["pruners"]["splicing"], other["policies"][0]
    return other


@pytest.mark.parametrize(
    ("schedule", "resumed", "restore", "message"),
    [
        (other_schedule(), 2, True, "it lacks pruner 'splicing' (SplicingPruner)"),
        (SCHEDULE, -1, True, "resumed_epoch is -1"),
        (SCHEDULE, 2, False, None),
    ],
)
def test_masks_alone_and_why(tmp_path, caplog, schedule, resumed, restore, message):
    full_run(tmp_path)
    path = tmp_path / "2_checkpoint.pth.tar"
    model, scheduler, optimizer, _ = load_checkpoint(new_model(3), path, restore_position=restore)
    masks = {name: masker.mask.clone() for name, masker in scheduler.masks.items() if masker.mask is not None}
    with caplog.at_level(logging.WARNING):
        distiller.dict_config(model, optimizer, schedule, scheduler, resumed)
    assert scheduler.resume_point is None
    assert set(masks) == {"0.weight", "2.weight", "4.weight"}
    assert all(torch.equal(scheduler.masks[name].mask, mask) for name, mask in masks.items())
    if message is None:
        assert "not restored" not in caplog.text
    else:
        assert message in caplog.text and "apputils.resume_checkpoint" in caplog.text


def test_policies_of_the_users_own_keep_masks_alone(tmp_path, caplog):
    full_run(tmp_path)
    model, scheduler, optimizer, start = load_checkpoint(new_model(3), tmp_path / "2_checkpoint.pth.tar")
    scheduler.add_policy(
        distiller.policies.PruningPolicy(distiller.pruning.SparsityLevelParameterPruner("mine", {"0.bias": 0.5})),
        epochs=[5],
    )
    distiller.dict_config(model, optimizer, SCHEDULE, scheduler, start - 1)
    assert scheduler.resume_point is None
    assert "already had 1 policy" in caplog.text
