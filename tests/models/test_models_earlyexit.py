"""Models with early exits: names and sizes, and what their exits cost."""

from __future__ import annotations

import pytest
import torch

from distiller_ng.apputils.exit_costs import exit_costs
from distiller_ng.models import create_model
from distiller_ng.reports.compute import layer_costs


def build(dataset, arch):
    with torch.device("meta"):
        return create_model(False, dataset, arch).eval()


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110, 1202])
def test_cifar_resnets_have_one_exit_with_distillers_names(depth):
    model = build("cifar10", f"resnet{depth}_cifar_earlyexit")
    exits = {name: tuple(p.shape) for name, p in model.named_parameters() if "branch_net" in name}
    assert exits == {"layer1.2.relu2.branch_net.2.weight": (10, 1600), "layer1.2.relu2.branch_net.2.bias": (10,)}
    assert len([name for name, _ in model.named_parameters() if name.startswith("layer1.2.conv")]) == 2
    assert len(model.layer1) == (depth - 2) // 6


def test_resnet50_has_two():
    model = build("imagenet", "resnet50_earlyexit")
    exits = {name: tuple(p.shape) for name, p in model.named_parameters() if "branch_net" in name and p.dim() > 1}
    assert exits == {
        "layer1.2.relu3.branch_net.0.weight": (10, 256, 7, 7),
        "layer1.2.relu3.branch_net.3.weight": (1000, 1960),
        "layer2.3.relu3.branch_net.0.weight": (12, 512, 7, 7),
        "layer2.3.relu3.branch_net.3.weight": (1000, 588),
    }
    assert [tuple(out.shape) for out in model(torch.zeros(2, 3, 224, 224, device="meta"))] == [(2, 1000)] * 3


def test_the_end_is_that_of_the_plain_network():
    plain, model = (
        create_model(False, "digits", "resnet20_cifar"),
        create_model(False, "digits", "resnet20_cifar_earlyexit"),
    )
    state = {
        name.replace("layer1.2.relu2.", "layer1.2.relu2.branched_module."): v for name, v in plain.state_dict().items()
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert len(missing) == 2 and not unexpected
    x = torch.randn(3, 1, 8, 8)
    exit0, final = model.eval()(x)
    assert exit0.shape == (3, 10) and torch.equal(final, plain.eval()(x))
    assert model.layer1[2].relu2.output is not None


def test_costs_of_exits():
    model = build("cifar10", "resnet20_cifar_earlyexit")
    x = torch.zeros(1, 3, 32, 32, device="meta")
    costs = exit_costs(model, x)
    # conv1: 32 * 32 * 16 * 27; six convolutions of 32 * 32 * 16 * 144; the exit's linear layer: 1600 * 10
    first = 442_368 + 6 * 2_359_296 + 16_000
    assert costs.plain == 40_813_184
    assert costs.exits == (first, 40_813_184 + 16_000)
    assert exit_costs(build("cifar10", "resnet20_cifar"), x) is None
    assert sum(cost.macs for cost in layer_costs(model, x)) == costs.exits[-1]
    assert not model.layer1[2].relu2._forward_hooks
