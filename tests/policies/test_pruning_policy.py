"""Every argument of the pruning policy, the owners of masks, and the bugs that lived here in Distiller."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import ArgumentError, TargetError
from distiller_ng.policies.pruning import PruningPolicy
from distiller_ng.pruning import (
    AutomatedGradualPruner,
    BernoulliFilterPruner,
    DenseSparseDense,
    L1RankedStructureParameterPruner,
    SparsityLevelParameterPruner,
    SplicingPruner,
)
from distiller_ng.pruning.base import Pruner, Target

START = [[4.0, -3.0, 2.0, -1.0]]


def linear(values=START):
    model = nn.Linear(len(values[0]), len(values), bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(values))
    return model


class Loop:
    """A model with a schedule; each step adds ``delta`` to every weight through a real optimizer."""

    def __init__(self, model, *policies, momentum=0.0):
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=momentum)
        self.scheduler = CompressionScheduler(model, optimizer=self.optimizer)
        for policy, window in policies:
            self.scheduler.add_policy(policy, **window)
        self.seen = []  # weights in each forward pass

    def epoch(self, epoch, minibatches=1, delta=0.0):
        scheduler = self.scheduler
        scheduler.on_epoch_begin(epoch)
        for i in range(minibatches):
            scheduler.on_minibatch_begin(epoch, i, minibatches)
            self.seen.append(self.weight())
            self.optimizer.zero_grad()
            (-delta * self.model.weight.sum()).backward()
            self.gradient = self.model.weight.grad.tolist()
            scheduler.before_parameter_optimization(epoch, i, minibatches, self.optimizer)
            self.optimizer.step()
            scheduler.on_minibatch_end(epoch, i, minibatches)
        scheduler.on_epoch_end(epoch)
        return self.weight()

    def weight(self):
        return self.model.weight.detach().tolist()


def level(sparsity, name="level"):
    return SparsityLevelParameterPruner(name, {"weight": sparsity})


def test_masks_are_decided_at_the_epoch_and_applied_at_the_minibatch():
    loop = Loop(linear(), (PruningPolicy(level(0.5), None), {"epochs": [0]}))
    loop.scheduler.on_epoch_begin(0)
    assert loop.weight() == START
    assert loop.scheduler.zeros_mask_dict["weight"].mask.tolist() == [[1, 1, 0, 0]]
    loop.scheduler.on_minibatch_begin(0, 0, 1)
    assert loop.weight() == [[4, -3, 0, 0]]


def test_what_was_pruned_stays_pruned_after_the_window():
    loop = Loop(linear(), (PruningPolicy(level(0.5), None), {"epochs": [0]}))
    loop.epoch(0)
    assert loop.epoch(1, delta=1.0) == [[5, -2, 0, 0]]


def test_levels_override_the_pruners_own():
    policy = PruningPolicy(level(0.5), {"levels": {"weight": 0.25}})
    assert Loop(linear(), (policy, {"epochs": [0]})).epoch(0) == [[4, -3, 2, 0]]


def test_mini_batch_frequency_counts_absolute_steps():
    decided = []

    class Counting(SparsityLevelParameterPruner):
        def compute_masks(self, group, ctx):
            decided.append((ctx.epoch, ctx.position.minibatch_id))
            return super().compute_masks(group, ctx)

    policy = PruningPolicy(Counting("c", {"weight": 0.5}), {"mini_batch_pruning_frequency": 3})
    loop = Loop(linear(), (policy, {"epochs": [0, 1]}))
    loop.epoch(0, minibatches=5)
    loop.epoch(1, minibatches=5)
    # (epoch * 5 + minibatch) % 3 == 0, never at minibatch 0, where the epoch decides
    assert decided == [(0, 0), (0, 3), (1, 0), (1, 1), (1, 4)]


def test_forward_only_masks_leave_the_step_free():
    policy = PruningPolicy(level(0.5), {"mask_on_forward_only": True})
    loop = Loop(linear(), (policy, {"epochs": [0]}))
    loop.epoch(0, minibatches=2, delta=0.5)
    assert loop.seen == [[[4, -3, 0, 0]], [[4.5, -2.5, 0, 0]]]
    assert loop.weight() == [[5, -2, 0.5, 0.5]]


def test_mask_gradients_stops_masked_weights_too():
    policy = PruningPolicy(level(0.5), {"mask_on_forward_only": True, "mask_gradients": True})
    loop = Loop(linear(), (policy, {"epochs": [0]}))
    assert loop.epoch(0, delta=0.5) == [[4.5, -2.5, 0, 0]]
    assert loop.scheduler.zeros_mask_dict["weight"].backward_hook_handle is None  # removed with the window


def test_gradients_of_dead_weights_can_be_zeroed_with_any_backend():
    policy = PruningPolicy(level(0.5), {"zero_masked_gradients": True})
    loop = Loop(linear(), (policy, {"epochs": [0]}))
    loop.epoch(0, delta=2.0)
    assert loop.gradient == [[-2, -2, 0, 0]]


def test_gradients_of_dead_weights_stay_zero_after_the_window():
    policy = PruningPolicy(level(0.5), {"zero_masked_gradients": True})
    loop = Loop(linear(), (policy, {"epochs": [0]}))
    loop.epoch(0)
    loop.epoch(1, delta=2.0)
    assert loop.gradient == [[-2, -2, 0, 0]]


def test_gradient_masks_act_in_active_epochs_only_and_survive_a_resume():
    def loop():
        policy = PruningPolicy(level(0.5), {"mask_on_forward_only": True, "mask_gradients": True})
        return Loop(linear(), (policy, {"epochs": [0, 2]}))

    whole, first, second = loop(), loop(), loop()
    for epoch in range(3):
        whole.epoch(epoch, delta=1.0)
    first.epoch(0, delta=1.0)
    second.model.load_state_dict(first.model.state_dict())
    second.scheduler.load_state_dict(first.scheduler.state_dict())
    assert second.epoch(1, delta=1.0) == [[6, -1, 1, 1]]
    assert second.epoch(2, delta=1.0) == whole.weight()


def test_levels_of_one_policy_do_not_leak_into_the_next():
    pruner = level(0.5)
    loop = Loop(
        linear(),
        (PruningPolicy(pruner, {"levels": {"weight": 0.25}}), {"epochs": [0]}),
        (PruningPolicy(pruner, None), {"epochs": [1]}),
    )
    assert loop.epoch(0) == [[4, -3, 2, 0]]
    assert loop.epoch(1) == [[4, -3, 0, 0]]


def test_double_copies_update_the_unmasked_weights():
    policy = PruningPolicy(level(0.5), {"use_double_copies": True, "mini_batch_pruning_frequency": 1})
    loop = Loop(linear(), (policy, {"epochs": [0]}))
    loop.epoch(0, minibatches=2, delta=2.0)
    assert loop.seen == [[[4, -3, 0, 0]], [[6, 0, 4, 0]]]  # -3 + 2 = -1 is now the smaller one
    assert loop.weight() == [[8, 1, 6, 3]]


def test_double_copies_come_back_even_if_the_loop_forgets_the_hook():
    policy = PruningPolicy(level(0.5), {"use_double_copies": True})
    loop = Loop(linear(), (policy, {"epochs": [0]}))
    loop.scheduler.on_epoch_begin(0)
    loop.scheduler.on_minibatch_begin(0, 0, 1)
    loop.model.weight.sum().backward()
    loop.optimizer.step()
    assert loop.weight() == [[3, -4, 1, -2]]


def test_discarded_masks_last_one_minibatch():
    policy = PruningPolicy(level(0.5), {"discard_masks_at_minibatch_end": True, "mask_on_forward_only": True})
    loop = Loop(linear(), (policy, {"epochs": [0]}))
    loop.epoch(0, minibatches=2, delta=1.0)
    assert loop.seen == [[[4, -3, 0, 0]], [[5, -2, 1, 1]]]
    assert loop.scheduler.zeros_mask_dict["weight"].mask is None


def test_skip_first_minibatch_decides_in_the_second():
    policy = PruningPolicy(level(0.5), {"skip_first_minibatch": True})
    loop = Loop(linear(), (policy, {"epochs": [2, 3]}))
    loop.epoch(2, minibatches=3)
    assert loop.seen == [START, [[4, -3, 0, 0]], [[4, -3, 0, 0]]]


@pytest.mark.parametrize(
    "window", [{"starting_epoch": 0, "ending_epoch": 2}, {"starting_epoch": 0, "ending_epoch": 4, "frequency": 3}]
)
def test_b15_keep_mask_acts_in_the_real_last_epoch(window):
    policy = PruningPolicy(level(0.5), {"mask_on_forward_only": True, "keep_mask": True})
    loop = Loop(linear(), (policy, window))
    for epoch in range(4):
        loop.epoch(epoch, delta=0.25)
    assert loop.weight()[0][2:] == [0, 0]
    masker = loop.scheduler.zeros_mask_dict["weight"]
    assert not masker.mask_on_forward_only and not masker.use_double_copies


def test_keep_mask_still_pending_is_kept_by_finish():
    policy = PruningPolicy(level(0.5), {"use_double_copies": True, "keep_mask": True})
    loop = Loop(linear(), (policy, {"starting_epoch": 0, "ending_epoch": 100}))
    loop.epoch(0, delta=0.25)
    assert 0 not in loop.weight()[0]
    loop.scheduler.finish()
    assert loop.weight()[0][2:] == [0, 0]


def test_unknown_arguments_and_targets_are_refused():
    with pytest.raises(ArgumentError, match="Did you mean 'keep_mask'"):
        PruningPolicy(level(0.5), {"keep_masks": True})
    with pytest.raises(ArgumentError, match="zero_masked_gradients"):
        PruningPolicy(level(0.5), {"mask_gradients": True})
    with pytest.raises(ArgumentError, match="number of steps"):
        PruningPolicy(level(0.5), {"mini_batch_pruning_frequency": -1})
    scheduler = CompressionScheduler(linear())
    with pytest.raises(TargetError, match="Did you mean 'weight'"):
        scheduler.add_policy(PruningPolicy(SparsityLevelParameterPruner("x", {"wieght": 0.5}), None), epochs=[0])
    with pytest.raises(TargetError, match="Did you mean 'weight'"):
        scheduler.add_policy(PruningPolicy(level(0.5), {"levels": {"wieght": 0.5}}), epochs=[0])
    with pytest.raises(ArgumentError, match=r"1\.5"):
        scheduler.add_policy(PruningPolicy(level(0.5), {"levels": {"weight": 1.5}}), epochs=[0])
    assert scheduler.schedule == ()


class ConvBN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([3.0, 1.0]).view(2, 1, 1, 1))
            self.bn.weight.copy_(torch.tensor([0.1, 10.0]))

    def forward(self, x):
        return self.bn(self.conv(x))


@pytest.mark.parametrize(("fold", "pruned"), [(False, 1), (True, 0)])
@pytest.mark.parametrize("frequency", [0, 1])
def test_b16_folding_ranks_by_the_batch_norm_and_masks_the_real_weight(fold, pruned, frequency):
    model = ConvBN()
    pruner = L1RankedStructureParameterPruner("f", "Filters", 0.5, ["conv.weight"])
    scheduler = CompressionScheduler(model, example_inputs=(torch.ones(1, 1, 2, 2),))
    args = {"fold_batchnorm": fold, "mini_batch_pruning_frequency": frequency}
    scheduler.add_policy(PruningPolicy(pruner, args), epochs=[0])
    scheduler.on_epoch_begin(0)
    for i in range(2):
        scheduler.on_minibatch_begin(0, i, 2)
        scheduler.on_minibatch_end(0, i, 2)
    expected = [3.0, 1.0]
    expected[pruned] = 0.0
    assert model.conv.weight.flatten().tolist() == expected  # the kept one is not attenuated


class TestOwners:
    def test_splicing_lets_weights_grow_back(self):
        pruner = SplicingPruner("s", {"weight": 0.0}, low_thresh_mult=1.0, hi_thresh_mult=1.0)
        policy = PruningPolicy(pruner, {"mask_on_forward_only": True})
        loop = Loop(linear(), (policy, {"epochs": [0, 1]}))
        loop.epoch(0, delta=3.0)
        assert loop.seen[-1] == [[4, -3, 0, 0]]  # below the mean magnitude 2.5, which is measured once
        assert loop.weight() == [[7, 0, 3, 3]]
        loop.epoch(1)
        assert loop.seen[-1] == [[7, 0, 3, 3]]  # 3 is above it: live again

    def test_dense_sparse_dense_releases_its_masks_only(self):
        dense = PruningPolicy(DenseSparseDense("dsd", ["weight"], sparsity=0.5), None)
        other = PruningPolicy(level(0.25, "other"), None)
        loop = Loop(linear(), (dense, {"epochs": [1, 2]}), (other, {"epochs": [0]}))
        assert loop.epoch(0) == [[4, -3, 2, 0]]
        assert loop.epoch(1) == [[4, -3, 0, 0]]
        assert loop.epoch(2, delta=1.0) == [[5, -2, 0, 0]]
        assert loop.epoch(3, delta=1.0) == [[6, -1, 1, 0]]  # the third is free, the fourth belongs to the other pruner

    def test_two_pruners_handing_over_multiply(self):
        first = PruningPolicy(level(0.25, "first"), None)
        second = PruningPolicy(AutomatedGradualPruner("second", 0.0, 0.75, ["weight"]), None)
        loop = Loop(linear(), (first, {"epochs": [0]}), (second, {"starting_epoch": 1, "ending_epoch": 3}))
        assert loop.epoch(0) == [[4, -3, 2, 0]]
        assert loop.epoch(1) == [[4, -3, 2, 0]]
        assert loop.epoch(2) == [[4, 0, 0, 0]]
        assert set(loop.scheduler.zeros_mask_dict["weight"].owners) == {"first", "second"}

    def test_one_pruner_in_two_policies_replaces_its_own_mask(self):
        pruner = level(0.5)
        loop = Loop(
            linear(),
            (PruningPolicy(pruner, {"levels": {"weight": 0.75}}), {"epochs": [0]}),
            (PruningPolicy(pruner, {"levels": {"weight": 0.5}}), {"epochs": [1]}),
        )
        loop.epoch(0)
        assert int(loop.scheduler.zeros_mask_dict["weight"].mask.sum()) == 1
        loop.epoch(1)
        assert int(loop.scheduler.zeros_mask_dict["weight"].mask.sum()) == 2

    def test_a_users_mask_wins_over_the_pruner(self):
        loop = Loop(linear(), (PruningPolicy(level(0.5), None), {"epochs": [0, 1]}))
        loop.scheduler.zeros_mask_dict["weight"].mask = torch.tensor([[0.0, 1.0, 1.0, 1.0]])
        assert loop.epoch(0) == [[0, -3, 2, -1]]
        assert loop.epoch(1, delta=1.0) == [[0, -2, 3, 0]]

    def test_momentum_of_a_weight_that_dies_is_zeroed_where_asked(self):
        for reset, expected in ((True, [[2, 2, 0, 0]]), (False, [[2, 2, 2, 2]])):
            policy = PruningPolicy(level(0.5), {"reset_optimizer_state": reset})
            loop = Loop(linear(), (policy, {"epochs": [1]}), momentum=0.5)
            loop.epoch(0, delta=-2.0)
            loop.scheduler.on_epoch_begin(1)
            loop.scheduler.on_minibatch_begin(1, 0, 1)
            state = loop.optimizer.state[loop.model.weight]["momentum_buffer"].tolist()
            order = sorted(zip([abs(w) for w in loop.weight()[0]], state[0], strict=True), reverse=True)
            assert [[value for _, value in order]] == expected


def test_b7_all_filters_dropped_gives_no_nan():
    torch.manual_seed(0)
    model = nn.Conv2d(1, 3, 1, bias=False)
    policy = PruningPolicy(BernoulliFilterPruner("b", "Filters", 0.99, ["weight"]), {"mini_batch_pruning_frequency": 1})
    scheduler = CompressionScheduler(model)
    scheduler.add_policy(policy, epochs=[0])
    scheduler.on_epoch_begin(0)
    for i in range(20):
        scheduler.on_minibatch_begin(0, i, 20)
        mask = scheduler.zeros_mask_dict["weight"].mask
        assert torch.isfinite(mask).all() and mask.sum() == 3
        scheduler.on_minibatch_end(0, i, 20)


def test_a_pruner_of_the_users_needs_two_methods():
    class Signs(Pruner):
        """Keeps positive weights."""

        def targets(self):
            return [Target("weight", ())]

        def compute_masks(self, group, ctx):
            return {name: (ctx.weight(name) > 0).float() for name in group.names}

    loop = Loop(linear(), (PruningPolicy(Signs("signs"), None), {"epochs": [0]}))
    assert loop.epoch(0) == [[4, 0, 2, 0]]
