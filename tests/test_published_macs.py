"""The sizes Distiller published for thinned models come out exactly, without training.

Schedules of the published shape run on random weights: their masks and the removal follow from the levels alone. Only
those that prune residual-coupled layers one by one need ``compat: distiller``: there every layer chooses other filters,
and the first one decides for the layers behind.
"""

from __future__ import annotations

import pytest
import torch

from distiller_ng.config import dict_config
from distiller_ng.models import create_model
from distiller_ng.reports.compute import layer_costs

STEPS = 2


def agp(final, weights, **more):
    return {
        "class": "L1RankedStructureParameterPruner_AGP",
        "initial_sparsity": 0.1,
        "final_sparsity": final,
        "group_type": "Filters",
        "weights": weights,
        **more,
    }


def ranked(level, weights):
    return {
        "class": "L1RankedStructureParameterPruner",
        "group_type": "Filters",
        "desired_sparsity": level,
        "weights": weights,
    }


def conv1(layer, *blocks):
    return [f"module.layer{layer}.{block}.conv1.weight" for block in blocks]


def outputs(layer):
    """Every convolution whose output is added to the others of its stage."""
    return [f"module.layer{layer}.{block}.conv2.weight" for block in range(3)] + [
        f"module.layer{layer}.0.downsample.0.weight"
    ]


RESNET20 = {
    # layer2's coupled outputs are ranked one by one
    "agp": (30_655_104, True, {"low": agp(0.5, outputs(2) + conv1(2, 0, 1, 2))}),
    "agp_bn_fold": (30_655_104, True, {"low": agp(0.5, outputs(2) + conv1(2, 0, 1, 2))}),
    "agp_2": (30_638_720, False, {"low": agp(0.4, conv1(1, 0, 1, 2) + conv1(2, 0, 1, 2))}),
    # layer2 one by one, layer3 by its leader
    "agp_4": (
        24_723_776,
        True,
        {
            "low": agp(0.5, outputs(2) + conv1(2, 0, 1) + conv1(3, 1)),
            "group": agp(0.5, outputs(3), group_dependency="Leader"),
        },
    ),
}
RESNET56 = {
    "filter_rank": (
        78_856_832,
        {
            "filter_pruner_60": ranked(0.6, conv1(1, *range(9))),
            "filter_pruner_50": ranked(0.5, conv1(2, 1, 2, 3, 4, 6, 7)),
            "filter_pruner_10": ranked(0.1, conv1(3, 1)),
            "filter_pruner_30": ranked(0.3, conv1(3, 2, 3, 5, 6, 7, 8)),
        },
    ),
    "filter_rank_2": (
        67_797_632,
        {
            "filter_pruner_70": ranked(0.7, conv1(1, *range(9))),
            "filter_pruner_60": ranked(0.6, conv1(2, 1, 2, 3, 4, 6, 7)),
            "filter_pruner_20": ranked(0.2, conv1(3, 1)),
            "filter_pruner_40": ranked(0.4, conv1(3, 2, 3, 5, 6, 7, 8)),
        },
    ),
}


def macs(model):
    return sum(cost.macs for cost in layer_costs(model, torch.zeros(1, 3, 32, 32)))


def schedule(pruners, when, remover_epoch, compat, args=None):
    target = {"args": args} if args else {}
    policies = [{"pruner": {"instance_name": name, **target}, **when} for name in pruners]
    policies.append({"extension": {"instance_name": "net_thinner"}, "epochs": [remover_epoch]})
    remover = {
        "class": "FilterRemover",
        "thinning_func_str": "remove_filters",
        "arch": "resnet20_cifar",
        "dataset": "cifar10",
    }
    file = {"version": 1, "pruners": pruners, "extensions": {"net_thinner": remover}, "policies": policies}
    return {**file, "compat": "distiller"} if compat else file


def run(model, file, epochs):
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    scheduler = dict_config(model, optimizer, file)
    for epoch in epochs:
        scheduler.on_epoch_begin(epoch)
        for step in range(STEPS):
            scheduler.on_minibatch_begin(epoch, step, STEPS, optimizer)
            loss = scheduler.before_backward_pass(epoch, step, STEPS, model(torch.randn(2, 3, 32, 32)).pow(2).mean())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.on_minibatch_end(epoch, step, STEPS, optimizer)
        scheduler.on_epoch_end(epoch)
    return scheduler


@pytest.mark.parametrize("name", RESNET20)
def test_resnet20(name):
    expected, needs_compat, pruners = RESNET20[name]
    model = create_model(False, "cifar10", "resnet20_cifar", parallel=False)
    assert macs(model) == 40_813_184
    when = {"starting_epoch": 0, "ending_epoch": 30, "frequency": 2}
    args = {"fold_batchnorm": True} if name == "agp_bn_fold" else None
    run(model, schedule(pruners, when, 30, needs_compat, args), (0, 2, 28, 30))
    assert macs(model) == expected


@pytest.mark.parametrize("name", RESNET56)
def test_resnet56(name):
    expected, pruners = RESNET56[name]
    model = create_model(False, "cifar10", "resnet56_cifar", parallel=False)
    assert macs(model) == 125_747_840
    run(model, schedule(pruners, {"epochs": [0]}, 0, compat=False), (0,))
    assert macs(model) == expected


def test_coupled_layers_are_decided_once_without_the_switch():
    """Without ``compat`` the coupled outputs of a stage lose the same filters, as many as were asked for."""
    expected, _, pruners = RESNET20["agp"]
    model = create_model(False, "cifar10", "resnet20_cifar", parallel=False)
    when = {"starting_epoch": 0, "ending_epoch": 30, "frequency": 2}
    scheduler = run(model, schedule(pruners, when, 30, compat=False), (0, 2, 28, 30))
    assert macs(model) == expected
    assert scheduler.schedule[-1][0].report.jump < 1e-5
