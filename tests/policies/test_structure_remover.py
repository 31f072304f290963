"""Group masks and physical removal inside a schedule."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from distiller_ng.config import dict_config
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import ArgumentError, GraphError, ScheduleError
from distiller_ng.policies import PruningPolicy
from distiller_ng.policies.structure_remover import ChannelRemover, FilterRemover, StructureRemover
from distiller_ng.pruning import L1RankedStructureParameterPruner


class Residual(nn.Module):
    """Two convolutions whose outputs are added, so their filters are coupled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.bn1(self.stem(x)))
        x = torch.relu(x + self.bn2(self.body(x)))
        return self.head(x.mean((2, 3)))


X = torch.randn(4, 1, 6, 6)


def ranked(*weights, level=0.5, name="p", **more):
    return L1RankedStructureParameterPruner(name, "Filters", level, list(weights), **more)


def build(policies, example_inputs=X, model=None, compat=None, optimizer=torch.optim.SGD):
    torch.manual_seed(0)
    model = model or Residual()
    found = optimizer(model.parameters(), lr=0.1)
    scheduler = CompressionScheduler(model, optimizer=found, example_inputs=example_inputs, compat=compat)
    for policy, epochs in policies:
        scheduler.add_policy(policy, epochs=epochs)
    return model, found, scheduler


def train(model, optimizer, scheduler, epochs, steps=3):
    for epoch in epochs:
        scheduler.on_epoch_begin(epoch, optimizer)
        for step in range(steps):
            scheduler.on_minibatch_begin(epoch, step, steps, optimizer)
            loss = scheduler.before_backward_pass(epoch, step, steps, model(X).square().mean(), optimizer)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.on_minibatch_end(epoch, step, steps, optimizer)
        scheduler.on_epoch_end(epoch, optimizer)


def dead(tensor, dim=0):
    return (tensor == 0).movedim(dim, 0).flatten(1).all(1)


def test_a_masked_filter_takes_its_whole_group_with_it():
    model, optimizer, scheduler = build([(PruningPolicy(ranked("stem.weight", "body.weight")), [0])])
    train(model, optimizer, scheduler, [0])
    gone = dead(model.stem.weight)
    assert int(gone.sum()) == 4
    for tensor, dim in (
        (model.stem.bias, 0),
        (model.bn1.weight, 0),
        (model.bn1.bias, 0),
        (model.body.weight, 0),
        (model.body.weight, 1),
        (model.bn2.bias, 0),
        (model.head.weight, 1),
    ):
        assert torch.equal(dead(tensor.reshape(*tensor.shape, 1), dim), gone)


def test_without_groups_weights_alone_are_masked():
    policy = PruningPolicy(ranked("stem.weight", "body.weight"), {"mask_group": False})
    model, optimizer, scheduler = build([(policy, [0])])
    train(model, optimizer, scheduler, [0])
    assert int(dead(model.stem.weight).sum()) == 4
    assert scheduler.masks["bn1.weight"].mask is None


@pytest.mark.parametrize("compat", [None, "distiller"])
def test_coupled_layers_are_decided_once_unless_asked_otherwise(compat):
    model, optimizer, scheduler = build([(PruningPolicy(ranked("stem.weight", "body.weight")), [0])], compat=compat)
    train(model, optimizer, scheduler, [0])
    same = torch.equal(dead(model.stem.weight), dead(model.body.weight))
    assert same is (compat is None)


def test_inputs_of_the_first_forward_pass_are_enough():
    model, optimizer, scheduler = build([(PruningPolicy(ranked("stem.weight")), [0])], example_inputs=None)
    train(model, optimizer, scheduler, [0], steps=1)
    assert torch.equal(dead(model.stem.weight), dead(model.bn1.bias.reshape(8, 1)))


def test_a_model_that_cannot_be_followed_is_masked_by_weights_with_a_warning(caplog):
    class Branching(Residual):
        def forward(self, x):
            return super().forward(x) if x.sum() > -1e9 else x

    with caplog.at_level(logging.WARNING):
        model, optimizer, scheduler = build([(PruningPolicy(ranked("stem.weight")), [0])], model=Branching())
        train(model, optimizer, scheduler, [0])
    assert int(dead(model.stem.weight).sum()) == 4
    assert scheduler.masks["bn1.weight"].mask is None
    assert "mask_group: false" in caplog.text and "test_structure_remover.py" in caplog.text


def test_asked_for_explicitly_it_is_an_error():
    class Branching(Residual):
        def forward(self, x):
            return super().forward(x) if x.sum() > -1e9 else x

    policy = PruningPolicy(ranked("stem.weight"), {"mask_group": True})
    model, optimizer, scheduler = build([(policy, [0])], model=Branching())
    with pytest.raises(GraphError, match="cannot be traced"):
        train(model, optimizer, scheduler, [0])


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("inputs", [X, None])
def test_removal_in_training(optimizer, inputs):
    remover = FilterRemover("remove_filters")
    policies = [(PruningPolicy(ranked("stem.weight", "body.weight")), [0, 1]), (remover, [1])]
    model, found, scheduler = build(policies, example_inputs=inputs, optimizer=optimizer)
    train(model, found, scheduler, [0, 1, 2])
    assert (model.stem.out_channels, model.body.out_channels, model.head.in_features) == (4, 4, 4)
    assert remover.report.error < 1e-4 and remover.report.jump < 1e-4
    for parameter, state in found.state.items():
        for value in state.values():
            assert not torch.is_tensor(value) or value.dim() == 0 or value.shape == parameter.shape
    exported = torch.export.export(model.eval(), (X,))
    torch.testing.assert_close(exported.module()(X), model(X))


def test_removal_while_other_masks_are_live():
    from distiller_ng.pruning import SparsityLevelParameterPruner

    fine = SparsityLevelParameterPruner("fine", {"body.weight": 0.3})
    policies = [
        (PruningPolicy(ranked("stem.weight", "body.weight")), [0]),
        (PruningPolicy(fine), [0, 1, 2]),
        (FilterRemover("remove_filters"), [1]),
    ]
    model, optimizer, scheduler = build(policies)
    train(model, optimizer, scheduler, [0, 1, 2])
    mask = scheduler.masks["body.weight"].mask
    assert mask.shape == model.body.weight.shape == (4, 4, 3, 3)
    assert torch.equal(model.body.weight * mask, model.body.weight)


def test_nothing_to_remove_is_logged(caplog):
    model, optimizer, scheduler = build([(FilterRemover("remove_filters"), [0])])
    train(model, optimizer, scheduler, [0])
    assert "no zero filters to remove" in caplog.text
    assert model.stem.out_channels == 8


@pytest.mark.parametrize("compat", [None, "distiller"])
def test_conflicts_are_first_wins_by_the_ancestors_rules(compat):
    remover = StructureRemover("remove_filters", "arch", "mnist")
    masks_alone = {"mask_group": False}
    policies = [(PruningPolicy(ranked("stem.weight", "body.weight"), masks_alone), [0]), (remover, [0])]
    model, optimizer, scheduler = build(policies, compat=compat)
    train(model, optimizer, scheduler, [0])
    if compat:
        assert (model.stem.out_channels, model.body.out_channels) == (4, 4)
        assert remover.report.jump > 1e-3
    else:  # only what both agree on
        assert model.stem.out_channels == model.body.out_channels > 4


def test_channels():
    pruner = L1RankedStructureParameterPruner("p", "Channels", 0.25, ["body.weight"])
    model, optimizer, scheduler = build([(PruningPolicy(pruner), [0]), (ChannelRemover("remove_channels"), [0])])
    train(model, optimizer, scheduler, [0])
    assert (model.body.in_channels, model.stem.out_channels, model.bn1.num_features) == (6, 6, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"thinning_func_str": "remove_filter"}, "remove_filters"),
        ({"thinning_func_str": "remove_filters", "dataset": "cifar11"}, "cifar10"),
        ({"thinning_func_str": "remove_filters", "conflict": "last"}, "'group' or 'first'"),
        ({"thinning_func_str": "remove_filters", "round_to": 0}, "round_to"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        StructureRemover(**arguments)


def test_wrong_arguments_in_a_schedule_are_located():
    schedule = {
        "extensions": {"t": {"class": "FilterRemover", "thinning_func_str": "remove_filter"}},
        "policies": [{"extension": {"instance_name": "t"}, "epochs": [0]}],
        "compat": "distillr",
    }
    with pytest.raises(ScheduleError) as caught:
        dict_config(Residual(), None, schedule)
    text = str(caught.value)
    assert "extensions.t.thinning_func_str" in text and "compat is 'distiller'" in text


def test_fractional_windows_are_refused():
    scheduler = CompressionScheduler(Residual())
    with pytest.raises(ArgumentError, match="whole epochs"):
        scheduler.add_policy(FilterRemover("remove_filters"), starting_epoch=0.5, ending_epoch=2, frequency=0.5)


def test_hardware_friendly_widths():
    remover = StructureRemover("remove_filters", round_to=4)
    policies = [(PruningPolicy(ranked("stem.weight", "body.weight", level=0.4)), [0]), (remover, [0])]
    model, optimizer, scheduler = build(policies)
    train(model, optimizer, scheduler, [0])
    assert model.stem.out_channels == 8  # 3 of 8 are masked: 5 rounds up to 8


def test_what_is_dead_stays_dead_whatever_the_ranking_prefers():
    """A random ranking draws anew each time; with whole groups masked it must not kill more and more filters."""
    from distiller_ng.pruning import RandomRankedFilterPruner

    pruner = RandomRankedFilterPruner("p", "Filters", 0.5, ["stem.weight"])
    model, optimizer, scheduler = build([(PruningPolicy(pruner), [0, 1, 2])])
    train(model, optimizer, scheduler, [0])
    first = dead(model.stem.weight)
    train(model, optimizer, scheduler, [1, 2])
    assert int(first.sum()) == 4
    assert torch.equal(dead(model.stem.weight), first)


def test_groups_are_masked_by_the_ancestors_rules_too_where_that_is_asked_for():
    policy = PruningPolicy(ranked("stem.weight", "body.weight"), {"mask_group": True})
    remover = FilterRemover("remove_filters")
    model, optimizer, scheduler = build([(policy, [0]), (remover, [1])], compat="distiller")
    train(model, optimizer, scheduler, [0, 1])
    assert model.stem.out_channels == 4
    assert remover.report.error < 1e-4 and remover.report.jump < 1e-4


def test_data_parallel_models_are_refused_at_once():
    model = Residual()
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = model
    scheduler = CompressionScheduler(wrapped, example_inputs=X)
    with pytest.raises(ArgumentError, match="wrap the result again"):
        scheduler.add_policy(FilterRemover("remove_filters"), epochs=[1])
    assert scheduler.schedule == ()


def test_optimizers_that_step_during_backward():
    torch.manual_seed(0)
    model = Residual()
    optimizers = {p: torch.optim.SGD([p], lr=0.1, momentum=0.9) for p in model.parameters()}
    scheduler = CompressionScheduler(model, example_inputs=X)
    for optimizer in optimizers.values():
        scheduler.attach(optimizer)

    def step(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    scheduler.add_policy(PruningPolicy(ranked("stem.weight")), epochs=[0])
    scheduler.add_policy(FilterRemover("remove_filters"), epochs=[2])
    for epoch in scheduler.epochs(3):
        for batch in scheduler.minibatches([X, X]):
            scheduler.backward(model(batch).square().mean())
        if epoch == 1:
            gone = dead(model.stem.weight)
            assert int(gone.sum()) == 4 and torch.equal(dead(model.head.weight, 1), gone)
    assert model.stem.out_channels == 4
    assert optimizers[model.head.weight].state[model.head.weight]["momentum_buffer"].shape == (3, 4)


def test_a_loop_of_epoch_hooks_only_is_told_why_nothing_is_removed(caplog):
    model, optimizer, scheduler = build([(FilterRemover("remove_filters"), [0])])
    with caplog.at_level(logging.WARNING):
        scheduler.on_epoch_begin(0, optimizer)
        scheduler.on_epoch_end(0, optimizer)
    assert "the loop calls no minibatch hooks" in caplog.text
    assert model.stem.out_channels == 8
