"""Learning-rate curves of plans against training itself, and predictions on odd models."""

from __future__ import annotations

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from distiller_ng.config import dict_config, file_config
from distiller_ng.policies.lr import LRPolicy
from distiller_ng.reports import _timeline_picture, schedule_plan, schedule_timeline
from distiller_ng.reports._plan_curves import Curve
from distiller_ng.reports.schedule_timeline import PolicyTimeline, ScheduleTimeline

STEPS = 4


def lr(definition, **window):
    policy = {"lr_scheduler": {"instance_name": "lr"}, "starting_epoch": 0, "ending_epoch": 5, "frequency": 1, **window}
    return {"lr_schedulers": {"lr": definition}, "policies": [policy]}


def extension(definition, **window):
    given = {"starting_epoch": 0, "ending_epoch": 4, "frequency": -1, "trigger": "step", **window}
    return {"extensions": {"lr": definition}, "policies": [{"extension": {"instance_name": "lr"}, **given}]}


WARM_UP = {
    "class": "SequentialLR",
    "unit": "step",
    "schedulers": [
        {"class": "LinearLR", "start_factor": 0.1, "total_iters": 6},
        {"class": "CosineAnnealingLR", "T_max": 14},
    ],
    "milestones": [6],
}
FUNCTION = {"class": "LearningRateFunction", "lr_func": "linear", "init_lr": 0.4, "final_lr": 0.04}
CYCLES = {**FUNCTION, "lr_func": "cyclic_linear", "cycle_epochs": 1.5}
FALLS = {"class": "LearningRate", "lr_class": "MultiStepLR", "lr_kwargs": {"gamma": 0.1, "milestones": [1.5, 3]}}
RECIPE = """\
modifiers:
  - !EpochRangeModifier {start_epoch: 0, end_epoch: 6}
  - !LearningRateFunctionModifier {start_epoch: 1, end_epoch: 5, lr_func: cosine, init_lr: 0.2, final_lr: 0.02}
  - !SetLearningRateModifier {start_epoch: 5.5, learning_rate: 0.005}
"""


def trained(scheduler, optimizer, epochs):
    """What every step of a real loop finds in the groups, at its epoch."""
    seen = []
    for epoch in range(epochs):
        scheduler.on_epoch_begin(epoch, optimizer)
        for step in range(STEPS):
            scheduler.on_minibatch_begin(epoch, step, STEPS, optimizer)
            scheduler.before_parameter_optimization(epoch, step, STEPS, optimizer)
            seen.append((epoch + step / STEPS, [group["lr"] for group in optimizer.param_groups]))
            optimizer.step()
            scheduler.on_minibatch_end(epoch, step, STEPS, optimizer)
        scheduler.on_epoch_end(epoch, optimizer)
    return seen


def value(curve, at):
    return [rate for epoch, rate in curve if epoch <= at + 1e-9][-1]


@pytest.mark.parametrize(
    "schedule",
    [
        lr({"class": "MultiStepLR", "milestones": [2, 4], "gamma": 0.1}),
        lr({"class": "ExponentialLR", "gamma": 0.5}, starting_epoch=2),
        lr({"class": "LinearLR", "start_factor": 0.5, "total_iters": 3}),
        lr(WARM_UP),
        lr(WARM_UP, starting_epoch=1, ending_epoch=3),
        lr({"class": "OneCycleLR", "max_lr": 0.5, "total_steps": 24, "unit": "step"}, ending_epoch=6),
        lr({"class": "CyclicLR", "base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3, "unit": "step"}),
        extension(FUNCTION),
        extension(FUNCTION, starting_epoch=1.25, ending_epoch=3.5),
        extension(CYCLES),
        extension(FALLS),
        extension(
            {"class": "SetLearningRate", "learning_rate": 0.03}, starting_epoch=2.5, ending_epoch=-1, frequency=0
        ),
        RECIPE,
    ],
)
def test_curves_are_what_training_sets(schedule):
    model = nn.Sequential(nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4, momentum=0.9)
    load = file_config if isinstance(schedule, str) else dict_config
    scheduler = load(model, optimizer, schedule)
    before = [dict(group, params=0) for group in optimizer.param_groups]
    timeline = schedule_timeline(scheduler, STEPS, 6, optimizer=optimizer)
    assert [dict(group, params=0) for group in optimizer.param_groups] == before
    assert timeline.rate_unknown_from is None and timeline.notes == ()
    for at, (rate,) in trained(scheduler, optimizer, 6):
        assert value(timeline.learning_rate, at) == pytest.approx(rate), at


@pytest.mark.parametrize(
    "window",
    [
        {"starting_epoch": 1.5, "ending_epoch": 5.25, "frequency": 0.5},
        {"starting_epoch": 0, "ending_epoch": 3.5, "frequency": 0.3},
        {"starting_epoch": 0.5, "ending_epoch": 4, "frequency": 0.7, "trigger": "step"},
        {"starting_epoch": 1, "ending_epoch": 6, "frequency": 2},
    ],
)
def test_sparsities_are_what_training_prunes(window):
    model = nn.Sequential(nn.Linear(100, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    agp = {"class": "AutomatedGradualPruner", "initial_sparsity": 0.1, "final_sparsity": 0.9, "weights": ["0.weight"]}
    schedule = {"pruners": {"p": agp}, "policies": [{"pruner": {"instance_name": "p"}, **window}]}
    scheduler = dict_config(model, optimizer, schedule)
    curve = schedule_timeline(scheduler, STEPS, 6).policies[0].sparsity
    for epoch in range(6):
        scheduler.on_epoch_begin(epoch, optimizer)
        for step in range(STEPS):
            scheduler.on_minibatch_begin(epoch, step, STEPS, optimizer)
            scheduler.before_backward_pass(epoch, step, STEPS, model(torch.ones(1, 100)).sum(), optimizer)
            scheduler.before_parameter_optimization(epoch, step, STEPS, optimizer)
            optimizer.step()
            scheduler.on_minibatch_end(epoch, step, STEPS, optimizer)
            at = epoch + step / STEPS
            wanted = value(curve, at) if at >= curve[0][0] else 0.0
            assert float((model[0].weight == 0).double().mean()) == pytest.approx(wanted, abs=1e-3), at
        scheduler.on_epoch_end(epoch, optimizer)


def test_groups_with_rates_of_their_own():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[1].parameters(), "lr": 0.01}]
    optimizer = torch.optim.SGD(groups)
    scheduler = dict_config(model, optimizer, lr({"class": "ExponentialLR", "gamma": 0.5}))
    timeline = schedule_timeline(scheduler, STEPS, 3, optimizer=optimizer)
    assert [rate for _, rate in timeline.learning_rate] == pytest.approx([0.1, 0.05, 0.025])
    assert [rate for _, rate in timeline.other_rates[0]] == pytest.approx([0.01, 0.005, 0.0025])
    assert "  group 2" in timeline.text() and len(timeline.other_rates) == 1


def test_schedulers_of_the_users_own():
    model = nn.Sequential(nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4)
    scheduler = dict_config(model, optimizer, {"pruners": {"p": {"class": "SparsityLevelParameterPruner", "levels":
        {"0.weight": 0.5}}}, "policies": [{"pruner": {"instance_name": "p"}, "epochs": [0]}]})  # fmt: skip
    own = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)
    scheduler.add_policy(LRPolicy(own), starting_epoch=0, ending_epoch=4)
    timeline = schedule_timeline(scheduler, STEPS, 4, optimizer=optimizer)
    assert [rate for _, rate in timeline.learning_rate] == pytest.approx([0.4, 0.4, 0.04, 0.04])
    assert own.last_epoch == 0 and optimizer.param_groups[0]["lr"] == 0.4


def half(**pruner):
    definition = {"class": "SparsityLevelParameterPruner", "levels": {"0.weight": 0.5}, **pruner}
    return {"pruners": {"p": definition}, "policies": [{"pruner": {"instance_name": "p"}, "epochs": [1]}]}


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, lambda m: m.to(torch.bfloat16)])
def test_odd_models(wrap):
    """16 + 4 values, half of the 16 go; bfloat16 takes two bytes a value."""
    model = wrap(nn.Sequential(nn.Linear(4, 4)))
    scheduler = dict_config(model, None, half())
    plan = schedule_plan(scheduler, STEPS, predict=True)
    size = 20 * next(model.parameters()).element_size()
    assert [(r.parameters, r.nonzero, r.macs, r.size_bytes) for r in plan.sizes] == [
        (20, 20, None, size),
        (20, 12, None, size),
    ]
    assert plan.notes[-1] == "MACs are not known: give the shape of the model's input"
    assert "?" in plan.table()


def test_models_that_do_not_run_are_a_note():
    model = nn.Sequential(nn.Linear(4, 4))
    scheduler = dict_config(model, None, half(), example_inputs=(torch.zeros(1, 3),))
    plan = schedule_plan(scheduler, STEPS, predict=True)
    assert plan.sizes[-1].nonzero == 12 and "the model does not run" in plan.notes[-1]


def test_without_predictions_nothing_is_run():
    model = nn.Sequential(nn.Linear(4, 4))
    plan = schedule_plan(dict_config(model, None, half()), STEPS)
    assert plan.sizes == () and "Predicted" not in str(plan) and plan.as_dict()["policies"][0]["kind"] == "pruning"


def test_low_rank_layers_are_predicted():
    """[8, 8] at rank 2 is 2 * (8 + 8) weights and 8 biases."""
    model = nn.Sequential(nn.Linear(8, 8))
    schedule = {
        "extensions": {"svd": {"class": "LowRankThinning", "layers": ["0"], "rank": 2}},
        "policies": [{"extension": {"instance_name": "svd"}, "epochs": [1]}],
    }
    scheduler = dict_config(model, None, schedule, example_inputs=(torch.zeros(1, 8),))
    plan = schedule_plan(scheduler, STEPS, 3, predict=True)
    assert plan.policies[0].kind == "thinning"
    assert [(row.epoch, row.parameters, row.macs) for row in plan.sizes] == [(0, 72, 64), (1, 40, 32)]
    assert isinstance(model[0], nn.Linear)


def test_words_stay_on_their_bars_and_legends_off_the_lines():
    """A bar near the end has its words inside; legends are above their panels."""
    starts = {"a": 10, "b": 14}
    rows = [PolicyTimeline(name, ((at, 15.0),), kind="quantization", mark="W8") for name, at in starts.items()]
    axes = Figure().subplots()
    _timeline_picture._draw_bars(axes, ScheduleTimeline(15, tuple(rows)))
    early, late = axes.texts
    assert early.get_ha() == "left" and early.get_position()[0] == pytest.approx(10.1)
    assert late.get_ha() == "right" and late.get_position()[0] == pytest.approx(14.9)
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    curve = Curve("sparsity", ("c.weight",), ((0.0, 0.0), (3.0, 0.5)))
    pruned = PolicyTimeline("p", ((0.0, 15.0),), kind="pruning", curves=(curve,))
    _timeline_picture._draw_curves(axes, ScheduleTimeline(15, (pruned,)))
    figure.draw_without_rendering()
    assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1
