"""Channel pruning with least-squares reconstruction, against a float64 reference."""

import copy
import logging

import numpy as np
import pytest
import torch
from pruning_helpers import ConvNet, context, decide
from torch import nn

from distiller_ng.core.masks import create_model_masks_dict
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, CalibrationError, TargetError
from distiller_ng.names import ParameterIndex
from distiller_ng.policies import PruningPolicy
from distiller_ng.pruning import FMReconstructionChannelPruner, fm_reconstruction


def kept_channels(mask):
    return mask.transpose(0, 1).flatten(1).any(dim=1).nonzero().flatten().tolist()


def prune(pruner, model, *batches):
    """Observe, decide, refit and mask, as a policy does."""
    with pruner.observing(model.eval()), torch.no_grad():
        for batch in batches:
            model(batch)
    ctx = context(model, epoch=1)
    masks = decide(pruner, model, ctx)
    pruner.update_weights_(ctx)
    ctx.masks.project_()
    return masks


def test_a_channel_that_repeats_another_moves_its_weight_there():
    model = nn.Sequential(nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([3.0, 1.0]).reshape(1, 2, 1, 1))
    x = torch.randn(4, 1, 5, 5)
    x = torch.cat([x, 2 * x], dim=1)
    before = model(x).detach()
    masks = prune(FMReconstructionChannelPruner("p", "Channels", 0.5, ["0.weight"]), model, x)
    assert kept_channels(masks["0.weight"]) == [0]
    assert model[0].weight.flatten().tolist() == pytest.approx([5.0, 0.0], abs=1e-5)
    assert torch.allclose(model(x), before, atol=1e-5)  # the bias stays as it was


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 3, 3, padding=1),
        nn.Conv2d(4, 3, (3, 2), stride=2, dilation=(1, 2), padding=2, padding_mode="reflect"),
        nn.Conv1d(4, 3, 3, padding="same"),
        nn.Conv3d(4, 3, 2),
        nn.Linear(4, 3),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_refitted_weights_agree_with_numpys_least_squares(layer):
    model = nn.Sequential(copy.deepcopy(layer))
    shape = {"Conv2d": (6, 4, 9, 9), "Conv1d": (30, 4, 9), "Conv3d": (6, 4, 5, 5, 5), "Linear": (40, 4)}
    x = torch.randn(*shape[type(layer).__name__])
    x[:, 3] = 0.5 * x[:, 0] + 0.1 * x[:, 3]
    pruner = FMReconstructionChannelPruner("p", "Channels", 0.5, "0.weight", max_samples=200)
    weight = layer.weight.detach().double()
    masks = prune(pruner, model, x)
    kept = kept_channels(masks["0.weight"])
    magnitudes = weight.transpose(0, 1).flatten(1).abs().mean(dim=1)
    assert kept == sorted(magnitudes.argsort()[2:].tolist())
    rows = pruner.state_dict()["finished"]["0.weight"]["store"]["rows"].double()
    # the samples are what the layer multiplies its weights with: the sum over patches is a sample of its outputs
    outputs = (rows @ weight.flatten(1).t() + layer.bias.detach().double()).numpy()
    all_outputs = layer(x).detach().movedim(1, -1).reshape(-1, 3).numpy() if x.dim() > 2 else layer(x).detach().numpy()
    for sample in outputs[:5]:
        assert np.abs(all_outputs - sample).max(axis=1).min() < 1e-5
    columns = rows.reshape(len(rows), 4, -1)[:, kept].flatten(1).numpy()
    reference = np.linalg.lstsq(columns, (rows @ weight.flatten(1).t()).numpy(), rcond=None)[0].T
    refitted = model[0].weight.detach()[:, kept].flatten(1).numpy()
    assert np.allclose(refitted, reference, atol=1e-5)
    assert not model[0].weight.detach()[:, [c for c in range(4) if c not in kept]].any()


def test_reconstruction_beats_plain_masking():
    torch.manual_seed(1)
    model, plain = ConvNet().eval(), None
    x = torch.randn(16, 3, 6, 6)
    inputs = model.relu1(model.bn1(model.conv1(x))).detach()
    target = model.conv2(inputs).detach()
    plain = copy.deepcopy(model.conv2)
    masks = prune(FMReconstructionChannelPruner("p", "Channels", 0.25, "conv2.weight", n_points_per_fm=20), model, x)
    with torch.no_grad():
        plain.weight.mul_(masks["conv2.weight"])
    assert (model.conv2(inputs) - target).square().mean() < 0.8 * (plain(inputs) - target).square().mean()


def test_a_second_decision_changes_only_what_is_still_alive():
    torch.manual_seed(0)
    model = ConvNet()
    x = torch.randn(8, 3, 6, 6)
    pruner = FMReconstructionChannelPruner("p", "Channels", 0.5, "conv2.weight")
    ctx = context(model, epoch=1)
    with pruner.observing(model.eval()):
        model(x)
    decide(pruner, model, ctx)
    pruner.update_weights_(ctx)
    ctx.masks.project_()
    once = model.conv2.weight.detach().clone()
    decide(pruner, model, ctx)
    pruner.update_weights_(ctx)
    assert torch.equal(model.conv2.weight, once)


def test_replicas_take_the_fit_of_rank_0(monkeypatch):
    model = ConvNet()
    pruner = FMReconstructionChannelPruner("p", "Channels", 0.5, "conv2.weight")
    rank_0 = torch.randn(8, 4, 3, 3)
    monkeypatch.setattr(fm_reconstruction, "broadcast_masks", lambda tensors: dict.fromkeys(tensors, rank_0))
    masks = prune(pruner, model, torch.randn(4, 3, 6, 6))
    assert torch.equal(model.conv2.weight, rank_0 * masks["conv2.weight"])


def test_too_few_samples_are_logged(caplog):
    model = nn.Sequential(nn.Conv2d(4, 2, 3))
    pruner = FMReconstructionChannelPruner("p", "Channels", 0.25, "0.weight", max_samples=9)
    with caplog.at_level(logging.WARNING):
        prune(pruner, model, torch.randn(2, 4, 6, 6))
    assert "9 samples for the 27 weights of each filter" in caplog.text
    assert torch.isfinite(model[0].weight).all()


def test_sampling_leaves_the_global_generator_alone_and_resumes():
    model = ConvNet().eval()
    x = torch.randn(2, 3, 6, 6)
    pruner = FMReconstructionChannelPruner("p", "Channels", 0.5, "conv2.weight")
    pruner.bind(ParameterIndex(model))
    state = torch.get_rng_state()
    pruner.start_observing(context(model))
    model(x)
    assert torch.equal(state, torch.get_rng_state())
    resumed = FMReconstructionChannelPruner("p", "Channels", 0.5, "conv2.weight")
    resumed.bind(ParameterIndex(model))
    resumed.load_state_dict(copy.deepcopy(pruner.state_dict()))
    pruner.stop_observing()
    continued = FMReconstructionChannelPruner("p", "Channels", 0.5, "conv2.weight")
    with continued.observing(model):
        model(x)
        model(x)
    resumed.start_observing(context(model))
    model(x)
    resumed.stop_observing()
    saved = [p.state_dict()["finished"]["conv2.weight"]["store"]["rows"] for p in (resumed, continued)]
    assert torch.equal(*saved) and len(saved[0]) == 40


def test_by_a_schedule_from_training_alone():
    torch.manual_seed(0)
    model = ConvNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler = CompressionScheduler(model)
    pruner = FMReconstructionChannelPruner("p", "Channels", 0.5, ["conv2.weight"])
    scheduler.add_policy(PruningPolicy(pruner, None), epochs=[1])
    for epoch in range(2):
        scheduler.on_epoch_begin(epoch, optimizer)
        scheduler.on_minibatch_begin(epoch, 0, 1, optimizer)
        loss = model(torch.randn(8, 3, 6, 6)).square().mean()
        loss = scheduler.before_backward_pass(epoch, 0, 1, loss, optimizer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.on_minibatch_end(epoch, 0, 1, optimizer)
        scheduler.on_epoch_end(epoch, optimizer)
    assert len(kept_channels(model.conv2.weight.detach())) == 2


def test_direct_call_refits_too():
    model = nn.Sequential(nn.Conv2d(2, 1, 1, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([3.0, 1.0]).reshape(1, 2, 1, 1))
    x = torch.randn(4, 1, 5, 5)
    pruner = FMReconstructionChannelPruner("p", "Channels", 0.5, "0.weight")
    with pruner.observing(model):
        model(torch.cat([x, 2 * x], dim=1))
    masks = create_model_masks_dict(model)
    pruner.set_param_mask(model[0].weight, "0.weight", masks, {"model": model})
    masks["0.weight"].apply_mask(model[0].weight)
    assert model[0].weight.flatten().tolist() == pytest.approx([5.0, 0.0], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"group_type": "Filters"}, ("group_type",)),
        ({"n_points_per_fm": 0}, ("n_points_per_fm",)),
        ({"max_samples": 1.5}, ("max_samples",)),
        ({"magnitude_fn": "l7"}, ("magnitude_fn",)),
    ],
)
def test_arguments_are_checked(arguments, argument):
    with pytest.raises(ArgumentError) as caught:
        FMReconstructionChannelPruner("p", **{"desired_sparsity": 0.5, "weights": "conv2.weight", **arguments})
    assert caught.value.argument == argument


def test_layers_it_cannot_refit_and_missing_observations():
    model = nn.ModuleDict({"grouped": nn.Conv2d(4, 4, 3, groups=2), "rnn": nn.LSTM(3, 4), "conv": nn.Conv2d(4, 4, 3)})
    parameters = ParameterIndex(model)
    for target in ("grouped.weight", "rnn.weight_ih_l0"):
        pruner = FMReconstructionChannelPruner("p", "Channels", 0.5, [target])
        pruner.bind(parameters)
        with pytest.raises(TargetError) as caught:
            pruner.check(PolicyWindow.from_range(1, 2), parameters)
        assert caught.value.argument == ("weights", 0)
    with pytest.raises(CalibrationError):
        decide(FMReconstructionChannelPruner("p", "Channels", 0.5, "conv.weight"), model, epoch=1)
