"""Windows that are looked at right before every optimizer step: the timing of SparseML's recipes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from distiller_ng import (
    ArgumentError,
    CompressionScheduler,
    LossComponent,
    Policy,
    PolicyLoss,
    PolicyWindow,
    TrainPosition,
)


class Diary(Policy):
    def __init__(self):
        self.acts, self.ends, self.minibatches, self.progress = [], [], [], []
        self.finished = 0

    def on_update(self, ctx):
        self.acts.append(round(ctx.position.fraction, 6))
        self.progress.append(round(ctx.progress, 6))

    def on_window_end(self, ctx):
        self.ends.append(round(ctx.position.fraction, 6))

    def before_backward_pass(self, ctx):
        self.minibatches.append(round(ctx.position.fraction, 6))
        return PolicyLoss(ctx.loss * 1, LossComponent("same", ctx.loss))

    def on_finish(self, ctx):
        self.finished += 1


def setup(*window, compat=None, **options):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = CompressionScheduler(model, optimizer=optimizer, compat=compat, **options)
    diary = Diary()
    scheduler.add_policy(diary, None, *window, trigger="step")
    return scheduler, optimizer, model, diary


def train(scheduler, optimizer, model, epochs, steps, first=0):
    for epoch in range(first, epochs):
        scheduler.on_epoch_begin(epoch)
        for i in range(steps):
            scheduler.on_minibatch_begin(epoch, i, steps)
            loss = model(torch.ones(1, 2)).sum()
            scheduler.before_backward_pass(epoch, i, steps, loss).backward()
            scheduler.before_parameter_optimization(epoch, i, steps)
            optimizer.step()
            scheduler.on_minibatch_end(epoch, i, steps)
        scheduler.on_epoch_end(epoch)


TABLE = [
    # start, end, frequency, steps an epoch, epochs trained -> acts, ends
    ((0, 2, 0.3), 4, 3, [0, 0.5, 1, 1.5], [2]),
    ((0, 4, 1), 2, 5, [0, 1, 2, 3], [4]),
    ((0.5, 2.5, 0.5), 4, 3, [0.5, 1, 1.5, 2], [2.5]),
    ((-1, -1, -1), 2, 2, [0, 0.5, 1, 1.5], []),
    ((-1, 1, 0), 4, 2, [0], [1]),
    ((0.1, 0.9, 0), 2, 2, [0.5], [1]),
    ((1, 1, 0), 2, 2, [1], [1]),
    ((0, 2.9, -1), 2, 4, [0, 0.5, 1, 1.5, 2, 2.5], [3]),
    ((0, 1, 0.1), 10, 2, [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], [1]),
    ((5, 6, 1), 2, 3, [], []),
]


@pytest.mark.parametrize(("window", "steps", "epochs", "acts", "ends"), TABLE)
def test_a_window_acts_at_the_first_step_at_or_after_each_time(window, steps, epochs, acts, ends):
    scheduler, optimizer, model, diary = setup(*window)
    train(scheduler, optimizer, model, epochs, steps)
    assert diary.acts == acts
    assert diary.ends == ends
    planned = PolicyWindow.of_steps(*window).planned(steps, until=epochs)
    expected = sorted({*acts, *ends})
    assert [round(epoch, 6) for epoch in planned] == expected


def test_the_end_that_training_never_reached_is_made_up_for_by_finish():
    scheduler, optimizer, model, diary = setup(0, 4, 1)
    train(scheduler, optimizer, model, 4, 2)
    assert diary.ends == []
    scheduler.finish()
    scheduler.finish()
    assert diary.ends == [4] and diary.finished == 1


def test_training_that_stops_early_does_not_end_a_window():
    scheduler, optimizer, model, diary = setup(0, 4, 1)
    train(scheduler, optimizer, model, 3, 2)
    scheduler.finish()
    assert diary.ends == []


def test_strictly_like_sparseml_the_end_is_lost():
    scheduler, optimizer, model, diary = setup(0, 2, 1, compat="sparseml")
    train(scheduler, optimizer, model, 2, 2)
    scheduler.finish()
    assert diary.ends == []


@pytest.mark.parametrize(("compat", "ends"), [(None, [6]), ("sparseml", [])])
def test_a_run_that_begins_past_the_end_starts_and_ends_at_once(compat, ends):
    scheduler, optimizer, model, diary = setup(0, 4, 1, compat=compat)
    train(scheduler, optimizer, model, 8, 2, first=6)
    assert diary.acts == [6] and diary.ends == ends


def test_progress_counts_from_zero_and_strictly_from_minus_one():
    scheduler, optimizer, model, diary = setup(-1, 4, 1)
    train(scheduler, optimizer, model, 4, 1)
    assert diary.progress == [0, 0.25, 0.5, 0.75]
    scheduler, optimizer, model, diary = setup(-1, 4, 1, compat="sparseml")
    train(scheduler, optimizer, model, 4, 1)
    assert diary.progress == [0.2, 0.4, 0.6, 0.8]


def test_minibatch_hooks_come_from_the_start_to_the_step_of_the_end():
    scheduler, optimizer, model, diary = setup(0.5, 1.5, 0)
    train(scheduler, optimizer, model, 3, 2)
    assert diary.minibatches == [0.5, 1, 1.5]


def test_a_policy_that_outlives_its_window_is_called_to_the_end():
    class Lasting(Diary):
        outlives_window = True

    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = CompressionScheduler(model, optimizer=optimizer)
    diary = Lasting()
    scheduler.add_policy(diary, None, 0, 1, 0, trigger="step")
    train(scheduler, optimizer, model, 2, 2)
    assert diary.minibatches == [0, 0.5, 1, 1.5] and diary.ends == [1]


def test_an_update_comes_after_backward_and_before_the_step():
    seen = []

    class Rate(Policy):
        def on_update(self, ctx):
            assert ctx.parameters["weight"].grad is not None
            ctx.optimizer.param_groups[0]["lr"] = 0.0
            seen.append(ctx.position.step)

    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    scheduler = CompressionScheduler(model, optimizer=optimizer)
    scheduler.add_policy(Rate(), None, 0, -1, 0, trigger="step")
    before = model.weight.detach().clone()
    train(scheduler, optimizer, model, 1, 1)
    assert seen == [0] and torch.equal(model.weight, before)


@pytest.mark.parametrize("with_optimizer", [True, False])
def test_a_loop_that_leaves_out_the_hook_before_the_step(with_optimizer):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = CompressionScheduler(model, optimizer=optimizer if with_optimizer else None)
    diary = Diary()
    scheduler.add_policy(diary, None, 0, 1, 0.5, trigger="step")
    for epoch in range(2):
        scheduler.on_epoch_begin(epoch)
        for i in range(4):
            scheduler.on_minibatch_begin(epoch, i, 4)
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            scheduler.on_minibatch_end(epoch, i, 4)
        scheduler.on_epoch_end(epoch)
    assert diary.acts == [0, 0.5] and diary.ends == [1]


def test_accumulated_gradients_count_as_one_step():
    scheduler, optimizer, model, diary = setup(0, 2, 0.5)
    for _ in scheduler.epochs(3):
        for _ in scheduler.minibatches(range(8), accumulate=4):
            scheduler.backward(model(torch.ones(1, 2)).sum())
            if scheduler.should_step:
                optimizer.step()
    assert diary.acts == [0, 0.5, 1, 1.5] and diary.ends == [2]


def test_a_resumed_run_acts_as_if_it_had_not_stopped():
    whole = setup(0, 2, 0.3)
    train(*whole[:3], 3, 4)
    first = setup(0, 2, 0.3)
    train(*first[:3], 1, 4)
    second = setup(0, 2, 0.3)
    second[0].load_state_dict(copy.deepcopy(first[0].state_dict()))
    train(*second[:3], 3, 4, first=1)
    assert first[3].acts + second[3].acts == whole[3].acts
    assert second[3].ends == whole[3].ends


def test_copies_of_a_scheduler_look_at_their_own_windows():
    scheduler, _, _, diary = setup(0, -1, -1)
    copied = copy.deepcopy(scheduler)
    own = copied.schedule[0][0]
    copied.on_epoch_begin(0)
    copied.on_minibatch_begin(0, 0, 1)
    copied.model(torch.ones(1, 2)).sum().backward()
    copied.optimizer.step()
    assert own.acts == [0] and diary.acts == []


def test_epochs_of_no_whole_number_of_steps():
    assert TrainPosition(1, 0, 12, 12.5).fraction == pytest.approx(1.04)
    assert TrainPosition(1, 0, 12, 12.5).step == 13
    assert TrainPosition.one_shot().fraction == math.inf


def test_one_shot_use_shows_every_window_complete():
    scheduler, _, _, diary = setup(0, -1, 1)
    scheduler.run_once()
    assert diary.progress == [1] and diary.acts == [math.inf] and len(diary.ends) == 1


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ((-2, 1, 1), "starting_epoch"),
        ((-0.5, 1, 1), "starting_epoch"),
        ((2, 1, 1), "ending_epoch"),
        ((0, 1, -2), "frequency"),
        ((0, math.nan, 1), "ending_epoch"),
        ((True, 1, 1), "starting_epoch"),
    ],
)
def test_impossible_windows(arguments, argument):
    with pytest.raises(ArgumentError) as caught:
        PolicyWindow.of_steps(*arguments)
    assert caught.value.argument == (argument,)


def test_lists_of_epochs_have_no_steps():
    with pytest.raises(ArgumentError, match="list of epochs"):
        PolicyWindow.from_arguments([1, 2], trigger="step")
    with pytest.raises(ArgumentError, match="trigger"):
        PolicyWindow.from_arguments([1, 2], trigger="minute")


def test_the_length_of_a_schedule():
    scheduler, *_ = setup(0, 2.3, 1)
    assert scheduler.max_epochs == 3
    scheduler.add_policy(Diary(), None, 7, -1, 0, trigger="step")
    assert scheduler.max_epochs == 7


def test_windows_are_told_in_words():
    assert str(PolicyWindow.of_steps(-1, 2, -1)) == "epochs 0 to 2, every step"
    assert str(PolicyWindow.of_steps(1, -1, 0)) == "epochs 1 to open end, once"
