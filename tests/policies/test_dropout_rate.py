"""Freezing and dropout from a schedule: what ``directives`` do by hand, with a window."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import distiller_ng as distiller
from distiller_ng.config import check_schedule, dict_config
from distiller_ng.errors import ScheduleError


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.AlphaDropout(0.3), nn.Linear(8, 2))


def schedule(start=1, end=3, probability=0.1):
    return {
        "extensions": {
            "less": {"class": "DropoutRate", "probability": probability},
            "freeze": {"class": "TrainableParams", "weights": ["re:0.*"], "trainable": False},
        },
        "policies": [
            {"extension": {"instance_name": "less"}, "starting_epoch": start, "ending_epoch": end},
            {"extension": {"instance_name": "freeze"}, "starting_epoch": start, "ending_epoch": end},
        ],
    }


def train(net, optimizer, scheduler, epochs):
    seen = []
    for epoch in epochs:
        scheduler.on_epoch_begin(epoch, optimizer)
        scheduler.on_minibatch_begin(epoch, 0, 1, optimizer)
        seen.append((net[1].p, net[3].p, net[0].weight.requires_grad))
        net(torch.ones(3, 4)).sum().backward()
        optimizer.step()
        scheduler.on_minibatch_end(epoch, 0, 1, optimizer)
        scheduler.on_epoch_end(epoch, optimizer)
    return seen


def run(document):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    return net, optimizer, dict_config(net, optimizer, document)


def two_windows():
    document = schedule(0, 3)
    document["extensions"]["more"] = {"class": "DropoutRate", "probability": 0.2}
    document["extensions"]["again"] = document["extensions"]["freeze"]
    document["policies"] += [
        {"extension": {"instance_name": name}, "starting_epoch": 1, "ending_epoch": 5} for name in ("more", "again")
    ]
    return document


OUTSIDE, INSIDE = (0.5, 0.3, True), (0.1, 0.1, False)


def test_dropout_and_frozen_layers_change_in_their_window_only():
    assert train(*run(schedule()), range(4)) == [OUTSIDE, INSIDE, INSIDE, OUTSIDE]
    net, optimizer, scheduler = run(schedule(end=-1))
    train(net, optimizer, scheduler, range(4))
    scheduler.finish()
    assert (net[1].p, net[3].p) == (0.1, 0.1)


def test_a_resumed_run_goes_on_inside_the_window():
    net, optimizer, scheduler = run(schedule())
    train(net, optimizer, scheduler, [0, 1])
    state = scheduler.state_dict()
    again, optimizer, scheduler = run(schedule())
    scheduler.load_state_dict(state)
    assert (again[1].p, again[3].p) == (0.1, 0.1)
    assert train(again, optimizer, scheduler, [2, 3]) == [INSIDE, OUTSIDE]


@pytest.mark.parametrize("probability", [-0.1, 1.5, True, "half"])
def test_probabilities_out_of_range(probability):
    with pytest.raises(ScheduleError, match="probability"):
        run(schedule(probability=probability))


def test_a_model_without_dropout():
    net = nn.Sequential(nn.Linear(2, 2))
    document = schedule()
    del document["extensions"]["freeze"], document["policies"][1]
    with pytest.raises(ScheduleError, match="no dropout layers"):
        dict_config(net, torch.optim.SGD(net.parameters(), lr=0.1), document)


def test_a_check_without_a_model_does_not_miss_dropout():
    text = """
extensions:
  less: {class: DropoutRate, probability: 0.25}
policies:
  - {extension: {instance_name: less}, epochs: [1]}
"""
    assert check_schedule(text).problems == ()


def test_the_functions_do_the_same_by_hand():
    net = model()
    distiller.directives.adjust_dropout(net, 0.1)
    distiller.directives.freeze_training(net, "0")
    assert (net[1].p, net[3].p, net[0].weight.requires_grad, net[2].weight.requires_grad) == (0.1, 0.1, False, True)


BOTH = [INSIDE, *[(0.2, 0.2, False)] * 4, OUTSIDE, OUTSIDE]


def test_windows_that_overlap_end_in_any_order():
    assert train(*run(two_windows()), range(7)) == BOTH
    document = two_windows()
    document["policies"][0]["ending_epoch"] = document["policies"][1]["ending_epoch"] = 6  # the first one ends last
    assert train(*run(document), range(7)) == [*BOTH[:5], INSIDE, OUTSIDE]


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 4])
def test_overlapping_windows_go_on_after_a_resume(stop):
    net, optimizer, scheduler = run(two_windows())
    train(net, optimizer, scheduler, range(stop + 1))
    again, other, resumed = run(two_windows())
    again.load_state_dict(net.state_dict())
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    assert train(again, other, resumed, range(stop + 1, 7)) == BOTH[stop + 1 :]
