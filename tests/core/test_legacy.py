"""Policies and pruners written against Distiller's interfaces run as they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distiller_ng.core.legacy import ScheduledTrainingPolicy
from distiller_ng.core.policy import LossComponent, PolicyLoss
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import ArgumentError
from distiller_ng.policies.pruning import PruningPolicy


class Ported(ScheduledTrainingPolicy):
    def __init__(self):
        super().__init__()
        self.calls = []

    def on_epoch_begin(self, model, zeros_mask_dict, meta, **kwargs):
        self.calls.append(("epoch", meta["current_epoch"], meta["starting_epoch"], meta["ending_epoch"]))
        zeros_mask_dict["weight"].mask = torch.tensor([[1.0, 0.0]])

    def on_minibatch_begin(
        self, model, epoch, minibatch_id, minibatches_per_epoch, zeros_mask_dict, meta, optimizer=None
    ):
        self.calls.append(("begin", epoch, minibatch_id, minibatches_per_epoch))

    def before_backward_pass(
        self, model, epoch, minibatch_id, minibatches_per_epoch, loss, zeros_mask_dict, optimizer=None
    ):
        return PolicyLoss(loss + 1, LossComponent("one", torch.tensor(1.0)))

    def on_minibatch_end(self, model, epoch, minibatch_id, minibatches_per_epoch, zeros_mask_dict, optimizer):
        self.calls.append(("end", optimizer))

    def on_epoch_end(self, model, zeros_mask_dict, meta, **kwargs):
        self.calls.append(("epoch end", kwargs["metrics"]))


def test_a_seven_argument_policy_runs_with_a_deprecation_warning():
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler, policy = CompressionScheduler(model), Ported()
    with pytest.warns(DeprecationWarning, match="Ported uses Distiller's positional hooks"):
        scheduler.add_policy(policy, starting_epoch=0, ending_epoch=2, frequency=1)
    assert scheduler.policies == {0: [policy], 1: [policy]}
    scheduler.on_epoch_begin(0, optimizer)
    scheduler.on_minibatch_begin(0, 0, 1)
    assert model.weight[0, 1] == 0
    assert scheduler.before_backward_pass(0, 0, 1, torch.tensor(2.0)).item() == 3
    scheduler.on_minibatch_end(0, 0, 1)
    scheduler.on_epoch_end(0, metrics={"min": 1.0, "max": 2.0})
    assert policy.calls == [
        ("epoch", 0, 0, 2),
        ("begin", 0, 0, 1),
        ("end", optimizer),
        ("epoch end", {"min": 1.0, "max": 2.0}),
    ]


class PortedPruner:
    """Distiller's pruner interface: a name, and set_param_mask."""

    name = "ported"

    def set_param_mask(self, param, param_name, zeros_mask_dict, meta):
        if param_name == "0.weight":
            zeros_mask_dict[param_name].mask = (param.abs() > 0.5).float()


def test_a_distiller_pruner_runs_and_can_change_its_mind():
    model = nn.Sequential(nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.2, 0.9]]))
        model[0].bias.fill_(0.1)
    scheduler = CompressionScheduler(model)
    scheduler.add_policy(PruningPolicy(PortedPruner(), None), epochs=[0, 1])
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    assert model[0].weight.tolist() == [[0, pytest.approx(0.9)]] and model[0].bias.item() == pytest.approx(0.1)
    scheduler.on_minibatch_end(0, 0, 1)
    scheduler.on_epoch_end(0)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.8, 0.1]]))
    scheduler.on_epoch_begin(1)
    assert scheduler.zeros_mask_dict["0.weight"].mask.tolist() == [[1, 0]]


def test_what_is_no_pruner_is_refused():
    with pytest.raises(ArgumentError, match="not a pruner"):
        PruningPolicy(object(), None)


def test_a_subclass_of_ours_with_distillers_arguments_is_refused_when_added():
    class Mixed(PruningPolicy):
        def on_epoch_begin(self, model, zeros_mask_dict, meta, **kwargs):
            pass

    scheduler = CompressionScheduler(nn.Linear(2, 1))
    with pytest.raises(
        ArgumentError, match=r"Mixed.on_epoch_begin takes model, zeros_mask_dict, meta.*one StepContext"
    ):
        scheduler.add_policy(Mixed(PortedPruner(), None), epochs=[0])


def test_distillers_module_names_hold_the_same_classes():
    import distiller_ng as distiller

    assert distiller.policy.PruningPolicy is distiller.PruningPolicy
    assert distiller.scheduler.CompressionScheduler is distiller.CompressionScheduler
    assert distiller.model_summaries.model_summary is distiller.model_summary
