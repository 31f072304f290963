"""Schedule shapes with removal extensions run end to end: prune, remove, train on.

The golden files hold the pruning parts; the removers are added here. Files whose coupled layers are ranked one by one
need ``compat: distiller``.
"""

from __future__ import annotations

import warnings

import pytest
import torch
import yaml
from golden_models import SCHEDULES, builder, example_inputs

from distiller_ng.config import dict_config
from distiller_ng.errors import ScheduleWarning
from distiller_ng.models import create_model

STEPS = 2
FILTERS, CHANNELS = "remove_filters", "remove_channels"
# file: (class, function, epochs of removal, epochs to run, whether something must go)
REMOVALS = {
    "resnet20_filters_agp": ("FilterRemover", FILTERS, [30], [0, 2, 28, 30], True),
    "resnet20_filters_agp_2": ("FilterRemover", FILTERS, [22], [0, 2, 18, 20, 22, 24], True),
    "resnet20_filters_agp_3": ("FilterRemover", FILTERS, [32], [0, 2, 28, 30, 32, 34], True),
    "resnet20_filters_agp_4": ("FilterRemover", FILTERS, [32], [0, 2, 28, 30, 32], True),
    "resnet20_filters_bn_fold_agp": ("FilterRemover", FILTERS, [30], [0, 2, 28, 30], True),
    "resnet20_gss_channels": ("ChannelRemover", CHANNELS, [179], [0, 179], False),
    "resnet20_ssl_channels_training": ("ChannelRemover", CHANNELS, [179], [0, 179], False),
    "resnet20_ssl_filters_training": ("FilterRemover", FILTERS, [179], [0, 179], False),
    "resnet56_filter_rank": ("FilterRemover", FILTERS, [0], [0, 1], True),
    "resnet56_filter_rank_2": ("FilterRemover", FILTERS, [0], [0, 1], True),
    "resnet56_channel_rank": ("StructureRemover", CHANNELS, [0], [0, 1], True),
    "resnet56_apoz": ("FilterRemover", FILTERS, [20], [0, 1, 2, 3, 18, 19, 20], True),
    "simplenet_mnist_pruning": ("FilterRemover", FILTERS, [2], [0, 1, 2], True),
    "vgg16_cifar_ssl_channels_training": ("ChannelRemover", CHANNELS, [0], [0], False),
}
SLOW = {
    "vgg19_filter_rank": ("FilterRemover", FILTERS, [0, 1, 4, 5], [0, 1], True),
    "resnet50_filters_agp": ("FilterRemover", FILTERS, [31], [0, 1, 29, 31], True),
    "resnet50_apoz_agp": ("FilterRemover", FILTERS, [31], [0, 1, 2, 29, 31], True),
}
CASES = [*REMOVALS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


def network(name: str) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """The model and inputs; a connected VGG-19 instead of the loading tests' toy."""
    if name.startswith("vgg19"):
        return create_model(False, "imagenet", "vgg19"), (torch.randn(1, 3, 224, 224),)
    if name.startswith("simplenet_mnist"):
        return builder(name)(), (torch.randn(1, 1, 28, 28),)
    return builder(name)(), example_inputs(name)


def with_removal(name: str) -> dict:
    kind, function, epochs, _, _ = {**REMOVALS, **SLOW}[name]
    content = yaml.safe_load((SCHEDULES / f"{name}.yaml").read_text())
    content["compat"] = "distiller"
    content["extensions"] = {"net_thinner": {"class": kind, "thinning_func_str": function, "arch": "x"}}
    content["policies"].append({"extension": {"instance_name": "net_thinner"}, "epochs": epochs})
    return content


@pytest.mark.parametrize("name", CASES)
def test_prune_remove_train(name):
    _, _, _, epochs, shrinks = {**REMOVALS, **SLOW}[name]
    torch.manual_seed(0)
    model, inputs = network(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        scheduler = dict_config(model, optimizer, with_removal(name), example_inputs=inputs)
    before = sum(p.numel() for p in model.parameters())
    for epoch in epochs:
        scheduler.on_epoch_begin(epoch, optimizer)
        for step in range(STEPS):
            scheduler.on_minibatch_begin(epoch, step, STEPS, optimizer)
            loss = model(*inputs).square().mean()
            loss = scheduler.before_backward_pass(epoch, step, STEPS, loss, optimizer)
            optimizer.zero_grad()
            loss.backward()
            scheduler.before_parameter_optimization(epoch, step, STEPS, optimizer)
            optimizer.step()
            scheduler.on_minibatch_end(epoch, step, STEPS, optimizer)
        scheduler.on_epoch_end(epoch, optimizer, metrics={"min": 1.0, "max": 1.0})
    after = sum(p.numel() for p in model.parameters())
    assert after < before if shrinks else after == before
    assert torch.isfinite(model.eval()(*inputs)).all()
    for parameter, state in optimizer.state.items():
        assert state["momentum_buffer"].shape == parameter.shape
    for parameter_name, masker in scheduler.masks.items():
        assert masker.mask is None or masker.mask.shape == scheduler.parameters[parameter_name].shape
