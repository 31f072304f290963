"""RegularizationPolicy: the added loss, thresholds after each step, kept masks."""

import warnings

import pytest
import torch
from torch import nn

from distiller_ng.core.context import StepContext
from distiller_ng.core.masks import MaskRegistry
from distiller_ng.core.policy import PolicyLoss
from distiller_ng.core.position import TrainPosition
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, CheckpointError, LifecycleError, ScheduleWarning, TargetError
from distiller_ng.names import ParameterIndex
from distiller_ng.policies.regularization import RegularizationPolicy
from distiller_ng.regularization import GroupLassoRegularizer, L1Regularizer, L2Regularizer


@pytest.fixture
def model():
    net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[3.0, 4.0, 0.0], [0.1, -0.2, 0.05]]))
        net[1].weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 0.5]]))
    return net


def context(model, *, window=None, epoch=0, minibatch=0, masks=None, **extra):
    parameters = ParameterIndex(model)
    return StepContext(
        model=model,
        parameters=parameters,
        masks=masks if masks is not None else MaskRegistry(parameters),
        window=window or PolicyWindow.from_range(0, 2),
        position=TrainPosition(epoch, minibatch, 2),
        **extra,
    )


def test_penalties_are_added_and_named(model):
    policy = RegularizationPolicy(L1Regularizer("l1", model, {"1.weight": 0.1}))
    loss = torch.tensor(2.0)
    result = policy.before_backward_pass(context(model, loss=loss))
    assert isinstance(result, PolicyLoss)
    assert result.overall_loss.item() == pytest.approx(2.35)
    assert [(c.name, pytest.approx(c.value.item())) for c in result.loss_components] == [("L1Regularizer_loss", 0.35)]
    assert loss.item() == 2.0
    result.overall_loss.backward()
    assert torch.allclose(model[1].weight.grad, torch.tensor([[0.1, -0.1], [0.0, 0.1]]))
    assert model[0].weight.grad is None


def test_policies_chain_through_the_scheduler(model):
    scheduler = CompressionScheduler(model)
    l1 = RegularizationPolicy(L1Regularizer("l1", model, {"1.weight": 0.1}))
    l2 = RegularizationPolicy(L2Regularizer("l2", model, {"re:.*weight": 0.01}))
    for policy in (l1, l2):
        scheduler.add_policy(policy, starting_epoch=0, ending_epoch=3, frequency=1)
    result = scheduler.before_backward_pass(0, 0, 4, torch.tensor(1.0), return_loss_components=True)
    expected_l2 = 0.01 * (25 + 0.0525 + 5.25)
    assert [c.name for c in result.loss_components] == ["L1Regularizer_loss", "L2Regularizer_loss"]
    assert result.overall_loss.item() == pytest.approx(1 + 0.35 + expected_l2)


def test_penalty_stays_float32_under_autocast(model):
    policy = RegularizationPolicy(GroupLassoRegularizer("g", model, {"0.weight": [0.1, "Rows"]}))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.ones(1, 3)).sum()
        assert loss.dtype == torch.bfloat16
        result = policy.before_backward_pass(context(model, loss=loss))
    component = result.loss_components[0].value
    assert component.dtype == torch.float32
    assert component.item() == pytest.approx(0.1 * (5 + 0.0525**0.5), rel=1e-6)


def test_half_precision_weights_are_summed_in_float32(model):
    model.bfloat16()
    policy = RegularizationPolicy(L1Regularizer("l1", model, {"1.weight": 0.1}))
    result = policy.before_backward_pass(context(model, loss=torch.tensor(2.0, dtype=torch.bfloat16)))
    assert result.loss_components[0].value.dtype == torch.float32
    assert result.overall_loss.item() == pytest.approx(2.35)


def test_float64_model(model):
    model.double()
    policy = RegularizationPolicy(L1Regularizer("l1", model, {"1.weight": 0.1}))
    result = policy.before_backward_pass(context(model, loss=torch.tensor(2.0, dtype=torch.float64)))
    assert result.overall_loss.dtype == torch.float64
    assert result.overall_loss.item() == pytest.approx(2.35, rel=1e-15)


def test_without_a_loss(model):
    policy = RegularizationPolicy(L1Regularizer("l1", model, {"1.weight": 0.1}))
    with pytest.raises(LifecycleError, match="without a loss"):
        policy.before_backward_pass(context(model))


def test_unmatched_names_are_refused_when_the_policy_is_added(model):
    policy = RegularizationPolicy(L1Regularizer("l1", model, {"2.weight": 0.1}))
    with pytest.raises(TargetError, match="'2.weight' matches no parameter"):
        CompressionScheduler(model).add_policy(policy, starting_epoch=0, ending_epoch=1)


# -- thresholds -------------------------------------------------------------------------------------------------------


def rows_policy(model, **kwargs):
    regularizer = GroupLassoRegularizer("rows", model, {"0.weight": [0.3, "Rows"]}, "Max")
    return RegularizationPolicy(regularizer, **kwargs)


def test_small_groups_are_zeroed_after_a_step_and_may_come_back(model):
    policy = rows_policy(model)
    masks = MaskRegistry(ParameterIndex(model))
    policy.on_minibatch_end(context(model, masks=masks))
    assert model[0].weight.tolist() == [[3, 4, 0], [0, 0, 0]]
    assert masks.masked() == {}
    with torch.no_grad():
        model[0].weight[1] += 1
    policy.on_minibatch_end(context(model, masks=masks))
    assert model[0].weight[1].tolist() == [1, 1, 1]


def test_micro_batches_that_do_not_step_change_nothing(model):
    before = model[0].weight.clone()
    rows_policy(model).on_minibatch_end(context(model, is_step=False))
    assert torch.equal(model[0].weight, before)


def test_without_a_criterion_steps_are_not_listened_to(model):
    plain = RegularizationPolicy(L1Regularizer("l1", model, {"1.weight": 0.1}))
    assert plain.listens_to("before_backward_pass")
    assert not plain.listens_to("on_minibatch_end")
    assert rows_policy(model).listens_to("on_minibatch_end")


def test_thresholds_leave_a_pruners_mask_alone(model):
    masks = MaskRegistry(ParameterIndex(model))
    pruned = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    masks.set("0.weight", pruned, owner="pruner")
    rows_policy(model).on_minibatch_end(context(model, masks=masks))
    assert torch.equal(masks["0.weight"].mask, pruned)


ROW_MASK = [[1, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("keep_mask", "epoch", "last_minibatch", "kept"),
    [(True, 1, True, True), (True, 1, False, False), (True, 0, True, False), (False, 1, True, False)],
)
def test_masks_are_kept_at_the_very_last_step_only(model, keep_mask, epoch, last_minibatch, kept):
    masks = MaskRegistry(ParameterIndex(model))
    policy = rows_policy(model, keep_mask=keep_mask)
    policy.on_minibatch_end(context(model, epoch=epoch, masks=masks, is_last_minibatch=last_minibatch))
    if kept:
        assert masks["0.weight"].owners["rows"].tolist() == ROW_MASK
    else:
        assert masks.masked() == {}


def run(model, scheduler, optimizer, epochs, minibatches=2):
    for epoch in epochs:
        scheduler.on_epoch_begin(epoch, optimizer)
        for minibatch in range(minibatches):
            scheduler.on_minibatch_begin(epoch, minibatch, minibatches, optimizer)
            loss = scheduler.before_backward_pass(epoch, minibatch, minibatches, model(torch.ones(4, 3)).sum())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.on_minibatch_end(epoch, minibatch, minibatches, optimizer)
        scheduler.on_epoch_end(epoch, optimizer)


def test_b15_masks_are_kept_when_frequency_skips_the_last_epoch(model):
    """0-4/2 ends in epoch 2: the mask is kept there, although that is not end - 1."""
    scheduler = CompressionScheduler(model)
    scheduler.add_policy(rows_policy(model, keep_mask=True), starting_epoch=0, ending_epoch=4, frequency=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    run(model, scheduler, optimizer, range(2))
    assert scheduler.masks.masked() == {}
    run(model, scheduler, optimizer, range(2, 6))
    assert scheduler.masks["0.weight"].mask.tolist() == ROW_MASK
    assert model[0].weight[1].tolist() == [0, 0, 0]
    assert model[0].weight[0].abs().min() > 0


@pytest.mark.parametrize(("start", "end", "trained"), [(0, 90, 2), (0.25, 1.75, 3)])
def test_masks_are_kept_when_the_window_closes_otherwise(model, start, end, trained):
    """Training stopped inside the window, or the window ends between two epochs."""
    scheduler = CompressionScheduler(model)
    policy = rows_policy(model, keep_mask=True)
    scheduler.add_policy(policy, starting_epoch=start, ending_epoch=end, frequency=1)
    run(model, scheduler, torch.optim.SGD(model.parameters(), lr=0.01), range(trained))
    scheduler.finish()
    assert scheduler.masks["0.weight"].owners["rows"].tolist() == ROW_MASK
    assert model[0].weight[1].tolist() == [0, 0, 0]


def test_kept_masks_are_not_decided_again_when_the_window_closes(model):
    policy, masks = rows_policy(model, keep_mask=True), MaskRegistry(ParameterIndex(model))
    policy.on_minibatch_end(context(model, epoch=1, masks=masks, is_last_minibatch=True))
    with torch.no_grad():
        model[0].weight[0] = 0.1  # fine-tuning
    policy.on_window_end(context(model, epoch=2, masks=masks))
    assert masks["0.weight"].owners["rows"].tolist() == ROW_MASK
    assert model[0].weight[0].tolist() == pytest.approx([0.1, 0.1, 0.1])


def test_keep_mask_without_thresholds_warns(model):
    with pytest.warns(ScheduleWarning, match="keep_mask has no effect"):
        RegularizationPolicy(L2Regularizer("l2", model, {"1.weight": 0.1}), keep_mask=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows_policy(model, keep_mask=True)


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_state_round_trip(model):
    policy = rows_policy(model, keep_mask=True)
    policy.on_minibatch_end(context(model, epoch=1, is_last_minibatch=True))
    state = policy.state_dict()
    assert state == {"kept": True, "regularizer": {}}
    fresh = rows_policy(model, keep_mask=True)
    fresh.load_state_dict(state)
    masks = MaskRegistry(ParameterIndex(model))
    fresh.on_window_end(context(model, epoch=2, masks=masks))
    assert masks.masked() == {}  # the registry's own state holds them
    with pytest.raises(CheckpointError, match="expects the keys kept and regularizer"):
        fresh.load_state_dict({"kept": True})


def test_wrong_arguments(model):
    with pytest.raises(ArgumentError, match="expected a regularizer, got dict"):
        RegularizationPolicy({})
    with pytest.raises(ArgumentError, match="keep_mask is true or false, got 'yes'"):
        RegularizationPolicy(L1Regularizer("l1", model, {"1.weight": 0.1}), keep_mask="yes")


def test_description_and_plan(model):
    policy = rows_policy(model)
    assert policy.describe() == "RegularizationPolicy(rows: GroupLassoRegularizer)"
    assert policy.planned_sparsity(PolicyWindow.from_range(0, 2), ParameterIndex(model)) == {}
