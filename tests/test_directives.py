"""Frozen parameters and dropout."""

import pytest
import torch
from torch import nn

from distiller_ng.directives import adjust_dropout, freeze_all, freeze_training
from distiller_ng.errors import ArgumentError, TargetError


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 1), nn.AlphaDropout(0.3))


def frozen(net):
    return [name for name, parameter in net.named_parameters() if not parameter.requires_grad]


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("0.weight", ["0.weight"]),
        ("0", ["0.weight", "0.bias"]),
        (["module.2.weight", "0.bias"], ["0.bias", "2.weight"]),
        (r"re:.*\.weight", ["0.weight", "2.weight"]),
        ("__ALL_PRUNABLE__", ["0.weight", "2.weight"]),
    ],
)
def test_b12_freeze_training(which, expected):
    net = model()
    freeze_training(net, which)
    assert frozen(net) == expected
    freeze_training(net, which, freeze=False)
    assert frozen(net) == []


def test_nothing_is_frozen_when_a_name_is_wrong():
    net = model()
    with pytest.raises(TargetError, match="matches no parameter") as error:
        freeze_training(net, ["0.weight", "2.wieght"])
    assert frozen(net) == [] and error.value.argument == ("which_params", 1)


def test_frozen_parameters_stay_put_under_momentum():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    net(torch.ones(1, 2)).sum().backward()
    freeze_training(net, "0")
    before = net[0].weight.clone()
    optimizer.step()
    assert torch.equal(net[0].weight, before)


def test_freeze_all():
    net = model()
    freeze_all(net)
    assert len(frozen(net)) == 4
    freeze_all(net, freeze=False)
    assert frozen(net) == []


def test_adjust_dropout():
    net = model()
    adjust_dropout(net, 0.1)
    assert net[1].p == net[3].p == 0.1
    net.apply(lambda module: adjust_dropout(module, 0.2))
    assert net[1].p == 0.2
    with pytest.raises(ArgumentError, match="between 0 and 1"):
        adjust_dropout(net, 1.5)
