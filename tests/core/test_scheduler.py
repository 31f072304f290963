"""Hooks, windows, losses and the lifecycle contract, with recording policies and literal masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from distiller_ng.core.policy import HOOKS, LossComponent, Policy, PolicyLoss
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import ArgumentError, LifecycleError, TargetError


class Recorder(Policy):
    """Writes down every call as (hook, epoch, step)."""

    def __init__(self, name="r", log=None):
        self.name, self.log = name, [] if log is None else log

    def _note(self, hook, ctx):
        self.log.append((self.name, hook, ctx.position.epoch, ctx.position.minibatch_id))

    def on_epoch_begin(self, ctx):
        self._note("on_epoch_begin", ctx)

    def on_minibatch_begin(self, ctx):
        self._note("on_minibatch_begin", ctx)

    def before_backward_pass(self, ctx):
        self._note("before_backward_pass", ctx)

    def before_parameter_optimization(self, ctx):
        self._note("before_parameter_optimization", ctx)

    def on_minibatch_end(self, ctx):
        self._note("on_minibatch_end", ctx)

    def on_epoch_end(self, ctx):
        self._note("on_epoch_end", ctx)

    def on_update(self, ctx):
        self._note("on_update", ctx)

    def on_window_end(self, ctx):
        self._note("on_window_end", ctx)

    def on_finish(self, ctx):
        self._note("on_finish", ctx)


class Extra(Policy):
    """Adds a constant to the loss."""

    def __init__(self, name, value):
        self.name, self.value = name, value

    def before_backward_pass(self, ctx):
        extra = torch.tensor(self.value)
        return PolicyLoss(ctx.loss + extra, LossComponent(self.name, extra))


class Mask(Policy):
    """Masks ``weight`` with a fixed mask."""

    def __init__(self, mask):
        self.mask = mask

    def on_epoch_begin(self, ctx):
        ctx.masks.set("weight", self.mask, owner="mask")


def drive(scheduler, epochs, minibatches=1, loss=1.0):
    for epoch in epochs:
        scheduler.on_epoch_begin(epoch)
        for i in range(minibatches):
            scheduler.on_minibatch_begin(epoch, i, minibatches)
            scheduler.before_backward_pass(epoch, i, minibatches, torch.tensor(loss))
            scheduler.before_parameter_optimization(epoch, i, minibatches, None)
            scheduler.on_minibatch_end(epoch, i, minibatches)
        scheduler.on_epoch_end(epoch)


def test_hooks_fire_in_order_in_active_epochs_only():
    scheduler, policy = CompressionScheduler(nn.Linear(1, 1)), Recorder()
    scheduler.add_policy(policy, starting_epoch=1, ending_epoch=4, frequency=2)
    drive(scheduler, range(5))
    scheduler.finish()
    expected = [(hook, epoch) for epoch in (1, 3) for hook in HOOKS]
    expected = [*expected, ("on_window_end", 3), ("on_finish", 5)]
    assert [(hook, epoch) for _, hook, epoch, _ in policy.log] == expected


def test_policies_run_in_the_order_they_were_added():
    log = []
    scheduler = CompressionScheduler(nn.Linear(1, 1))
    scheduler.add_policy(Recorder("a", log), epochs=[0])
    scheduler.add_policy(Recorder("b", log), epochs=[0])
    scheduler.on_epoch_begin(0)
    assert [name for name, *_ in log] == ["a", "b"]


def test_add_policy_keeps_distillers_metadata():
    scheduler, policy = CompressionScheduler(nn.Linear(1, 1)), Recorder()
    scheduler.add_policy(policy, epochs=[1, 2, 3])
    assert scheduler.sched_metadata[policy] == {"starting_epoch": 1, "ending_epoch": 4, "frequency": None}
    assert scheduler.policies == {1: [policy], 2: [policy], 3: [policy]}
    scheduler.add_policy(policy, None, 5, 8, 2)  # the second window overwrites the metadata, as in Distiller
    assert scheduler.sched_metadata[policy] == {"starting_epoch": 5, "ending_epoch": 8, "frequency": 2}
    assert scheduler.policies[7] == [policy]


@pytest.mark.parametrize(
    "arguments", [{}, {"epochs": [1], "ending_epoch": 2}, {"starting_epoch": 2, "ending_epoch": 1}]
)
def test_impossible_windows_add_nothing(arguments):
    scheduler = CompressionScheduler(nn.Linear(1, 1))
    with pytest.raises(ArgumentError):
        scheduler.add_policy(Recorder(), **arguments)
    assert scheduler.policies == {}


def test_what_is_no_policy_is_refused():
    with pytest.raises(ArgumentError, match="not a policy"):
        CompressionScheduler(nn.Linear(1, 1)).add_policy(object(), epochs=[0])


def test_losses_chain_and_components_keep_policy_order():
    scheduler = CompressionScheduler(nn.Identity())  # a model without parameters is legal
    for index, value in enumerate([0.5, 0.25, 2.0]):
        scheduler.add_policy(Extra(f"loss {index}", value), starting_epoch=0, ending_epoch=2, frequency=1)
    loss = torch.tensor(1.0)
    result = scheduler.before_backward_pass(0, 0, 1, loss, return_loss_components=True)
    assert result.overall_loss.item() == 3.75
    assert [(c.name, c.value.item()) for c in result.loss_components] == [
        ("loss 0", 0.5),
        ("loss 1", 0.25),
        ("loss 2", 2),
    ]
    assert loss.item() == 1.0
    assert scheduler.before_backward_pass(1, 0, 1, loss).item() == 3.75
    untouched = scheduler.before_backward_pass(5, 0, 1, loss)
    assert untouched is loss


def test_policies_returning_nonsense_are_a_type_error():
    class Wrong(Policy):
        def before_backward_pass(self, ctx):
            return ctx.loss

    scheduler = CompressionScheduler(nn.Identity())
    scheduler.add_policy(Wrong(), epochs=[0])
    with pytest.raises(TypeError, match="PolicyLoss"):
        scheduler.before_backward_pass(0, 0, 1, torch.tensor(1.0))
    with pytest.raises(TypeError, match="LossComponent"):
        CompressionScheduler.verify_policy_loss(PolicyLoss(torch.tensor(1.0), [1.0]))


class TestImpossibleOrders:
    @pytest.mark.parametrize(
        "call",
        [
            lambda s: s.on_minibatch_begin(0, 0, 1),
            lambda s: s.on_minibatch_end(0, 0, 1),
            lambda s: s.on_epoch_end(0),
            lambda s: s.before_parameter_optimization(0, 0, 1, None),
            lambda s: s.before_backward_pass(0, 0, 1, torch.tensor(1.0)),
        ],
    )
    def test_outside_an_epoch(self, call):
        scheduler = CompressionScheduler(nn.Linear(1, 1))
        scheduler.add_policy(Recorder(), epochs=[0])
        with pytest.raises(LifecycleError, match="expected order: on_epoch_begin"):
            call(scheduler)

    def test_inside_an_epoch(self):
        scheduler = CompressionScheduler(nn.Linear(1, 1))
        scheduler.on_epoch_begin(0)
        with pytest.raises(LifecycleError, match="without on_minibatch_begin"):
            scheduler.on_minibatch_end(0, 0, 1)
        with pytest.raises(LifecycleError, match="while epoch 0 is open"):
            scheduler.on_minibatch_begin(1, 0, 1)
        with pytest.raises(LifecycleError, match=r"call on_epoch_end\(0\) first"):
            scheduler.on_epoch_begin(1)
        with pytest.raises(LifecycleError, match="counts from 0"):
            scheduler.on_minibatch_begin(0, 3, 3)

    @pytest.mark.parametrize("again", [2, 3])
    def test_epochs_only_grow(self, again):
        scheduler = CompressionScheduler(nn.Linear(1, 1))
        drive(scheduler, [3])
        with pytest.raises(LifecycleError, match="only grow"):
            scheduler.on_epoch_begin(again)

    def test_minibatches_do_not_go_back_or_change_their_number(self):
        scheduler = CompressionScheduler(nn.Linear(1, 1))
        scheduler.on_epoch_begin(0)
        scheduler.on_minibatch_begin(0, 2, 5)
        scheduler.on_minibatch_end(0, 2, 5)
        with pytest.raises(LifecycleError, match="minibatch 1 after minibatch 2"):
            scheduler.on_minibatch_begin(0, 1, 5)
        with pytest.raises(LifecycleError, match="was 5 in this epoch and is now 9"):
            scheduler.on_minibatch_begin(0, 3, 9)


def test_numpy_integers_are_whole_numbers():
    scheduler, policy = CompressionScheduler(nn.Linear(1, 1)), Recorder()
    scheduler.add_policy(policy, epochs=np.arange(2))
    scheduler.on_epoch_begin(np.int64(0))
    scheduler.on_minibatch_begin(np.int64(0), np.int64(0), np.int64(1))
    scheduler.on_minibatch_end(np.int64(0), np.int64(0), np.int64(1))
    scheduler.on_epoch_end(np.int64(0))
    assert scheduler.policies == {0: [policy], 1: [policy]} and len(policy.log) == 4


class TestReplacedParameters:
    """A model may get new Parameter objects after its schedule was loaded."""

    def half(self, model):
        scheduler = CompressionScheduler(model)
        scheduler.add_policy(Mask(torch.tensor([[1.0, 0.0], [0.0, 1.0]])), epochs=[0, 1])
        return scheduler

    @pytest.mark.parametrize(
        "replace",
        [
            lambda m: m.load_state_dict({k: v.clone() for k, v in m.state_dict().items()}, assign=True),
            lambda m: setattr(m, "weight", nn.Parameter(torch.ones(2, 2))),
        ],
    )
    def test_the_live_ones_are_pruned(self, replace):
        model = nn.Linear(2, 2)
        scheduler = self.half(model)
        replace(model)
        drive(scheduler, [0])
        assert (model.weight == 0).tolist() == [[False, True], [True, False]]
        replace(model)
        assert scheduler.finish().parameters[0].achieved == 0.5
        assert scheduler.parameters["weight"] is model.weight

    def test_added_and_removed_ones_are_noticed(self):
        model = nn.Linear(2, 2)
        scheduler = self.half(model)
        model.extra, model.bias = nn.Linear(1, 1), None
        drive(scheduler, [0])
        assert list(scheduler.zeros_mask_dict) == ["weight", "extra.weight", "extra.bias"]


def test_a_loop_that_forgets_on_minibatch_end_never_redensifies():
    model = nn.Linear(2, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scheduler = CompressionScheduler(model, optimizer=optimizer)
    scheduler.add_policy(Mask(torch.tensor([[1.0, 0.0], [0.0, 1.0]])), epochs=[0])
    scheduler.on_epoch_begin(0)
    for i in range(3):
        scheduler.on_minibatch_begin(0, i, 3)
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        assert model.weight[0, 1] == 0 and model.weight[1, 0] == 0
    scheduler.on_epoch_end(0)


def test_a_loop_without_an_optimizer_is_projected_by_on_minibatch_end():
    model = nn.Linear(2, 1, bias=False)
    scheduler = CompressionScheduler(model)
    scheduler.add_policy(Mask(torch.tensor([[1.0, 0.0]])), epochs=[0])
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    assert model.weight[0, 1] == 0
    with torch.no_grad():
        model.weight += 1  # an optimizer the scheduler never saw
    scheduler.on_minibatch_end(0, 0, 1)
    assert model.weight[0, 1] == 0 and model.weight[0, 0] != 0


def test_the_optimizer_given_to_a_hook_is_attached():
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = CompressionScheduler(model)
    scheduler.on_epoch_begin(0, optimizer)
    assert scheduler.optimizer is optimizer and scheduler.masks.is_attached


class TestFractionalWindows:
    def test_fire_at_the_first_step_at_or_after_each_due_point(self):
        scheduler, policy = CompressionScheduler(nn.Linear(1, 1)), Recorder()
        scheduler.add_policy(policy, starting_epoch=0.35, ending_epoch=1.6, frequency=0.5)
        drive(scheduler, range(3), minibatches=10)
        updates = [(e, i) for _, hook, e, i in policy.log if hook in ("on_update", "on_window_end")]
        assert updates == [(0, 4), (0, 9), (1, 4), (1, 6)]  # 0.35, 0.85, 1.35, and the end at 1.6
        inside = [(e, i) for _, hook, e, i in policy.log if hook == "on_minibatch_end"]
        assert inside == [(0, i) for i in range(4, 10)] + [(1, i) for i in range(6)]
        assert not [1 for _, hook, *_ in policy.log if hook in ("on_epoch_begin", "on_epoch_end")]

    def test_a_window_between_two_steps_still_fires_start_and_end(self):
        scheduler, policy = CompressionScheduler(nn.Linear(1, 1)), Recorder()
        scheduler.add_policy(policy, starting_epoch=0.1, ending_epoch=0.2, frequency=0.1)
        drive(scheduler, [0], minibatches=2)
        assert [hook for _, hook, *_ in policy.log] == ["on_update", "on_window_end"]

    def test_an_end_still_pending_fires_in_finish_once(self):
        scheduler, policy = CompressionScheduler(nn.Linear(1, 1)), Recorder()
        scheduler.add_policy(policy, starting_epoch=0.5, ending_epoch=5.5, frequency=1)
        drive(scheduler, [0], minibatches=4)
        scheduler.finish()
        scheduler.finish()
        assert [hook for _, hook, *_ in policy.log].count("on_window_end") == 1
        assert [hook for _, hook, *_ in policy.log].count("on_finish") == 1


def test_finish_flushes_whole_windows_and_names_what_never_ran():
    scheduler, started, never = CompressionScheduler(nn.Linear(1, 1)), Recorder("a"), Recorder("b")
    scheduler.add_policy(started, starting_epoch=0, ending_epoch=300, frequency=1)
    scheduler.add_policy(never, starting_epoch=200, ending_epoch=300, frequency=1)
    drive(scheduler, [0, 1])
    summary = scheduler.finish()
    assert ("a", "on_window_end", 2, 0) in started.log
    assert never.log == [("b", "on_finish", 2, 0)]
    assert summary.warnings == ("Recorder never became active: epochs 200 to 300, every 1",)


def test_finish_compares_planned_with_achieved():
    class Planned(Mask):
        def planned_sparsity(self, window, parameters):
            return {"weight": 0.75}

    model = nn.Linear(2, 2)
    scheduler = CompressionScheduler(model)
    scheduler.add_policy(Planned(torch.tensor([[1.0, 0.0], [0.0, 1.0]])), epochs=[0])
    drive(scheduler, [0])
    summary = scheduler.finish()
    (row,) = summary.parameters
    assert (row.name, row.shape, row.planned, row.achieved) == ("weight", (2, 2), 0.75, 0.5)
    assert summary.total_sparsity == 0.5
    assert "75.00%" in str(summary) and "50.00%" in str(summary)


def test_a_policys_check_refuses_before_anything_is_added():
    class Refuses(Recorder):
        def check(self, window, parameters):
            parameters.match("wieght")

    scheduler = CompressionScheduler(nn.Linear(1, 1))
    with pytest.raises(TargetError, match="Did you mean 'weight'"):
        scheduler.add_policy(Refuses(), epochs=[0])
    assert scheduler.schedule == ()


def test_policies_observing_the_preceding_epoch():
    class Observer(Recorder):
        observes_preceding_epoch = True

        def on_preceding_epoch_begin(self, ctx):
            self._note("begin", ctx)

        def on_preceding_epoch_end(self, ctx):
            self._note("end", ctx)

    scheduler, policy = CompressionScheduler(nn.Linear(1, 1)), Observer()
    scheduler.add_policy(policy, starting_epoch=2, ending_epoch=5, frequency=2)
    drive(scheduler, range(6))
    assert [(h, e) for _, h, e, _ in policy.log if h in ("begin", "end")] == [
        ("begin", 1),
        ("end", 1),
        ("begin", 3),
        ("end", 3),
    ]


def test_mask_all_weights_applies_now():
    model = nn.Linear(2, 1, bias=False)
    scheduler = CompressionScheduler(model)
    scheduler.zeros_mask_dict["weight"].mask = torch.tensor([[0.0, 1.0]])
    scheduler.mask_all_weights()
    assert model.weight[0, 0] == 0


def test_b13_names_without_a_dot_are_no_problem():
    model = nn.Module()
    model.scale = nn.Parameter(torch.ones(2))
    scheduler = CompressionScheduler(model)
    scheduler.zeros_mask_dict["scale"].mask = torch.tensor([0.0, 1.0])
    model.shift = nn.Parameter(torch.ones(2))  # unknown to the masks
    scheduler.mask_all_weights()
    assert model.scale.tolist() == [0, 1] and model.shift.tolist() == [1, 1]
