"""The small extensions of recipes: parameters, weight decay, logging, layers left out or removed, quiet activations."""

import copy
import pickle

import pytest
import torch
from torch import nn

import distiller_ng as distiller
from distiller_ng.errors import ArgumentError, TargetError
from distiller_ng.policies._layers import select_layers
from distiller_ng.policies.activation_regularizer import ActivationRegularizer
from distiller_ng.policies.layer_pruning import LayerPruning, SkippedLayer
from distiller_ng.policies.layer_thinning import LayerThinning
from distiller_ng.policies.set_param import GradualParam, SetParam
from distiller_ng.policies.set_weight_decay import SetWeightDecay
from distiller_ng.policies.sparsity_log import SparsityLog
from distiller_ng.policies.trainable_params import TrainableParams

STEPS = 4


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


def train(model, policy, window, *, epochs=3, watch=None, trigger="step", lr=0.1, x=None, scheduler=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    scheduler = scheduler or distiller.CompressionScheduler(model, optimizer=optimizer)
    start, end, frequency = window
    scheduler.add_policy(policy, starting_epoch=start, ending_epoch=end, frequency=frequency, trigger=trigger)
    x = torch.randn(8, 6) if x is None else x
    for epoch in scheduler.epochs(epochs):
        for step, _ in enumerate(scheduler.minibatches([0] * STEPS)):
            optimizer.zero_grad()
            scheduler.backward(model(x).square().mean())
            optimizer.step()
            if watch is not None:
                watch(epoch + step / STEPS, scheduler)
    return scheduler


# -- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trigger", ["step", "epoch"])
def test_parameters_are_frozen_for_a_while(trigger):
    model, seen = mlp(), {}
    weight = model[0].weight.detach().clone()

    def watch(at, scheduler):
        seen[at] = (model[0].weight.requires_grad, model[0].weight.grad is None, torch.equal(model[0].weight, weight))

    train(model, TrainableParams(["0.weight"], trainable=False), (1, 2, 1), watch=watch, trigger=trigger)
    weight_at_1 = None
    assert {at for at, (learns, _, _) in seen.items() if not learns} == {1.0, 1.25, 1.5, 1.75} and weight_at_1 is None
    assert all(gone for at, (learns, gone, _) in seen.items() if not learns)
    assert model[0].weight.requires_grad and not seen[0.0][2]


@pytest.mark.parametrize(
    ("text", "flag"), [("False", False), ("0", False), ("true", True), ("yes", True), (True, True)]
)
def test_trainable_as_recipes_write_it(text, flag):
    assert TrainableParams(["a"], trainable=text).trainable is flag
    assert TrainableParams(["a"]).trainable is True
    with pytest.raises(ArgumentError):
        TrainableParams(["a"], trainable=1)


def test_an_open_window_leaves_what_it_froze_and_a_resumed_run_knows():
    model = mlp()
    policy = TrainableParams("__ALL__", trainable=False)
    scheduler = distiller.CompressionScheduler(model)
    scheduler.add_policy(policy, starting_epoch=0, ending_epoch=-1)
    scheduler.on_epoch_begin(0)
    assert not any(p.requires_grad for p in model.parameters())
    other = mlp()
    resumed = distiller.CompressionScheduler(other)
    resumed.add_policy(TrainableParams("__ALL__", trainable=False), starting_epoch=0, ending_epoch=-1)
    resumed.load_state_dict(scheduler.state_dict())
    assert not any(p.requires_grad for p in other.parameters())
    scheduler.on_epoch_end(0)
    scheduler.finish()
    assert not any(p.requires_grad for p in model.parameters())


def test_values_are_written_once():
    model, seen = mlp(), {}
    policy = SetParam(["0.bias"], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    train(model, policy, (1, -1, 0), lr=0.0, watch=lambda at, s: seen.update({at: model[0].bias.tolist()}))
    assert seen[1.0] == seen[2.75] == [1, 2, 3, 4, 5, 6] != seen[0.75]


def test_values_change_gradually():
    model, seen = mlp(), {}
    policy = GradualParam(["2.bias"], [1.0, 1.0, 1.0], [0.0, 0.0, -1.0])
    train(model, policy, (0, 2, 0.5), lr=0.0, watch=lambda at, s: seen.update({at: model[2].bias.tolist()}))
    assert [seen[at][0] for at in (0.0, 0.5, 1.0, 1.5, 2.0, 2.75)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert seen[1.0] == [0.5, 0.5, 0.0] and seen[2.0] == [0.0, 0.0, -1.0]


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: SetParam(["0.bias"], "much"), ("val",)),
        (lambda: SetParam(["0.bias"], [1.0, [2.0]]), ("val",)),
        (lambda: GradualParam(["0.bias"], 0.0, None), ("final_val",)),
        (lambda: GradualParam(["0.bias"], 0.0, 1.0, inter_func="x"), ("inter_func",)),
        (lambda: SetWeightDecay(-1.0), ("weight_decay",)),
        (lambda: SetWeightDecay(0.1, param_groups="all"), ("param_groups",)),
        (lambda: LayerPruning([]), ("layers",)),
        (lambda: LayerPruning([1]), ("layers",)),
        (lambda: LayerThinning(structure_type="row"), ("structure_type",)),
        (lambda: LayerThinning(update_epochs="now"), ("update_epochs",)),
        (lambda: LayerThinning(update_epochs=[-1]), ("update_epochs", 0)),
        (lambda: LayerThinning(param_group_dependency_map=["a"]), ("param_group_dependency_map",)),
        (lambda: ActivationRegularizer(["a"], "x"), ("alpha",)),
        (lambda: ActivationRegularizer(["a"], [1.0, 2.0]), ("alpha",)),
        (lambda: ActivationRegularizer(["a"], 1.0, reg_func="l3"), ("reg_func",)),
        (lambda: ActivationRegularizer(["a"], 1.0, reg_tens="both"), ("reg_tens",)),
    ],
)
def test_mistakes_name_their_argument(make, where):
    with pytest.raises(ArgumentError) as caught:
        make()
    assert caught.value.argument == where


@pytest.mark.parametrize(
    ("policy", "where"),
    [
        (SetParam(["0.bias"], [1.0, 2.0]), ("val",)),
        (SetParam(["0.biases"], 1.0), ("weights", 0)),
        (TrainableParams(["9.bias"]), ("weights", 0)),
        (LayerPruning(["1", "7"]), ("layers", 1)),
        (LayerPruning(["re:["]), ("layers", 0)),
        (
            LayerThinning(param_group_dependency_map={"0.weight, 9.weight": []}),
            ("param_group_dependency_map", "0.weight, 9.weight"),
        ),
        (ActivationRegularizer(["1", "x"], 1.0), ("layers", 1)),
        (SparsityLog(["x"]), ("weights", 0)),
    ],
)
def test_names_are_looked_up_when_a_policy_is_added(policy, where):
    with pytest.raises(ArgumentError) as caught:
        distiller.CompressionScheduler(mlp()).add_policy(policy, starting_epoch=0, ending_epoch=3)
    assert caught.value.argument == where
    assert isinstance(caught.value, TargetError | ArgumentError)


def test_weight_decay_is_set_in_its_groups_from_its_epoch_on():
    model, seen = mlp(), {}
    optimizer = torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.1, weight_decay=0.5)
    scheduler = distiller.CompressionScheduler(model, optimizer=optimizer)
    scheduler.add_policy(
        SetWeightDecay(0.01, param_groups=[1, 3]), starting_epoch=1, ending_epoch=-1, frequency=0, trigger="step"
    )
    for epoch in scheduler.epochs(2):
        for _ in scheduler.minibatches([0] * 2):
            optimizer.zero_grad()
            scheduler.backward(model(torch.randn(2, 6)).sum())
            optimizer.step()
        seen[epoch] = [group["weight_decay"] for group in optimizer.param_groups]
    assert seen == {0: [0.5] * 4, 1: [0.5, 0.01, 0.5, 0.01]}


def test_sparsity_is_logged_at_its_epochs(caplog):
    caplog.set_level("INFO", logger="distiller_ng")
    model = mlp()
    with torch.no_grad():
        model[0].weight[:3] = 0
    train(model, SparsityLog(), (0, 2, 0.5), lr=0.0)
    lines = [r.message for r in caplog.records if "sparsity" in r.message]
    assert lines[0] == "epoch 0: sparsity 0.3333 (0.weight 0.5000, 2.weight 0.0000)"
    assert [line.split(":")[0] for line in lines] == ["epoch 0", "epoch 0.5", "epoch 1", "epoch 1.5", "epoch 2"]


# -- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trigger", ["step", "epoch"])
def test_layers_are_left_out_and_come_back(trigger):
    model, x, seen = mlp(), torch.randn(8, 6), {}
    expected, without = model(x).detach(), model[2](torch.relu(x)).detach()
    keys = list(model.state_dict())

    def watch(at, scheduler):
        seen[at] = model(x).detach()

    train(model, LayerPruning(["0"]), (1, 2, 1), lr=0.0, watch=watch, trigger=trigger, x=x)
    torch.testing.assert_close(seen[0.75], expected)
    torch.testing.assert_close(seen[1.25], without)
    torch.testing.assert_close(model(x).detach(), expected)
    assert list(model.state_dict()) == keys and type(model[0]) is nn.Linear


def test_layers_left_out_to_the_end_are_gone():
    model, x = mlp(), torch.randn(8, 6)
    scheduler = distiller.CompressionScheduler(model)
    scheduler.add_policy(LayerPruning(["re:0", "1"]), starting_epoch=-1, ending_epoch=-1, frequency=0, trigger="step")
    expected = model[2](x)
    torch.testing.assert_close(model(x), expected)  # from the beginning
    torch.testing.assert_close(copy.deepcopy(model)(x), pickle.loads(pickle.dumps(model))(x))
    for _ in scheduler.epochs(1):
        for _ in scheduler.minibatches([0]):
            scheduler.backward(model(x).sum())
            scheduler.before_parameter_optimization(0, 0, 1)
    assert isinstance(model[0], SkippedLayer) and isinstance(model[1], SkippedLayer)
    assert len(list(model.parameters())) == 2
    torch.testing.assert_close(model(x), expected)


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 3)
    )


@pytest.mark.parametrize(("epochs", "shrinks_at"), [([1.5], 1.5), ([], None), ([9], None)])
def test_what_is_zero_is_removed_at_its_epoch_or_at_last(epochs, shrinks_at):
    model, x, seen = cnn(), torch.randn(4, 1, 6, 6), {}
    with torch.no_grad():
        model[0].weight[:3] = 0
    schedule = {
        "version": 1,
        "pruners": {"hold": {"class": "ConstantPruner", "weights": ["0.weight"]}},
        "extensions": {
            "thin": {
                "class": "LayerThinning",
                "update_epochs": epochs,
                "param_group_dependency_map": {"0.weight,0.bias": ["3.weight", "1"]},
            }
        },
        "policies": [
            {"pruner": {"instance_name": "hold"}, "starting_epoch": 0, "ending_epoch": -1},
            {
                "extension": {"instance_name": "thin"},
                "starting_epoch": 0,
                "ending_epoch": -1,
                "frequency": 0,
                "trigger": "step",
            },
        ],
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    scheduler = distiller.dict_config(model, optimizer, schedule)
    for epoch in scheduler.epochs(3):
        for step, _ in enumerate(scheduler.minibatches([0] * STEPS)):
            optimizer.zero_grad()
            scheduler.backward(model(x).square().mean())
            optimizer.step()
            seen[epoch + step / STEPS] = model[0].out_channels
    assert (model[0].out_channels, model[1].num_features, model[3].in_channels) == (5, 5, 5)
    assert {at for at, width in seen.items() if width == 5} == {at for at in seen if shrinks_at and at >= shrinks_at}
    assert optimizer.state[model[0].weight]["momentum_buffer"].shape == (5, 1, 3, 3)


# -- activations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("penalty", "expected"), [("l1", 4.0), ("l2", 6.0), ("relu", 2.0), ("hs", 16 / 6)])
@pytest.mark.parametrize("side", ["inp", "out"])
def test_activations_cost(penalty, expected, side):
    model = nn.Sequential(nn.Identity())
    policy = ActivationRegularizer(["0"], 0.5, reg_func=penalty, reg_tens=side)
    scheduler = distiller.CompressionScheduler(model)
    scheduler.add_policy(policy, starting_epoch=0, ending_epoch=1)
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    out = model(torch.tensor([[1.0, -2.0, 0.0, 1.0]], requires_grad=True))
    result = scheduler.before_backward_pass(0, 0, 1, 0 * out.sum(), return_loss_components=True)
    assert float(result.overall_loss.detach()) == pytest.approx(0.5 * expected)
    assert [c.name for c in result.loss_components] == ["activation_regularizer"]


def test_several_layers_have_their_own_weights_and_hooks_go():
    model, x = mlp(), torch.randn(4, 6)
    hidden = torch.relu(model[0](x)).detach()
    policy = ActivationRegularizer(["1", "2"], [1.0, 3.0], layer_normalized=True, reg_tens="out")
    expected = (hidden.abs().sum() / 4 + 3 * model[2](hidden).abs().sum() / 4) / 2
    scheduler = distiller.CompressionScheduler(model)
    scheduler.add_policy(policy, starting_epoch=0, ending_epoch=1)
    scheduler.on_epoch_begin(0)
    model(x)  # between minibatches: does not count
    scheduler.on_minibatch_begin(0, 0, 1)
    out = model(x)
    total = scheduler.before_backward_pass(0, 0, 1, 0 * out.sum())
    torch.testing.assert_close(total.detach(), expected.detach())
    scheduler.on_minibatch_end(0, 0, 1)
    scheduler.on_epoch_end(0)
    scheduler.finish()
    assert not any(module._forward_hooks for module in model.modules())


def test_activations_get_quieter():
    loud, quiet = {}, {}
    for store, alpha in ((loud, 0.0), (quiet, 1.0)):
        model, x = mlp(), torch.randn(8, 6, generator=torch.Generator().manual_seed(3))
        train(model, ActivationRegularizer("1", alpha, reg_tens="out"), (0, 3, 0), x=x, lr=0.01)
        store["size"] = float(model[1](model[0](x)).abs().mean().detach())
    assert quiet["size"] < 0.5 * loud["size"]


def test_tokens_stand_for_layers():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()), nn.Flatten(), nn.Linear(2, 2))
    assert list(select_layers(model, ["__ALL__"])) == ["0.0", "0.1", "1", "2"]
    assert list(select_layers(model, ["__all_prunable__"])) == ["0.0", "2"]
