"""The application with a model, loaders, loss and optimizer that are handed in; what exits are worth."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distiller_ng.apputils.classifier_batches import check_labels, loss_of, one_line, unpacked
from distiller_ng.apputils.classifier_exits import ExitsMeter, OutputReader, training_loss
from distiller_ng.apputils.classifier_task import Loaders, PartOf, Task, first_inputs
from distiller_ng.apputils.exit_costs import ExitCosts, exit_costs
from distiller_ng.apputils.image_classifier import ClassifierCompressor
from distiller_ng.early_exit import EarlyExitMgr
from distiller_ng.errors import ArgumentError, DistillerError


class Two(nn.Module):
    """Takes two inputs, by position or by name."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, left, right):
        return self.fc(left + right)


def batches(make):
    torch.manual_seed(0)
    return [(make(), torch.tensor([0, 1, 2, 0])) for _ in range(3)]


def run(model, loader, **task):
    args = ClassifierCompressor.mock_args()
    args.dataset, args.epochs, args.print_freq = None, 1, 100
    app = ClassifierCompressor(args, None, task=Task(model=model, loaders=Loaders.of([loader, loader]), **task))
    app.run_training_loop()
    return app


@pytest.mark.parametrize(
    "make",
    [
        lambda: (torch.randn(4, 4), torch.randn(4, 4)),
        lambda: {"left": torch.randn(4, 4), "right": torch.randn(4, 4)},
    ],
)
def test_several_inputs(make):
    model = Two()
    before = model.fc.weight.detach().clone()
    app = run(model, batches(make))
    assert app.model is model and not torch.equal(before, model.fc.weight)
    assert app.args.arch == "Two" and app.test()[0] >= 0
    assert vars(model).keys() == vars(Two()).keys()  # nothing was attached


def test_soft_labels_and_own_parts():
    loader = [(torch.randn(4, 4), torch.eye(3)[[0, 1, 2, 0]]) for _ in range(2)]
    made = []

    def make(model):
        made.append(torch.optim.Adagrad(model.parameters()))
        return made[0]

    def squares(output, target):
        return ((output.softmax(1) - target) ** 2).sum()

    app = run(nn.Linear(4, 3), loader, criterion=squares, make_optimizer=make)
    assert app.optimizer is made[0] and app.results.facts["optimizer"] == "Adagrad"


def test_parts_of_loaders_and_first_inputs():
    assert [len(PartOf([1, 2, 3, 4], share)) for share in (0.1, 0.5, 0.51, 1.0)] == [1, 2, 3, 4]
    assert list(PartOf([1, 2, 3, 4], 0.5)) == [1, 2]
    state = torch.get_rng_state()
    assert first_inputs(torch.utils.data.DataLoader([(torch.zeros(2), 0)] * 4, 4, shuffle=True)).shape == (1, 2)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("batch", [torch.zeros(2), (torch.zeros(2),), ("a", torch.zeros(2)), (torch.zeros(2), [1, 2])])
def test_batches_that_are_none(batch):
    with pytest.raises(ArgumentError, match="test loader"):
        unpacked(batch, "test")


def test_labels():
    output, ce = torch.zeros(3, 4), nn.CrossEntropyLoss()
    check_labels(output, torch.tensor([0, 3, -100]), ce, "here")
    for wrong in ([0, 4, 1], [-1, 0, 0]):
        with pytest.raises(ArgumentError, match="here: a label is (4|-1), but the model has 4 classes, 0 to 3"):
            check_labels(output, torch.tensor(wrong), ce, "here")
    with pytest.raises(ArgumentError, match="2 labels for 3 outputs"):
        check_labels(output, torch.tensor([0, 1]), ce, "here")
    with pytest.raises(DistillerError, match="the loss cannot be computed"):
        loss_of(ce, output, torch.zeros(3, 5))


def test_errors_in_one_line():
    assert one_line(ValueError("a\n  b")) == "ValueError: a b"
    worker = KeyError(
        "Caught KeyError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  x"
    )
    assert "\n" not in one_line(worker)


# -- early exits ---------------------------------------------------------------------------------------------------------


def with_exit():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    EarlyExitMgr().attach_exits(model, [("0", nn.Linear(8, 3))])
    return model


def test_exits_of_ones_own_model():
    model, x = with_exit(), torch.randn(5, 4)
    reader = OutputReader(model)
    outputs = reader(model(x))
    assert [tuple(output.shape) for output in outputs] == [(5, 3), (5, 3)]
    assert model[0].output is None  # no graph is kept
    target, criterion = torch.tensor([0, 1, 2, 0, 1]), nn.CrossEntropyLoss()
    expected = 0.25 * criterion(outputs[0], target) + 0.75 * criterion(outputs[1], target)
    torch.testing.assert_close(training_loss(outputs, target, criterion, [0.25]), expected)
    with pytest.raises(ArgumentError, match="--earlyexit_lossweights 0.3"):
        training_loss(outputs, target, criterion, None)
    with pytest.raises(ArgumentError, match="no exits"):
        training_loss(outputs[:1], target, criterion, [0.25])
    assert exit_costs(model, x[:1]) == ExitCosts((32 + 24, 32 + 24 + 24), 32 + 24)


def test_what_models_may_return():
    reader = OutputReader(nn.Identity())

    class Result:
        logits = torch.zeros(2, 3)

    assert len(reader(Result())) == 1 and len(reader((torch.zeros(2, 3), torch.zeros(2, 3)))) == 2
    for wrong in (None, {"a": 1}, [], [1]):
        with pytest.raises(ArgumentError, match="a classifier returns logits"):
            reader(wrong)
    with pytest.raises(ArgumentError, match="logits of one shape"):
        reader([torch.zeros(2, 3), torch.zeros(2, 4)])


def test_who_answers():
    sure, unsure = [8.0, 0.0], [0.1, 0.0]
    first = torch.tensor([sure, unsure, sure, unsure])
    end = torch.tensor([[0.0, 9.0]] * 4)
    target = torch.tensor([0, 1, 1, 0])
    meter = ExitsMeter([0.3])
    meter.costs = ExitCosts((100, 410), 400)
    answers = meter.add([first, end], target)
    assert answers.argmax(1).tolist() == [0, 1, 0, 1]
    found = meter.statistics()
    rows = [(row.share, row.top1, row.top1_alone, row.macs) for row in found.rows]
    assert rows == [(0.5, 50.0, 50.0, 100), (0.5, 50.0, 50.0, 410)]
    assert (found.top1, found.macs, found.saved) == (50.0, 255.0, pytest.approx(1 - 255 / 400))
    assert "36.3% less than 400 without exits" in str(found)


def test_labels_do_not_decide():
    """The ancestor took an exit where its loss, and so the label, said that it was right."""
    outputs = [torch.tensor([[2.0, 0.0]] * 2), torch.tensor([[0.0, 2.0]] * 2)]
    shares = []
    for target in (torch.tensor([0, 0]), torch.tensor([1, 1])):
        meter = ExitsMeter([0.5])
        meter.add(outputs, target)
        shares.append([row.share for row in meter.statistics().rows])
    assert shares[0] == shares[1] == [1.0, 0.0]
