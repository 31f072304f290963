"""What all regularizers share: targets, checks of reg_regims, Distiller's direct calls."""

import inspect

import pytest
import torch
from torch import nn

from distiller_ng.core.masks import create_model_masks_dict
from distiller_ng.errors import ArgumentError, CheckpointError, ScheduleWarning, TargetError
from distiller_ng.names import ParameterIndex
from distiller_ng.regularization import REGULARIZERS, GroupLassoRegularizer, L1Regularizer, L2Regularizer, Regularizer


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.fc = nn.Linear(6, 2)


@pytest.fixture
def net():
    return Net()


def test_registered_names_and_injected_arguments():
    names = {"L1Regularizer", "L2Regularizer", "GroupLassoRegularizer", "GroupVarianceRegularizer"}
    assert names <= set(REGULARIZERS.names())
    for name in names:
        entry = REGULARIZERS.get(name)
        assert issubclass(entry.cls, Regularizer)
        assert entry.injected == {"name", "model"}
        assert list(inspect.signature(entry.cls).parameters)[:3] == ["name", "model", "reg_regims"]


def test_exact_names_win_over_patterns_and_wrapped_names_resolve(net):
    regims = {"re:conv.*weight": 0.5, "module.conv2.weight": 2, "fc.weight": 0.25}
    regularizer = L1Regularizer("r", net, regims)
    assert regularizer.names == ["conv1.weight", "conv2.weight", "fc.weight"]
    assert [regularizer.regim(name) for name in regularizer.names] == [0.5, 2, 0.25]


def test_unmatched_names_wait_for_the_strict_check(net):
    regularizer = L1Regularizer("r", net, {"conv1.wieght": 0.1, "fc.weight": 0.1})
    assert regularizer.names == ["fc.weight"]
    with pytest.raises(TargetError, match="Did you mean 'conv1.weight'") as caught:
        regularizer.bind(ParameterIndex(net))
    assert caught.value.argument == ("reg_regims", "conv1.wieght")


def test_two_names_of_one_parameter_warn(net):
    with pytest.warns(ScheduleWarning, match="'fc.weight' and 'module.fc.weight' are the same parameter"):
        regularizer = L1Regularizer("r", net, {"fc.weight": 0.1, "module.fc.weight": 0.2})
    assert (regularizer.names, regularizer.regim("fc.weight")) == (["fc.weight"], 0.1)


def test_tied_weights_count_once(net):
    net.decoder = nn.Linear(6, 2)
    net.decoder.weight = net.fc.weight
    regularizer = L2Regularizer("r", net, {"re:(fc|decoder).weight": 0.1})
    assert regularizer.names == ["fc.weight"]


@pytest.mark.parametrize(
    ("regims", "argument", "message"),
    [
        ({}, ("reg_regims",), "must name at least one"),
        ([0.1], ("reg_regims",), "maps parameter names"),
        ({"fc.weight": -0.1}, ("reg_regims", "fc.weight"), "finite number from 0, got -0.1"),
        ({"fc.weight": float("nan")}, ("reg_regims", "fc.weight"), "finite number"),
        ({"fc.weight": True}, ("reg_regims", "fc.weight"), "must be a number from 0, got True"),
        ({"fc.weight": "1e-5"}, ("reg_regims", "fc.weight"), "This is text: write 1e-05 or 1.0e-05"),
        ({"fc.weight": None}, ("reg_regims", "fc.weight"), "must be a number from 0, got None"),
        ({"fc.weight": [0.1, "Row"]}, ("reg_regims", "fc.weight", 1), "unknown group type 'Row'. Did you mean 'Rows'"),
        ({"fc.weight": ["a", "Rows"]}, ("reg_regims", "fc.weight", 0), "must be a number"),
        ({"fc.weight": [0.1]}, ("reg_regims", "fc.weight"), "expected [strength, group type]"),
    ],
)
def test_reg_regims_are_checked_with_their_place(net, regims, argument, message):
    with pytest.raises(ArgumentError) as caught:
        L1Regularizer("r", net, regims)
    assert message in str(caught.value)
    assert caught.value.argument == argument


def test_unknown_criterion(net):
    with pytest.raises(ArgumentError, match="unknown threshold_criteria 'mean_abs'. Did you mean 'Mean_Abs'") as caught:
        GroupLassoRegularizer("r", net, {"fc.weight": [0.1, "Rows"]}, "mean_abs")
    assert caught.value.argument == ("threshold_criteria",)


def test_direct_loss_adds_in_place_as_distillers_does(net):
    regularizer = L1Regularizer("r", net, {"module.fc.weight": 0.5})
    so_far = torch.tensor(3.0)
    total = regularizer.loss(net.fc.weight, "fc.weight", so_far, None)
    assert total.item() == pytest.approx(3 + 0.5 * net.fc.weight.abs().sum().item())
    assert total is so_far
    assert regularizer.loss(net.conv1.weight, "conv1.weight", so_far) is so_far


@pytest.mark.parametrize("target", ["fc.weight", "module.fc.weight", "re:fc.*"])
def test_direct_calls_need_no_model(target):
    regularizer = L1Regularizer("r", None, {target: 0.5}, "Max")
    weight = torch.tensor([[1.0, -0.25]])
    assert regularizer.loss(weight, "module.fc.weight", torch.tensor(0.0)).item() == 0.625
    assert regularizer.names == []  # a policy still binds it to its own model


def test_direct_threshold_masks_once(net):
    with torch.no_grad():
        net.fc.weight.copy_(torch.tensor([[1.0, -0.2, 0.6, 0.0, -0.5, 0.51], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]]))
    regularizer = L1Regularizer("r", net, {"fc.weight": 0.5}, "Max")
    masks = create_model_masks_dict(net)
    regularizer.threshold(net.fc.weight, "fc.weight", masks)
    expected = torch.tensor([[1.0, 0, 0.6, 0, 0, 0.51], [0, 0, 0, 0, 0, 0.6]])
    assert masks["fc.weight"].is_regularization_mask
    masks["fc.weight"].apply_mask(net.fc.weight)
    assert torch.equal(net.fc.weight, expected)
    assert masks["fc.weight"].mask is None


def test_state_is_empty(net):
    regularizer = L2Regularizer("r", net, {"fc.weight": 0.1})
    assert regularizer.state_dict() == {}
    regularizer.load_state_dict({})
    with pytest.raises(CheckpointError, match="'r' keeps no state"):
        regularizer.load_state_dict({"slope": 1})


def test_a_users_own_regularizer_is_one_class(net):
    class Log(Regularizer):
        def penalty(self, name, param):
            return self.regim(name) * torch.log1p(param.abs()).sum()

    regularizer = Log("r", net, {"fc.weight": 2.0})
    net.fc.weight.data.fill_(torch.e - 1)
    assert regularizer.penalty("fc.weight", net.fc.weight).item() == pytest.approx(24.0, rel=1e-6)
    assert regularizer.threshold_mask("fc.weight", net.fc.weight) is None
