"""LRPolicy: values of absolute epochs and steps, plateaus, warm-ups, live schedulers, resume."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as torch_lr

from distiller_ng.core.context import StepContext
from distiller_ng.core.masks import MaskRegistry
from distiller_ng.core.position import TrainPosition
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, CheckpointError, LifecycleError
from distiller_ng.learning_rate import ScheduledLR
from distiller_ng.names import ParameterIndex
from distiller_ng.policies.lr import LRPolicy


@pytest.fixture
def model():
    return nn.Linear(2, 2)


@pytest.fixture
def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def rate(optimizer):
    return optimizer.param_groups[0]["lr"]


def train(scheduler, optimizer, epochs, metrics=None, minibatches=2):
    """Run epochs; the learning rate each epoch began with."""
    seen = []
    for epoch in epochs:
        scheduler.on_epoch_begin(epoch, optimizer)
        seen.append(rate(optimizer))
        for minibatch in range(minibatches):
            scheduler.on_minibatch_begin(epoch, minibatch, minibatches, optimizer)
            optimizer.step()
            scheduler.on_minibatch_end(epoch, minibatch, minibatches, optimizer)
        given = {} if metrics is None else {"metrics": metrics[epoch]}
        scheduler.on_epoch_end(epoch, optimizer, **given)
    return seen


def scheduled(model, policy, start=0, end=100):
    scheduler = CompressionScheduler(model)
    scheduler.add_policy(policy, starting_epoch=start, ending_epoch=end, frequency=1)
    return scheduler


def context(model, optimizer, epoch, minibatch=0, minibatches=10, **extra):
    parameters = ParameterIndex(model)
    return StepContext(
        model=model,
        parameters=parameters,
        masks=MaskRegistry(parameters),
        window=PolicyWindow.from_range(0, 100),
        position=TrainPosition(epoch, minibatch, minibatches),
        optimizer=optimizer,
        **extra,
    )


def test_lr_is_untouched_until_the_end_of_the_first_active_epoch(model, optimizer):
    policy = LRPolicy(ScheduledLR("pruning_lr", "ExponentialLR", {"gamma": 0.9}))
    seen = train(scheduled(model, policy, 24, 200), optimizer, range(23, 28))
    assert seen[:2] == [0.1, 0.1]  # epochs 23 and 24
    assert seen[2:] == pytest.approx([0.1 * 0.9**25, 0.1 * 0.9**26, 0.1 * 0.9**27], rel=1e-12)


def test_a_live_torch_scheduler_gets_the_same_absolute_values(model, optimizer):
    live = torch_lr.ExponentialLR(optimizer, gamma=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no deprecated step(epoch)
        seen = train(scheduled(model, LRPolicy(live), 24, 200), optimizer, range(23, 27))
    assert seen == pytest.approx([0.1, 0.1, 0.1 * 0.9**25, 0.1 * 0.9**26], rel=1e-12)
    assert live.last_epoch == 27
    assert live.get_last_lr() == pytest.approx([0.1 * 0.9**27])


@pytest.mark.parametrize(
    "build",
    [
        lambda o: torch_lr.OneCycleLR(o, max_lr=0.5, total_steps=12),
        lambda o: torch_lr.CyclicLR(o, 0.01, 0.1, step_size_up=3),
        lambda o: torch_lr.CosineAnnealingWarmRestarts(o, 3),
        lambda o: torch_lr.LambdaLR(o, lambda e: 1 / (1 + e)),
        lambda o: torch_lr.MultiplicativeLR(o, lambda e: 0.9),
        lambda o: torch_lr.SequentialLR(o, [torch_lr.LinearLR(o), torch_lr.StepLR(o, 2)], [3]),
        lambda o: torch_lr.ChainedScheduler([torch_lr.LinearLR(o), torch_lr.StepLR(o, 2)]),
        lambda o: torch_lr.MultiStepLR(o, [2, 4]),
    ],
)
def test_live_schedulers_equal_plain_stepping(model, optimizer, build):
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1, momentum=0.9)
    reference, plain = build(other), []
    for _ in range(9):
        plain.append((other.param_groups[0]["lr"], other.param_groups[0]["momentum"]))
        other.step()
        reference.step()
    scheduler = scheduled(model, LRPolicy(build(optimizer)))
    seen = []
    for epoch in range(9):
        seen.append((rate(optimizer), optimizer.param_groups[0]["momentum"]))
        train(scheduler, optimizer, [epoch])
    assert seen == [pytest.approx(pair, rel=1e-9) for pair in plain]


def test_a_live_scheduler_catches_up_to_the_absolute_epoch(model, optimizer):
    live = torch_lr.LambdaLR(optimizer, lambda e: 1 / (1 + e))
    train(scheduled(model, LRPolicy(live), 3, 9), optimizer, [3])
    assert (rate(optimizer), live.last_epoch) == (pytest.approx(0.1 / 5), 4)


def test_a_live_scheduler_stepped_elsewhere_is_an_error(model, optimizer):
    live = torch_lr.LambdaLR(optimizer, lambda e: 1.0)
    for _ in range(5):
        optimizer.step()
        live.step()
    with pytest.raises(LifecycleError, match="LambdaLR is already at 5, past 1"):
        train(scheduled(model, LRPolicy(live)), optimizer, [0])


def test_a_live_scheduler_of_another_optimizer_is_an_error(model, optimizer):
    live = torch_lr.StepLR(torch.optim.SGD(model.parameters(), lr=1.0), 3)
    with pytest.raises(LifecycleError, match="built on another optimizer"):
        train(scheduled(model, LRPolicy(live)), optimizer, [0])


def test_a_live_scheduler_takes_groups_added_later(model, optimizer):
    policy = LRPolicy(torch_lr.ExponentialLR(optimizer, 0.5))
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.8})
    train(scheduled(model, policy), optimizer, [0])
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.4])


def test_loading_a_policy_moves_nothing(model, optimizer):
    definition = {"class": "LinearLR", "start_factor": 0.1, "total_iters": 4}
    driver = ScheduledLR.from_definition("warm", definition)
    driver.bind(optimizer)
    scheduler = scheduled(model, LRPolicy(driver), 2, 9)
    assert train(scheduler, optimizer, range(4)) == pytest.approx([0.1, 0.1, 0.1, 0.1 * (0.1 + 0.9 * 3 / 4)])


def test_a_warm_up_from_epoch_0_starts_low(model, optimizer):
    policy = LRPolicy(ScheduledLR("warm", "LinearLR", {"start_factor": 0.1, "total_iters": 3}))
    assert train(scheduled(model, policy), optimizer, range(5)) == pytest.approx([0.01, 0.04, 0.07, 0.1, 0.1])


def test_a_decay_from_epoch_0_respects_the_loops_own_first_value(model, optimizer):
    driver = ScheduledLR("lr", "CosineAnnealingLR", {"T_max": 4})
    driver.bind(optimizer)
    optimizer.param_groups[0]["lr"] = 0.02  # the loop's own warm-up
    assert train(scheduled(model, LRPolicy(driver)), optimizer, range(2))[0] == 0.02


def test_two_policies_hand_over(model, optimizer):
    scheduler = CompressionScheduler(model)
    warm = ScheduledLR("warm", "LinearLR", {"start_factor": 0.5, "total_iters": 2})
    decay = ScheduledLR("decay", "ExponentialLR", {"gamma": 0.5})
    scheduler.add_policy(LRPolicy(warm), starting_epoch=0, ending_epoch=2, frequency=1)
    scheduler.add_policy(LRPolicy(decay), starting_epoch=2, ending_epoch=9, frequency=1)
    assert train(scheduler, optimizer, range(5)) == pytest.approx([0.05, 0.075, 0.1, 0.0125, 0.00625])


def test_frequency_skips_epochs(model, optimizer):
    scheduler = CompressionScheduler(model)
    policy = LRPolicy(ScheduledLR("lr", "ExponentialLR", {"gamma": 0.5}))
    scheduler.add_policy(policy, starting_epoch=0, ending_epoch=6, frequency=2)
    assert train(scheduler, optimizer, range(5)) == pytest.approx([0.1, 0.05, 0.05, 0.0125, 0.0125])


def test_fractional_window_sets_the_value_of_the_epoch_it_is_in(model, optimizer):
    scheduler = CompressionScheduler(model)
    policy = LRPolicy(ScheduledLR("lr", "ExponentialLR", {"gamma": 0.5}))
    scheduler.add_policy(policy, starting_epoch=1.5, ending_epoch=3.5, frequency=1)
    assert train(scheduler, optimizer, range(4)) == pytest.approx([0.1, 0.1, 0.05, 0.025])


# -- unit: step -------------------------------------------------------------------------------------------------------


def test_unit_step_follows_absolute_steps(model, optimizer):
    kwargs = {"max_lr": 0.5, "total_steps": 12}
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1, momentum=0.9)
    reference = torch_lr.OneCycleLR(other, **kwargs)
    scheduler = scheduled(model, LRPolicy(ScheduledLR("cycle", "OneCycleLR", kwargs, unit="step")))
    for epoch in range(3):
        scheduler.on_epoch_begin(epoch, optimizer)
        for minibatch in range(4):
            scheduler.on_minibatch_begin(epoch, minibatch, 4, optimizer)
            assert rate(optimizer) == pytest.approx(rate(other), rel=1e-9)
            assert optimizer.param_groups[0]["momentum"] == pytest.approx(other.param_groups[0]["momentum"])
            optimizer.step()
            other.step()
            if (epoch, minibatch) != (2, 3):
                reference.step()
            scheduler.on_minibatch_end(epoch, minibatch, 4, optimizer)
        scheduler.on_epoch_end(epoch, optimizer)


def test_unit_step_counts_real_steps_only(model, optimizer):
    policy = LRPolicy(ScheduledLR("lr", "ExponentialLR", {"gamma": 0.5}), unit="step")
    policy.on_minibatch_end(context(model, optimizer, 0, 3, is_step=False))
    assert rate(optimizer) == 0.1
    policy.on_minibatch_end(context(model, optimizer, 1, 3))  # step 13 of 10 an epoch is done
    assert rate(optimizer) == pytest.approx(0.1 * 0.5**14)
    policy.on_epoch_end(context(model, optimizer, 1))
    assert rate(optimizer) == pytest.approx(0.1 * 0.5**14)


def test_unit_step_with_a_live_scheduler(model, optimizer):
    policy = LRPolicy(torch_lr.OneCycleLR(optimizer, 0.5, total_steps=4), unit="step")
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1, momentum=0.9)
    reference = torch_lr.OneCycleLR(other, 0.5, total_steps=4)
    other.step()
    reference.step()
    scheduler = scheduled(model, policy)
    train(scheduler, optimizer, [0], minibatches=1)
    assert rate(optimizer) == pytest.approx(rate(other))
    train(scheduler, optimizer, range(1, 8), minibatches=1)  # past its end: the last value is kept
    assert rate(optimizer) == pytest.approx(0.5 / 25 / 1e4)


def test_hooks_that_are_listened_to():
    def listened(policy):
        hooks = ("on_epoch_begin", "on_minibatch_begin", "before_backward_pass", "on_minibatch_end", "on_epoch_end")
        return {hook for hook in hooks if policy.listens_to(hook)}

    driver = ScheduledLR("lr", "ExponentialLR", {"gamma": 0.5})
    live = torch_lr.StepLR(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), 3)
    assert listened(LRPolicy(driver)) == {"on_epoch_begin", "on_epoch_end"}
    assert listened(LRPolicy(driver, unit="step")) == {"on_epoch_begin", "on_minibatch_end", "on_epoch_end"}
    assert listened(LRPolicy(live)) == {"on_epoch_end"}


# -- ReduceLROnPlateau ------------------------------------------------------------------------------------------------

LOSSES = [1.0, 0.5, 0.5, 0.5, 0.5, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]
PLATEAU = {"patience": 1, "factor": 0.5, "cooldown": 1, "min_lr": 0.01}


def plain_plateau(mode, values):
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    scheduler = torch_lr.ReduceLROnPlateau(optimizer, mode=mode, **PLATEAU)
    seen = []
    for value in values:
        seen.append(rate(optimizer))
        scheduler.step(value)
    return seen


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_plateau_takes_the_metric_of_its_mode(model, optimizer, mode, live):
    values = LOSSES if mode == "min" else [1 - loss for loss in LOSSES]
    unused = {"max": 0.0} if mode == "min" else {"min": 9.0}
    kwargs = {"mode": mode, **PLATEAU}
    policy = LRPolicy(
        torch_lr.ReduceLROnPlateau(optimizer, **kwargs) if live else ScheduledLR("p", "ReduceLROnPlateau", kwargs)
    )
    metrics = [{mode: value, **unused} for value in values]
    seen = train(scheduled(model, policy), optimizer, range(len(values)), metrics)
    assert seen == plain_plateau(mode, values)
    assert len(set(seen)) == 4


def test_plateau_without_its_metric(model, optimizer):
    policy = LRPolicy(ScheduledLR("p", "ReduceLROnPlateau", {"mode": "max"}))
    message = r"'max', none came: call on_epoch_end\(0, optimizer, metrics=\{'min': val_loss, 'max': top1\}\)"
    with pytest.raises(LifecycleError, match=message):
        train(scheduled(model, policy), optimizer, [0])
    with pytest.raises(LifecycleError, match=r"only \['min'\] came"):
        policy.on_epoch_end(context(model, optimizer, 3, metrics={"min": 1.0}))


def test_plateau_needs_whole_epochs(model):
    policy = LRPolicy(ScheduledLR("p", "ReduceLROnPlateau"))
    with pytest.raises(ArgumentError, match="give whole epochs"):
        CompressionScheduler(model).add_policy(policy, starting_epoch=0.5, ending_epoch=3, frequency=1)


@pytest.mark.parametrize("saved_after", range(1, len(LOSSES)))
@pytest.mark.parametrize("live", [False, True])
def test_plateau_resumes_exactly(model, optimizer, saved_after, live):
    def policy(target):
        if live:
            return LRPolicy(torch_lr.ReduceLROnPlateau(target, **PLATEAU))
        return LRPolicy(ScheduledLR("p", "ReduceLROnPlateau", PLATEAU))

    metrics = [{"min": loss} for loss in LOSSES]
    first = scheduled(model, policy(optimizer))
    seen = train(first, optimizer, range(saved_after), metrics)
    buffer = io.BytesIO()
    torch.save({"scheduler": first.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    fresh = torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9)
    second = scheduled(model, policy(fresh))
    fresh.load_state_dict(saved["optimizer"])
    second.load_state_dict(saved["scheduler"])
    seen += train(second, fresh, range(saved_after, len(LOSSES)), metrics)
    assert seen == plain_plateau("min", LOSSES)


# -- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("ExponentialLR", {"gamma": 0.8}),
        ("MultiStepLR", {"milestones": [1, 3]}),
        ("OneCycleLR", {"max_lr": 0.5, "total_steps": 9}),
        ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.3, "step_size_up": 2}),
        ("CosineAnnealingWarmRestarts", {"T_0": 2}),
        ("MultiplicativeLR", {"lr_lambda": lambda e: 0.9}),
    ],
)
@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("initial_lr_saved", [True, False])
def test_resume_continues_on_the_same_values(model, optimizer, name, kwargs, live, initial_lr_saved):
    if live and not initial_lr_saved:
        initial_lr_saved = True  # torch's own objects always write it

    def policy(target):
        return LRPolicy(getattr(torch_lr, name)(target, **kwargs) if live else ScheduledLR("lr", name, kwargs))

    whole = train(scheduled(model, policy(optimizer)), optimizer, range(6))
    again = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    first = scheduled(model, policy(again))
    seen = train(first, again, range(3))
    state, optimizer_state = copy.deepcopy((first.state_dict(), again.state_dict()))
    if not initial_lr_saved:
        for group in optimizer_state["param_groups"]:
            del group["initial_lr"]
    third = torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9)
    second = scheduled(model, policy(third))
    third.load_state_dict(optimizer_state)
    second.load_state_dict(state)
    assert seen + train(second, third, range(3, 6)) == pytest.approx(whole, rel=1e-12)


def test_state_of_another_class_is_refused():
    state = LRPolicy(ScheduledLR("lr", "ExponentialLR", {"gamma": 0.5})).state_dict()
    other = LRPolicy(ScheduledLR("lr", "StepLR", {"step_size": 3}))
    with pytest.raises(CheckpointError, match="'lr' is a StepLR, the checkpoint has 'ExponentialLR'"):
        other.load_state_dict(state)
    with pytest.raises(CheckpointError, match="expects the keys begun and lr_scheduler"):
        other.load_state_dict({"base_lrs": [0.1]})


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_no_optimizer_ever(model):
    policy = LRPolicy(ScheduledLR("lr", "ExponentialLR", {"gamma": 0.5}))
    policy.on_epoch_begin(context(model, None, 0))
    with pytest.raises(LifecycleError, match=r"on_epoch_end\(epoch, optimizer\)"):
        policy.on_epoch_end(context(model, None, 0))


def test_the_optimizer_given_at_load_time_serves(model, optimizer):
    driver = ScheduledLR("lr", "ExponentialLR", {"gamma": 0.5})
    driver.bind(optimizer)
    LRPolicy(driver).on_epoch_end(context(model, None, 0))
    assert rate(optimizer) == 0.05


@pytest.mark.parametrize("thing", [torch_lr.StepLR, "StepLR", None])
def test_what_is_no_scheduler(thing):
    with pytest.raises(ArgumentError, match="expected a learning-rate scheduler") as caught:
        LRPolicy(thing)
    assert caught.value.argument == ("lr_scheduler",)


def test_unit_is_checked():
    with pytest.raises(ArgumentError, match="unknown unit 'steps'. Did you mean 'step'"):
        LRPolicy(ScheduledLR("lr", "StepLR", {"step_size": 3}), unit="steps")
    with pytest.raises(ArgumentError, match="unit must be 'epoch'"):
        LRPolicy(ScheduledLR("p", "ReduceLROnPlateau"), unit="step")


def test_description():
    assert LRPolicy(ScheduledLR("pruning_lr", "StepLR", {"step_size": 3})).describe() == "LRPolicy(pruning_lr: StepLR)"
    live = torch_lr.StepLR(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), 3)
    assert LRPolicy(live).describe() == "LRPolicy(StepLR)"
