"""Activation pruners: where they look, what they average, when they may decide, how they resume."""

import copy
import dataclasses

import pytest
import torch
from pruning_helpers import ConvNet, context, decide, kept_filters
from torch import nn

from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, CalibrationError, ScheduleWarning, TargetError
from distiller_ng.graph.provider import ModelGraph
from distiller_ng.names import ParameterIndex
from distiller_ng.policies import PruningPolicy
from distiller_ng.pruning import ActivationAPoZRankedFilterPruner, ActivationMeanRankedFilterPruner

APOZ, MEAN = ActivationAPoZRankedFilterPruner, ActivationMeanRankedFilterPruner


def scaling(*factors, act=None):
    """A 1x1 convolution that multiplies its one input channel by each factor, then an activation."""
    conv = nn.Conv2d(1, len(factors), 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(factors).reshape(-1, 1, 1, 1))
    return nn.Sequential(conv, act or nn.ReLU())


def observe(pruner, model, *batches):
    with pruner.observing(model):
        for batch in batches:
            model(batch)


def statistic(pruner, name):
    return (
        pruner.state_dict()["finished"][name]["store"]["sum"] / pruner.state_dict()["finished"][name]["store"]["count"]
    )


# -- what is pruned ---------------------------------------------------------------------------------------------------


def test_b5_mean_prunes_the_least_active_filters():
    model = scaling(0.1, 0.2, 0.3, 0.4).eval()
    pruner = MEAN("p", "Filters", 0.5, ["0.weight"])
    observe(pruner, model, torch.ones(2, 1, 3, 3))
    assert statistic(pruner, "0.weight").tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert kept_filters(decide(pruner, model)["0.weight"]) == [2, 3]


def test_b8_apoz_prunes_the_filters_that_are_zero_most_often():
    model = scaling(1.0, -1.0, 2.0, -3.0).eval()
    pruner = APOZ("p", "Filters", 0.5, "0.weight")
    observe(pruner, model, torch.tensor([1.0, 1.0, -1.0, 1.0]).reshape(1, 1, 2, 2))
    assert statistic(pruner, "0.weight").tolist() == [25, 75, 25, 75]
    assert kept_filters(decide(pruner, model)["0.weight"]) == [0, 2]


def test_every_element_counts_alike_whatever_the_batch_size():
    model = scaling(1.0, 1.0).eval()
    pruner = MEAN("p", "Filters", 0.5, "0.weight")
    observe(pruner, model, torch.ones(3, 1, 2, 2), torch.full((1, 1, 2, 2), 5.0))
    assert statistic(pruner, "0.weight").tolist() == [2.0, 2.0]


def test_validation_replaces_what_training_showed():
    model = scaling(1.0, 2.0)
    pruner = MEAN("p", "Filters", 0.5, "0.weight")
    with pruner.observing(model):
        model.train()(torch.ones(1, 1, 2, 2))
        model.eval()(torch.full((1, 1, 2, 2), 3.0))
        model.train()(torch.full((1, 1, 2, 2), 100.0))
    assert statistic(pruner, "0.weight").tolist() == [3.0, 6.0]
    observe(pruner, model.train(), torch.ones(1, 1, 2, 2))
    assert statistic(pruner, "0.weight").tolist() == [1.0, 2.0]


def test_leader_and_pattern_and_global_scope():
    model = nn.Sequential(*scaling(4.0, 1.0, 3.0, 2.0), nn.Conv2d(4, 4, 1), nn.ReLU()).eval()
    with torch.no_grad():
        model[2].weight.fill_(1.0)
        model[2].bias.copy_(torch.tensor([0.0, 30.0, 10.0, 20.0]))
    data = torch.ones(1, 1, 2, 2)
    led = MEAN("p", "Filters", 0.5, ["0.weight", "2.weight"], "Leader")
    observe(led, model, data)
    masks = decide(led, model)
    assert [kept_filters(mask) for mask in masks.values()] == [[0, 2], [0, 2]]
    patterned = MEAN("p", "Filters", None, "2.weight", pattern="1:2")
    observe(patterned, model, data)
    assert kept_filters(decide(patterned, model)["2.weight"]) == [1, 3]
    together = MEAN("p", "Filters", 0.5, "re:.*weight", scope="global")
    observe(together, model, data)  # means 4 1 3 2 and 10 40 20 30
    kept = {name: kept_filters(mask) for name, mask in decide(together, model).items()}
    assert kept == {"0.weight": [0], "2.weight": [1, 2, 3]}


# -- where it looks ---------------------------------------------------------------------------------------------------


class Named(nn.Module):
    """``conv1`` is followed by ``other``; ``relu1`` works elsewhere, but has the name Distiller goes by."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 1)
        self.other = nn.ReLU()
        self.relu1 = nn.ReLU()

    def forward(self, x):
        return self.relu1(self.other(self.conv1(x)) + 7)


def test_distillers_naming_comes_first():
    model = Named().eval()
    pruner = MEAN("p", "Filters", 0.5, "conv1.weight")
    observe(pruner, model, torch.zeros(1, 1, 2, 2))
    expected = torch.relu(model.conv1.bias.detach()) + 7
    assert statistic(pruner, "conv1.weight").tolist() == pytest.approx(expected.tolist())


class Shared(nn.Module):
    """One activation module for two layers, behind a norm, and working in place."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 2, 1)
        self.bn1 = nn.BatchNorm2d(2)
        self.act = nn.LeakyReLU(0.5, inplace=True)
        self.conv2 = nn.Conv2d(2, 2, 1)

    def forward(self, x):
        return self.act(self.conv2(self.act(self.bn1(self.conv1(x)))))


@pytest.mark.parametrize("example_inputs", [None, (torch.randn(1, 1, 2, 2),)])
def test_a_shared_activation_is_told_apart(example_inputs):
    model = Shared().eval()
    x = torch.randn(4, 1, 3, 3)
    pruner = MEAN("p", "Filters", 0.5, ["conv1.weight", "conv2.weight"])
    pruner.bind(ParameterIndex(model))
    ctx = context(model)
    ctx = dataclasses.replace(ctx, graph=ModelGraph(model, example_inputs))
    pruner.start_observing(ctx)
    with torch.no_grad():
        model(x)
        model(x)
        first = nn.functional.leaky_relu(model.bn1(model.conv1(x)), 0.5)
        second = nn.functional.leaky_relu(model.conv2(first), 0.5)
    pruner.stop_observing()
    assert statistic(pruner, "conv1.weight").tolist() == pytest.approx(first.mean(dim=(0, 2, 3)).tolist(), abs=1e-6)
    assert statistic(pruner, "conv2.weight").tolist() == pytest.approx(second.mean(dim=(0, 2, 3)).tolist(), abs=1e-6)


def test_functional_activations_are_taken_for_relu():
    model = ConvNet().eval()
    x = torch.randn(2, 3, 6, 6)
    pruner = MEAN("p", "Filters", 0.5, "conv2.weight")
    observe(pruner, model, x)
    expected = torch.relu(model.conv2(model.relu1(model.bn1(model.conv1(x))))).mean(dim=(0, 2, 3))
    assert statistic(pruner, "conv2.weight").tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_activation_behind_norm_and_dropout():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.ReLU6(), nn.Flatten()).eval()
    x = torch.randn(2, 1, 2, 2) * 5
    pruner = MEAN("p", "Filters", 0.5, "0.weight")
    observe(pruner, model, x)
    expected = model[:4](x).mean(dim=(0, 2, 3))
    assert statistic(pruner, "0.weight").tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_linear_layers_on_sequences_have_their_features_last():
    model = nn.Sequential(nn.Linear(3, 5), nn.GELU()).eval()
    x = torch.randn(2, 7, 3)
    pruner = MEAN("p", "Filters", 0.4, "0.weight")
    observe(pruner, model, x)
    assert statistic(pruner, "0.weight").tolist() == pytest.approx(model(x).mean(dim=(0, 1)).tolist(), abs=1e-6)
    assert len(kept_filters(decide(pruner, model)["0.weight"])) == 3


def test_compiled_models_are_seen():
    model = scaling(0.1, 0.2)
    compiled = torch.compile(model, backend="aot_eager")
    compiled(torch.ones(1, 1, 2, 2))
    pruner = MEAN("p", "Filters", 0.5, "0.weight")
    with pruner.observing(compiled):
        compiled(torch.ones(1, 1, 2, 2))
        compiled(torch.ones(1, 1, 2, 2))
    compiled(torch.full((1, 1, 2, 2), 9.0))
    assert statistic(pruner, "0.weight").tolist() == pytest.approx([0.1, 0.2])


def test_bfloat16_activations_are_averaged_in_full_precision():
    model = scaling(1.0, 1.0).eval()
    pruner = MEAN("p", "Filters", 0.5, "0.weight")
    with torch.autocast("cpu", torch.bfloat16), pruner.observing(model):
        model(torch.ones(1, 1, 1, 300))
    assert statistic(pruner, "0.weight").tolist() == [1.0, 1.0]


def test_hooks_are_gone_and_nothing_is_left_on_the_model():
    model = ConvNet()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    pruner = MEAN("p", "Filters", 0.5, ["conv1.weight", "conv2.weight"])
    with pruner.observing(model):
        pass  # not even a forward pass
    observe(pruner, model, torch.randn(2, 3, 6, 6))
    for name, module in model.named_modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert set(vars(module)) == before[name]


# -- when it may decide -----------------------------------------------------------------------------------------------


def test_without_observations_the_error_says_what_to_do():
    model = ConvNet()
    pruner = APOZ("p", "Filters", 0.5, "conv1.weight")
    with pytest.raises(CalibrationError, match=r"with pruner.observing\(model\)"):
        decide(pruner, model, epoch=1)


def test_windows_that_begin_with_epoch_0():
    model = ConvNet()
    parameters = ParameterIndex(model)
    pruner = APOZ("p", "Filters", 0.5, "conv1.weight")
    pruner.bind(parameters)
    for window, argument in (
        (PolicyWindow.from_epochs([0]), "epochs"),
        (PolicyWindow.from_range(0, 1), "starting_epoch"),
    ):
        with pytest.raises(ArgumentError, match="none precedes epoch 0") as caught:
            pruner.check(window, parameters)
        assert caught.value.argument == (argument,)
    with pytest.warns(ScheduleWarning, match="nothing is pruned there"):
        pruner.check(PolicyWindow.from_range(0, 3), parameters)
    assert decide(pruner, model, epoch=0, window=(0, 3, 1)) == {}


def test_only_weights_of_layers_with_filters():
    with pytest.raises(TargetError):
        MEAN("p", "Filters", 0.5, "conv1.bias").bind(ParameterIndex(ConvNet()))
    pruner = MEAN("p", "Filters", 0.5, "embedding.weight")
    model = nn.ModuleDict({"embedding": nn.Embedding(4, 3)})
    with pytest.raises(TargetError, match="no convolution or linear layer"):
        pruner.bind(ParameterIndex(model))
        pruner.check(PolicyWindow.from_range(1, 2), ParameterIndex(model))


# -- with a scheduler -------------------------------------------------------------------------------------------------


def train(scheduler, model, optimizer, epochs, *, stop_after=None, resume_at=(0, 0), validate=True):
    """Hook calls by hand; stops after minibatch ``stop_after`` = (epoch, minibatch), like a killed run."""
    for epoch in range(resume_at[0], epochs):
        scheduler.on_epoch_begin(epoch, optimizer)
        for step in range(resume_at[1] if epoch == resume_at[0] else 0, 3):
            data = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(10 * epoch + step))
            scheduler.on_minibatch_begin(epoch, step, 3, optimizer)
            loss = model.train()(data).square().mean()
            loss = scheduler.before_backward_pass(epoch, step, 3, loss, optimizer)
            optimizer.zero_grad()
            loss.backward()
            scheduler.before_parameter_optimization(epoch, step, 3, optimizer)
            optimizer.step()
            scheduler.on_minibatch_end(epoch, step, 3, optimizer)
            if (epoch, step) == stop_after:
                return
        if validate:
            with torch.no_grad():
                model.eval()(torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(99 + epoch)))
        scheduler.on_epoch_end(epoch, optimizer)


def build(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = CompressionScheduler(model)
    pruner = MEAN(
        "p", "Filters", weights=["conv1.weight", "conv2.weight"], schedule={"class": "Linear", "final_sparsity": 0.5}
    )
    scheduler.add_policy(PruningPolicy(pruner, None), starting_epoch=1, ending_epoch=4)
    return optimizer, scheduler


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("stop_after", [(0, 1), (1, 2), (2, 0)])
def test_a_resumed_run_goes_on_collecting(stop_after, validate):
    torch.manual_seed(0)
    whole = ConvNet()
    killed, fresh = copy.deepcopy(whole), copy.deepcopy(whole)
    optimizer, scheduler = build(whole)
    train(scheduler, whole, optimizer, 4, validate=validate)
    assert len(kept_filters(whole.conv2.weight.detach())) == 4
    optimizer, scheduler = build(killed)
    train(scheduler, killed, optimizer, 4, stop_after=stop_after, validate=validate)
    saved = copy.deepcopy((killed.state_dict(), optimizer.state_dict(), scheduler.state_dict()))
    optimizer, scheduler = build(fresh)
    fresh.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    scheduler.load_state_dict(saved[2])
    epoch, step = stop_after
    scheduler.resume_point.restore_rng()
    train(scheduler, fresh, optimizer, 4, resume_at=(epoch, step + 1), validate=validate)
    for name, parameter in whole.state_dict().items():
        assert torch.equal(parameter, fresh.state_dict()[name]), name
