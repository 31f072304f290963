"""The pruners of recipes, each on numbers that can be worked out by hand, and in a training loop."""

from itertools import pairwise

import pytest
import torch
from pruning_helpers import ConvNet, Holder, context, decide, filters_with, kept_filters
from torch import nn

import distiller_ng as distiller
from distiller_ng.core.masks import MaskRegistry
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, CalibrationError, TargetError
from distiller_ng.names import ParameterIndex
from distiller_ng.policies.pruning import PruningPolicy
from distiller_ng.pruning import (
    ACDCPruner,
    ConstantPruner,
    MagnitudePruner,
    MovementPruner,
    RigLPruner,
    StructuredPruner,
)
from distiller_ng.pruning.rigl import layer_sparsities

STEPS = 4


def train(model, pruner, window, *, epochs, optimizer=None, args=None, watch=None, trigger="step"):
    """A plain loop of ``STEPS`` steps an epoch; ``watch(position, scheduler)`` after each step."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = distiller.CompressionScheduler(model, optimizer=optimizer)
    start, end, frequency = window
    policy = PruningPolicy(pruner, args)
    scheduler.add_policy(policy, starting_epoch=start, ending_epoch=end, frequency=frequency, trigger=trigger)
    data = [(torch.randn(8, 6), torch.randn(8, 3))] * STEPS
    for epoch in scheduler.epochs(epochs):
        for step, (x, y) in enumerate(scheduler.minibatches(data)):
            optimizer.zero_grad()
            scheduler.backward(nn.functional.mse_loss(model(x), y))
            optimizer.step()
            if watch is not None:
                watch(epoch + step / STEPS, scheduler)
    return scheduler


def sparsity(model):
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return float(sum((w == 0).sum() for w in weights)) / sum(w.numel() for w in weights)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))


# -- movement --------------------------------------------------------------------------------------------------------


def test_movement_prunes_what_shrinks():
    model = Holder(a=torch.tensor([[1.0, 1.0, -2.0, 0.5]]))
    model.a.weight.grad = torch.tensor([[2.0, -2.0, 1.0, 0.1]])
    pruner = MovementPruner("p", "a.weight", final_sparsity=0.5)
    ctx = context(model)
    pruner.bind(ctx.parameters)
    for _ in range(3):
        pruner.before_step(ctx)
    assert torch.allclose(pruner.scores("a.weight", ctx), 3 * torch.tensor([[-0.02, 0.02, 0.02, -0.0005]]))
    assert decide(pruner, model, ctx)["a.weight"].tolist() == [[0, 1, 1, 0]]


def test_movement_in_a_loop_counts_each_step_once_and_decides_with_the_last():
    model, seen = mlp(), []
    pruner = MovementPruner("p", "0.weight", init_sparsity=0.05, final_sparsity=0.85)
    total, levels = torch.zeros(20, 6), {}

    def watch(position, scheduler):
        levels[position] = float((model[0].weight == 0).float().mean())

    handle = model[0].weight.register_post_accumulate_grad_hook(
        lambda p: seen.append(-0.01 * p.grad.clone() * p.detach().clone())
    )
    train(model, pruner, (0.5, 2.5, 0.5), epochs=4, watch=watch)
    handle.remove()
    assert levels[0.25] == 0 and [levels[at] for at in (0.5, 1.0, 1.5, 2.0, 2.5)] == pytest.approx(
        [round(120 * s) / 120 for s in (0.05, 0.5125, 0.75, 0.8375, 0.85)]
    )
    assert levels[3.75] == pytest.approx(0.85)
    # from the window's first step (0.5, the third) up to the last one before its end (2.25, the tenth)
    for change in seen[2:10]:
        total += change
    assert torch.allclose(pruner._scores["0.weight"], total, atol=1e-7)


def test_movement_ignores_the_scale_of_mixed_precision():
    results = []
    for scale in (None, 1024.0):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = distiller.CompressionScheduler(model, optimizer=optimizer)
        pruner = MovementPruner("p", "0.weight", init_sparsity=0.2, final_sparsity=0.8)
        scheduler.add_policy(PruningPolicy(pruner), starting_epoch=0, ending_epoch=2, frequency=1, trigger="step")
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None, growth_interval=2)
        torch.manual_seed(1)
        x, y = torch.randn(8, 6), torch.randn(8, 3)
        for _ in scheduler.epochs(3):
            for _ in scheduler.minibatches([0] * STEPS):
                optimizer.zero_grad()
                scheduler.backward(nn.functional.mse_loss(model(x), y), scaler=scaler)
                scaler.step(optimizer)
                scaler.update()
        results.append((pruner._scores["0.weight"], model[0].weight.detach()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-7)


def test_movement_without_any_gradient_leaves_the_parameter_alone(caplog):
    model = Holder(a=torch.rand(4, 4))
    assert decide(MovementPruner("p", "a.weight", final_sparsity=0.5), model) == {}
    assert "has no gradient" in caplog.text


# -- constant --------------------------------------------------------------------------------------------------------


def test_constant_holds_the_zeros_that_are_there():
    model = mlp()
    with torch.no_grad():
        model[0].weight[model[0].weight.abs() < 0.2] = 0
        model[2].bias.zero_()
    zeros = model[0].weight == 0
    before = sparsity(model)
    scheduler = train(model, ConstantPruner("p"), (-1, -1, 0), epochs=3, args={"leave_enabled": False})
    assert bool((model[0].weight[zeros] == 0).all()) and bool((model[0].weight[~zeros] != 0).all())
    assert sparsity(model) == before > 0 and bool((model[2].bias != 0).all())
    assert bool((scheduler.masks["0.weight"].mask == (~zeros).float()).all())  # an open window ends with the run
    assert scheduler.masks["2.weight"].mask is None  # dense: no mask, no cost


def test_constant_lets_go_at_the_end_of_its_window_where_it_is_told_to():
    for leave, alive in ((True, False), (False, True)):
        model = mlp()
        with torch.no_grad():
            model[0].weight[:, :3] = 0
        train(model, ConstantPruner("p"), (0, 1, 0), epochs=2, args={"leave_enabled": leave})
        assert bool((model[0].weight[:, :3] != 0).any()) is alive


def test_all_holds_sparse_tensors_only_and_says_what_it_leaves(caplog):
    caplog.set_level("INFO")
    model = nn.Sequential(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.Linear(20, 3))
    with torch.no_grad():
        model[0].weight[:10] = 0
        model[0].bias.zero_()
        model[2].weight[0, 0] = 0  # 1.7 %
    masks = decide(ConstantPruner("p", "__ALL__"), model)
    assert list(masks) == ["0.weight"]
    assert all(name in caplog.text for name in ("0.bias", "1.bias", "2.weight"))
    assert list(decide(ConstantPruner("p", "__ALL__", min_sparsity=0.01), model)) == ["0.weight", "2.weight"]
    assert list(decide(ConstantPruner("p", ["0.bias"]), model)) == ["0.bias"]  # named: as it says


def test_constant_asks_once_and_a_resumed_run_does_not_ask_again():
    model = Holder(a=torch.tensor([[0.0, 1.0, 2.0]]))
    masks = MaskRegistry(ParameterIndex(model))
    pruner = ConstantPruner("p", "a.weight")
    assert decide(pruner, model, context(model, masks=masks))["a.weight"].tolist() == [[0, 1, 1]]
    with torch.no_grad():
        model.a.weight[0, 1] = 0  # passes through zero while training: still alive
    assert decide(pruner, model, context(model, masks=masks)) == {}
    other = ConstantPruner("p", "a.weight")
    other.load_state_dict(pruner.state_dict())
    assert decide(other, model, context(model, masks=masks)) == {}
    pruner.check(PolicyWindow.from_range(0, -1), ParameterIndex(model))
    for one in (pruner, other):  # what was held, not what is there by now
        assert one.planned_sparsity("a.weight", PolicyWindow.from_range(0, 1)) == pytest.approx(1 / 3)
    new = ConstantPruner("p", "a.weight")
    new.bind(ParameterIndex(model))
    new.check(PolicyWindow.from_range(0, -1), ParameterIndex(model))
    assert new.planned_sparsity("a.weight", PolicyWindow.from_range(0, 1)) == pytest.approx(2 / 3)


def test_constant_plans_nothing_for_what_it_leaves_and_keeps_what_others_planned():
    model = mlp()
    with torch.no_grad():
        model[0].bias.zero_()
    scheduler = distiller.CompressionScheduler(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    magnitude = MagnitudePruner("m", "0.weight", init_sparsity=0.5, final_sparsity=0.5)
    scheduler.add_policy(PruningPolicy(magnitude), starting_epoch=0, ending_epoch=1, trigger="step")
    hold = PruningPolicy(ConstantPruner("c", "__ALL__"))
    scheduler.add_policy(hold, starting_epoch=1, ending_epoch=-1, frequency=0, trigger="step")
    for _ in scheduler.epochs(2):
        for _ in scheduler.minibatches([0, 1]):
            scheduler.optimizer.zero_grad()
            scheduler.backward(model(torch.randn(4, 6)).square().mean())
            scheduler.optimizer.step()
    found = {row.name: (row.planned, row.achieved > 0) for row in scheduler.finish().parameters}
    assert found["0.weight"] == (0.5, True)
    assert found["0.bias"] == (None, False)


# -- AC/DC -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trigger", ["step", "epoch"])
def test_acdc_is_dense_and_compressed_in_turn(trigger):
    model, levels = mlp(), {}

    def watch(position, scheduler):
        momentum = [s["momentum_buffer"] for s in scheduler.optimizer.state.values()]
        masks = scheduler.masks.masked()
        pruned = sum(int((mask == 0).sum()) for mask in masks.values())
        assert not masks or sparsity(model) == pruned / 180
        levels[position] = (pruned / 180, all(bool((m == 0).all()) for m in momentum))

    train(model, ACDCPruner("p", compression_sparsity=0.9), (1, 9, 2), epochs=11, watch=watch, trigger=trigger)
    compressed = {position for position, (level, _) in levels.items() if level == 0.9}
    assert compressed == {p for p in levels if 3 <= p < 5 or p >= 7}
    assert {level for p, (level, _) in levels.items() if p not in compressed} == {0.0}
    assert [position for position, (_, zeroed) in levels.items() if zeroed] == [5.0]


@pytest.mark.parametrize(
    ("window", "phases"),
    [
        ((0, 4, 1), "dcdc"),
        ((0, 5, 1), "dcdcc"),
        ((0, 6, 2), "ddcccc"),
        ((0, 7, 2), "ddccddc"),
        ((0, 8, 3), "dddccccc"),
        ((0, 9, 2), "ddccddccc"),
        ((2, 4, 1), "dc"),
        ((0, 1, 1), "c"),
    ],
)
def test_acdc_phases(window, phases):
    start, end, frequency = window
    pruner = ACDCPruner("p", compression_sparsity=0.5)
    active = PolicyWindow.of_steps(*window)
    found = ""
    for epoch in range(start, end):
        last = start + (epoch - start) // frequency * frequency  # phases change when the policy is due
        position = distiller.core.position.TrainPosition(last)
        found += "c" if pruner.is_compressed(active, position) else "d"
    assert found == phases


def test_acdc_keeps_momentum_where_it_is_told_to():
    model, zeroed = mlp(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def watch(position, scheduler):
        zeroed.append(all(bool((s["momentum_buffer"] == 0).all()) for s in optimizer.state.values()))

    pruner = ACDCPruner("p", compression_sparsity=0.9, momentum_buffer_reset=False)
    train(model, pruner, (0, 8, 1), epochs=4, optimizer=optimizer, watch=watch)
    assert not any(zeroed)


@pytest.mark.parametrize(("window", "where"), [((0, 4.5, 1), "ending_epoch"), ((0.5, 4, 1), "starting_epoch")])
def test_acdc_has_phases_of_whole_epochs(window, where):
    with pytest.raises(ArgumentError) as caught:
        train(mlp(), ACDCPruner("p", compression_sparsity=0.9), window, epochs=1)
    assert caught.value.argument == (where,)
    with pytest.raises(ArgumentError):
        train(mlp(), ACDCPruner("p", compression_sparsity=0.9), (0, 4, 0.5), epochs=1)


# -- structured ------------------------------------------------------------------------------------------------------


def test_structured_prunes_filters_and_channels_by_norm():
    model = Holder(a=filters_with(3, 1, 2, 4))
    masks = decide(StructuredPruner("p", "a.weight", final_sparsity=0.5), model)
    assert kept_filters(masks["a.weight"]) == [0, 3]
    model = Holder(a=filters_with(3, 1, 2, 4).transpose(0, 1))
    masks = decide(StructuredPruner("p", "a.weight", final_sparsity=0.5, mask_type="channel"), model)
    assert kept_filters(masks["a.weight"].transpose(0, 1)) == [0, 3]


def test_groups_lose_the_same_indices_and_a_linear_layer_follows_a_flattened_convolution():
    model = Holder(a=filters_with(3, 1, 2, 4), b=filters_with(1, 9, 1, 9), c=torch.ones(5, 16))
    masks = decide(
        StructuredPruner("p", ["re:[ab].weight"], final_sparsity=0.5, param_groups=[["a.weight", "b.weight"]]), model
    )
    assert kept_filters(masks["a.weight"]) == kept_filters(masks["b.weight"]) == [1, 3]
    with torch.no_grad():
        model.c.weight[:, :4] = 0
    groups = [["c.weight", "d.weight"]]
    model.add_module("d", nn.Conv2d(4, 4, 1))
    nn.init.constant_(model.d.weight, 1.0)
    pruner = StructuredPruner(
        "p", ["c.weight", "d.weight"], final_sparsity=0.25, mask_type="channel", param_groups=groups
    )
    masks = decide(pruner, model)
    assert masks["c.weight"][0].tolist() == [0] * 4 + [1] * 12
    assert masks["d.weight"][:, :, 0, 0].tolist() == [[0, 1, 1, 1]] * 4


def test_depthwise_convolutions_and_vectors():
    model = nn.Sequential(nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1))
    pruner = StructuredPruner("p", final_sparsity=0.5, mask_type="channel")
    masks = decide(pruner, model)
    assert bool((masks["0.weight"] == 1).all()) and float(masks["1.weight"].mean()) == 0.5
    assert pruner.planned_sparsity("0.weight", PolicyWindow.from_range(0, 1)) == 0.0
    with pytest.raises(TargetError):
        StructuredPruner("p", "0.bias", final_sparsity=0.5).bind(ParameterIndex(model))


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"mask_type": "unstructured"}, ("mask_type",)),
        ({"mask_type": "2:4"}, ("mask_type",)),
        ({"param_groups": "a"}, ("param_groups",)),
        ({"param_groups": ["a"]}, ("param_groups", 0)),
    ],
)
def test_structured_refuses(settings, where):
    with pytest.raises(ArgumentError) as caught:
        StructuredPruner("p", **{"final_sparsity": 0.5, **settings})
    assert caught.value.argument == where


# -- RigL ------------------------------------------------------------------------------------------------------------


def test_rigl_drops_the_smallest_and_grows_by_gradient():
    model = Holder(a=torch.tensor([4.0, 3.0, 2.0, 0.0, 0.0, 0.0]))
    model.a.weight.grad = torch.tensor([0.0, 0.0, 0.0, 0.0, 9.0, 1.0])
    pruner = RigLPruner("p", "a.weight", final_sparsity=0.5, init_update_fraction=2 / 3)
    mask = decide(pruner, model, context(model, epoch=2, window=(0, 5, 1)))["a.weight"]  # half way: f = 1/3
    assert mask.tolist() == [1, 1, 0, 0, 1, 0]
    last = decide(pruner, model, context(model, epoch=4, window=(0, 5, 1)))["a.weight"]
    assert last.tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("strategy", ["erdos_renyi_kernel", "erdos_renyi", "uniform"])
def test_rigl_spreads_one_sparsity_by_its_strategy(strategy):
    shapes = {"a": (16, 3, 3, 3), "b": (32, 16, 3, 3), "c": (10, 32)}
    found = layer_sparsities(shapes, 0.9, strategy)
    raw = {
        "erdos_renyi_kernel": {"a": 25 / 432, "b": 54 / 4608, "c": 42 / 320},
        "erdos_renyi": {"a": 19 / 48, "b": 48 / 512, "c": 42 / 320},
        "uniform": dict.fromkeys(shapes, 1.0),
    }[strategy]
    sizes = {"a": 432, "b": 4608, "c": 320}
    scale = 0.1 * 5360 / sum(raw[k] * sizes[k] for k in raw)
    assert found == pytest.approx({k: 1 - min(1, scale * raw[k]) for k in raw})
    assert sum(found[k] * sizes[k] for k in raw) >= 0.9 * 5360 - 1e-9


def test_rigl_moves_weights_and_stays_as_sparse_from_start_to_end():
    model, seen = mlp(), []
    pruner = RigLPruner("p", final_sparsity=0.8, sparsity_strategy="uniform")

    def watch(position, scheduler):
        alive = scheduler.masks["0.weight"].mask.clone()
        state = scheduler.optimizer.state[model[0].weight]["momentum_buffer"]
        seen.append((alive, float((model[0].weight == 0).float().mean()), state.clone()))

    train(model, pruner, (0, 4, 0.5), epochs=5, watch=watch)
    assert {round(level, 4) for _, level, _ in seen[1:]} <= {0.8, 0.8083, 0.8167, 0.825}
    masks = [mask for mask, _, _ in seen]
    assert any(not torch.equal(a, b) for a, b in pairwise(masks))
    assert all(torch.equal(masks[17], mask) for mask in masks[17:])


def test_rigl_samples_gradients_where_there_is_data():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = distiller.CompressionScheduler(model, optimizer=optimizer)
    calls = []

    def build(number=1):
        calls.append(number)
        return [((torch.randn(4, 6),), {}, torch.randn(4, 3)) for _ in range(3)]

    scheduler.grad_sampler = {"data_loader_builder": build, "loss_function": nn.functional.mse_loss}
    pruner = RigLPruner("p", final_sparsity=0.8, num_grads=2, grad_sampler_kwargs={"number": 7})
    scheduler.add_policy(PruningPolicy(pruner), starting_epoch=0, ending_epoch=1, frequency=1, trigger="step")
    x, y = torch.randn(8, 6), torch.randn(8, 3)
    for _ in scheduler.epochs(1):
        for _ in scheduler.minibatches([0] * STEPS):
            optimizer.zero_grad()
            scheduler.backward(nn.functional.mse_loss(model(x), y))
            optimizer.step()
    assert calls and set(calls) == {7}
    with pytest.raises(CalibrationError):
        decide(RigLPruner("p", final_sparsity=0.8), ConvNet())


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"final_sparsity": 1.2}, "final_sparsity"),
        ({"final_sparsity": None}, "final_sparsity"),
        ({"sparsity_strategy": "erk"}, "sparsity_strategy"),
        ({"init_update_fraction": -1}, "init_update_fraction"),
        ({"num_grads": 0}, "num_grads"),
    ],
)
def test_rigl_refuses(settings, where):
    with pytest.raises(ArgumentError) as caught:
        RigLPruner("p", **{"final_sparsity": 0.5, **settings})
    assert caught.value.argument[0] == where
