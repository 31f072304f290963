"""Early exits: attaching, losses, and which exit answers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from distiller_ng.early_exit import EarlyExitMgr, choose_exits, early_exit_loss, run_with_exits
from distiller_ng.errors import ArgumentError, LifecycleError, TargetError
from distiller_ng.models import create_model
from distiller_ng.modules import BranchPoint


class Counting(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x


def network() -> nn.Sequential:
    torch.manual_seed(0)
    blocks = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    return nn.Sequential(blocks, nn.Linear(4, 4), Counting(), nn.Linear(4, 3))


def with_exits() -> tuple[nn.Sequential, EarlyExitMgr]:
    model, manager = network(), EarlyExitMgr()
    manager.attach_exits(model, [("1", nn.Linear(4, 3)), ("0.0", nn.Linear(4, 3))])
    return model, manager


def test_the_model_returns_what_it_did_and_the_exits_answer_in_the_models_order():
    x = torch.randn(2, 4)
    before = network()(x)
    model, manager = with_exits()
    assert manager.exit_points(model) == ["0.0", "1"]
    assert torch.equal(model(x), before)
    first, second = manager.get_exits_outputs(model)
    assert torch.equal(first, model[0][0].branch_net(model[0][0].branched_module(x)))
    assert torch.equal(second, model[1].output)
    manager.delete_exits_outputs(model)
    with pytest.raises(LifecycleError, match=r"0\.0, 1 have no output"):
        manager.get_exits_outputs(model)


def test_exits_inside_a_module_that_has_one_itself():
    model, manager = network(), EarlyExitMgr()
    manager.attach_exits(model, [("0", nn.Linear(4, 3)), ("0.0", nn.Linear(4, 3))])
    model(torch.randn(2, 4))
    assert len(manager.get_exits_outputs(model)) == 2
    assert isinstance(model[0].branched_module[0], BranchPoint)


def test_copies_have_their_own_exits():
    model, manager = with_exits()
    model(torch.randn(2, 4))
    twin = copy.deepcopy(model)
    assert manager.exit_points(twin) == ["0.0", "1"]
    assert twin[1].output is None


@pytest.mark.parametrize(
    ("exits", "error", "message"),
    [
        ([("0.9", nn.Identity())], TargetError, "no module '0.9'"),
        ([("0", None)], ArgumentError, "must be a module"),
        ([("0", nn.Identity()), ("0", nn.Identity())], ArgumentError, "has an exit already"),
        ([], ArgumentError, "no exits were given"),
    ],
)
def test_mistakes_leave_the_model_as_it_was(exits, error, message):
    model = network()
    with pytest.raises(error, match=message):
        EarlyExitMgr().attach_exits(model, exits)
    assert not any(isinstance(module, BranchPoint) for module in model.modules())


def test_loss_is_the_weighted_sum():
    losses = {0: 1.0, 1: 2.0, 2: 4.0}

    class Lookup(nn.Module):
        def forward(self, output, _target):
            return torch.tensor(losses[int(output)])

    outputs = [torch.tensor(float(one)) for one in losses]
    assert early_exit_loss(outputs, torch.zeros(1), Lookup(), [0.2, 0.3]).item() == pytest.approx(2.8)


@pytest.mark.parametrize(
    ("weights", "message"),
    [([0.1], "2 exits"), ([0.5, 0.5], "less than 1"), ([-0.1, 0.2], "0 or more"), ("ab", "list of numbers")],
)
def test_loss_weights_that_cannot_be(weights, message):
    with pytest.raises(ArgumentError, match=message):
        early_exit_loss([torch.zeros(1, 2)] * 3, torch.zeros(1, dtype=torch.long), nn.CrossEntropyLoss(), weights)


def test_entropy_decides_without_labels():
    first = torch.tensor([[4.0, 0.0], [0.0, 0.0], [-math.inf, 0.0]])
    final = torch.tensor([[0.0, 9.0], [0.0, 9.0], [9.0, 0.0]])
    choice = choose_exits([first, final], [0.2])
    assert choice.exits.tolist() == [0, 1, 0]
    assert choice.logits.argmax(dim=1).tolist() == [0, 1, 1]
    assert choice.fractions() == pytest.approx([2 / 3, 1 / 3])
    assert choose_exits([first, final], [0.09]).exits.tolist() == [1, 1, 0]  # 0.0901 is not below


def test_confidence_decides():
    first = torch.tensor([[4.0, 0.0], [1.0, 0.0]])  # softmax: 0.982, 0.731
    final = torch.zeros(2, 2)
    assert choose_exits([first, final], [0.9], "confidence").exits.tolist() == [0, 1]
    assert choose_exits([first, final], [0.7], "confidence").exits.tolist() == [0, 0]


def test_the_first_sure_exit_answers():
    sure, unsure = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert choose_exits([sure, sure, unsure], [0.1, 0.1]).exits.tolist() == [0]
    assert choose_exits([unsure, sure, unsure], [0.1, 0.1]).exits.tolist() == [1]


@pytest.mark.parametrize("threshold", [0.0, 0.9, 1.0, 1.09, 5.0])
def test_running_with_exits_chooses_as_the_whole_run(threshold):
    model, manager = with_exits()
    model.eval()
    x = torch.randn(32, 4)
    final = model(x)
    whole = choose_exits([*manager.get_exits_outputs(model), final], [threshold, threshold])
    found = run_with_exits(model, x, thresholds=[threshold, threshold])
    assert torch.equal(found.exits, whole.exits)
    assert torch.equal(found.logits, whole.logits)
    assert len(found.fractions()) == 3


def test_what_follows_the_last_exit_needed_is_not_computed():
    model, _ = with_exits()
    model.eval()
    run_with_exits(model, torch.randn(1, 4), thresholds=[9.0, 9.0])
    assert model[2].calls == 0
    run_with_exits(model, torch.randn(1, 4), thresholds=[0.0, 0.0])
    assert model[2].calls == 1
    assert not model[1]._forward_hooks


def test_models_that_return_every_exit_run_to_their_end():
    model = create_model(False, "cifar10", "resnet20_cifar_earlyexit").eval()  # returns [exit, end]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        first, end = model(images)
    assert torch.equal(run_with_exits(model, images, thresholds=[0.0]).logits, end)
    assert torch.equal(run_with_exits(model, images, thresholds=[9.0]).logits, first)


@pytest.mark.parametrize("measure", ["entropy", "confidence"])
def test_logits_that_are_no_numbers_are_never_sure(measure):
    broken, end = torch.tensor([[math.nan, 0.0], [-math.inf, 0.0]]), torch.zeros(2, 2)
    assert choose_exits([broken, end], [0.5], measure).exits.tolist() == [1, 0]  # the second: one class is impossible


def test_mistakes_in_running():
    model, _ = with_exits()
    with pytest.raises(LifecycleError, match="eval"):
        run_with_exits(model, torch.randn(1, 4), thresholds=[1.0, 1.0])
    model.eval()
    with pytest.raises(ArgumentError, match="2 exits"):
        run_with_exits(model, torch.randn(1, 4), thresholds=[1.0])
    with pytest.raises(ArgumentError, match="entropy, confidence"):
        run_with_exits(model, torch.randn(1, 4), thresholds=[1.0, 1.0], measure="loss")
    with pytest.raises(LifecycleError, match="no exits"):
        run_with_exits(network().eval(), torch.randn(1, 4), thresholds=[])
