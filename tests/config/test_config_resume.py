"""``resumed_epoch`` gives a fresh optimizer the learning rates the run had, and leaves a restored one alone."""

from __future__ import annotations

import pytest
import torch
from config_helpers import new_model_and_optimizer

from distiller_ng.config import dict_config


def schedule(*entries: tuple[dict, dict]) -> dict:
    return {
        "lr_schedulers": {f"l{i}": definition for i, (definition, _) in enumerate(entries)},
        "policies": [{"lr_scheduler": {"instance_name": f"l{i}"}, **time} for i, (_, time) in enumerate(entries)],
    }


EXP = {"class": "ExponentialLR", "gamma": 0.5}
STEP = {"class": "StepLR", "step_size": 2, "gamma": 0.1}
ALWAYS = {"starting_epoch": 0, "ending_epoch": 50, "frequency": 1}


def uninterrupted(content: dict, until: int) -> float:
    model, optimizer = new_model_and_optimizer(lr=0.8)
    scheduler = dict_config(model, optimizer, content)
    for epoch in range(until + 1):
        scheduler.on_epoch_begin(epoch, optimizer)
        scheduler.on_epoch_end(epoch, optimizer, metrics={"min": 1.0})
    return optimizer.param_groups[0]["lr"]


CASES = [
    schedule((EXP, ALWAYS)),
    schedule((EXP, {"starting_epoch": 2, "ending_epoch": 4, "frequency": 1})),
    schedule((EXP, {"epochs": [1, 3]}), (STEP, {"epochs": [2]})),
    schedule((EXP, {"starting_epoch": 1, "ending_epoch": -1, "frequency": 3})),
    schedule((STEP, {"starting_epoch": 6, "ending_epoch": 9, "frequency": 1})),
    schedule(({"class": "OneCycleLR", "max_lr": 1.0, "total_steps": 20}, ALWAYS)),
]


@pytest.mark.parametrize("content", CASES)
@pytest.mark.parametrize("epoch", [0, 2, 4, 5])
def test_a_fresh_optimizer_continues_where_the_run_was(content, epoch):
    model, optimizer = new_model_and_optimizer(lr=0.8)
    dict_config(model, optimizer, content, resumed_epoch=epoch)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(uninterrupted(content, epoch))


def test_the_next_epoch_has_its_absolute_value():
    model, optimizer = new_model_and_optimizer(lr=0.8)
    scheduler = dict_config(model, optimizer, CASES[0], None, 2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    scheduler.on_epoch_begin(3, optimizer)
    scheduler.on_epoch_end(3, optimizer)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_a_restored_optimizer_is_left_alone():
    model, first = new_model_and_optimizer(lr=0.8)
    scheduler = dict_config(model, first, CASES[0])
    for epoch in range(3):
        scheduler.on_epoch_begin(epoch, first)
        scheduler.on_epoch_end(epoch, first)
    other = torch.optim.SGD(model.parameters(), lr=5.0, momentum=0.9)
    other.load_state_dict(first.state_dict())
    scheduler = dict_config(model, other, CASES[0], resumed_epoch=2)
    assert other.param_groups[0]["lr"] == pytest.approx(0.1)
    scheduler.on_epoch_begin(3, other)
    scheduler.on_epoch_end(3, other)
    assert other.param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize("epoch", [None, -1])
def test_without_a_resume_nothing_moves(epoch):
    model, optimizer = new_model_and_optimizer(lr=0.8)
    dict_config(model, optimizer, CASES[0], resumed_epoch=epoch)
    assert optimizer.param_groups[0]["lr"] == 0.8


def test_plateaus_are_left_to_the_checkpoint():
    content = schedule(({"class": "ReduceLROnPlateau"}, ALWAYS))
    model, optimizer = new_model_and_optimizer(lr=0.8)
    dict_config(model, optimizer, content, resumed_epoch=7)
    assert optimizer.param_groups[0]["lr"] == 0.8
