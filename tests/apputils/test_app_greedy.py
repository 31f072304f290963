"""Greedy filter pruning: the layer that hurts least goes first, to the target; records; the command line."""

import argparse
import csv

import pytest
import torch
from torch import nn

from distiller_ng.apputils import load_checkpoint
from distiller_ng.apputils.classifier_args import init_classifier_compression_arg_parser
from distiller_ng.apputils.classifier_greedy import add_greedy_arguments, greedy
from distiller_ng.apputils.greedy_filter_pruning import GreedyFilterPruner, greedy_pruner
from distiller_ng.errors import ArgumentError, DistillerError, GraphError
from distiller_ng.models import create_model

INPUTS = torch.zeros(1, 2, 6, 6)


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(2, 10, 3, padding=1)
        self.bn = nn.BatchNorm2d(10)
        self.b = nn.Conv2d(10, 10, 3, padding=1)
        self.fc = nn.Linear(10, 3)

    def forward(self, x):
        return self.fc(self.b(self.bn(self.a(x)).relu()).relu().mean(dim=(2, 3)))


def prefers_b(model):
    """Losing filters of ``a`` costs accuracy, losing those of ``b`` nothing."""
    return 90.0 - 5 * (10 - model.a.out_channels), 99.0, 0.5


def test_the_layer_that_hurts_least_goes_first_and_the_target_is_reached():
    model = TwoLayers()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruner = GreedyFilterPruner(model, None, 0.2, 0.5, prefers_b, example_inputs=INPUTS)
    small = pruner.run()
    layers = [step.layer for step in pruner.history]
    assert layers == ["b.weight"] * 4 + ["a.weight"]  # until one filter is left there
    assert [step.removed for step in pruner.history] == [5, 2, 1, 1, 5]
    assert (small.a.out_channels, small.b.out_channels) == (5, 1)
    densities = [step.compute_density for step in pruner.history]
    assert densities == sorted(densities, reverse=True) and densities[-1] <= 0.2 < densities[-2]
    macs = 36 * 9 * (2 * small.a.out_channels + small.a.out_channels * 1) + 3
    assert pruner.history[-1].macs == macs
    assert densities[-1] == pytest.approx(macs / (36 * 9 * (2 * 10 + 10 * 10) + 30))
    assert small(torch.randn(2, 2, 6, 6)).shape == (2, 3)
    assert model.b.out_channels == 10
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_ties_are_broken_by_top5_and_then_by_the_loss():
    def test_fn(model):
        return 90.0, 99.0, 1.0 if model.a.out_channels == 10 else 0.5

    pruner = GreedyFilterPruner(TwoLayers(), None, 0.95, 0.1, test_fn, example_inputs=INPUTS)
    pruner.run()
    assert pruner.history[0].layer == "a.weight"


def test_the_least_important_filters_of_a_layer_go():
    model = TwoLayers()
    with torch.no_grad():
        for index in (3, 7):
            model.b.weight[index] *= 1e-3
            model.b.bias[index] = 0
            model.fc.weight[:, index] = 0
    small = greedy_pruner(model, None, 0.9, 0.2, prefers_b, example_inputs=INPUTS)
    kept = [index for index in range(10) if index not in (3, 7)]
    assert torch.equal(small.b.weight, model.b.weight[kept])


class Residual(TwoLayers):
    def forward(self, x):
        x = self.bn(self.a(x)).relu()
        return self.fc((x + self.b(x)).relu().mean(dim=(2, 3)))


def test_layers_whose_outputs_are_added_are_one():
    tried = []

    def test_fn(model):
        tried.append(model)
        return 50.0, 90.0, 1.0

    pruner = GreedyFilterPruner(Residual(), None, 0.5, 0.4, test_fn, example_inputs=INPUTS)
    small = pruner.run()
    assert len(tried) == len(pruner.history) == 1
    assert small.a.out_channels == small.b.in_channels == small.b.out_channels == small.fc.in_features == 6


def train_fn(counts):
    def train(model, compression_scheduler, optimizer, epoch):
        counts.append(epoch)
        assert any(group["lr"] == 0.01 for group in optimizer.param_groups)
        compression_scheduler.on_minibatch_begin(epoch, 0, 1, optimizer)
        optimizer.zero_grad()
        model(torch.randn(2, 2, 6, 6)).square().mean().backward()
        optimizer.step()
        compression_scheduler.on_minibatch_end(epoch, 0, 1, optimizer)

    return train


@pytest.mark.parametrize(
    ("policy", "epochs"), [("constant", [4, 4, 4, 4, 4]), ("linear-grow", [1, 1, 2, 3, 3])], ids=["constant", "grow"]
)
def test_trials_are_fine_tuned_by_the_policy(policy, epochs):
    counts = []
    args = argparse.Namespace(lr=0.01, greedy_ft_epochs=4, greedy_finetuning_policy=policy)
    pruner = GreedyFilterPruner(TwoLayers(), args, 0.5, 0.2, prefers_b, train_fn(counts), example_inputs=INPUTS)
    pruner.run()
    assert [step.removed for step in pruner.history] == [2, 1, 1, 1, 1]
    assert len(counts) == 2 * sum(epochs)  # two layers are tried in each step


def test_trials_are_zeroed_before_they_are_cut(caplog):
    greedy_pruner(TwoLayers(), None, 0.9, 0.1, prefers_b, example_inputs=INPUTS)
    assert "thinning changed the model's outputs" not in caplog.text


def test_a_trial_that_fails_is_skipped_and_the_search_ends_where_nothing_can_go(caplog):
    def test_fn(model):
        if model.a.out_channels < 10:
            raise DistillerError("the loss became nan")
        return 90.0, 99.0, 0.5

    pruner = GreedyFilterPruner(TwoLayers(), None, 0.05, 0.5, test_fn, example_inputs=INPUTS)
    small = pruner.run()
    assert small.a.out_channels == 10 and small.b.out_channels == 1
    assert "greedy pruning stops at" in caplog.text and "the loss became nan" in caplog.text


def test_widths_are_rounded():
    small = greedy_pruner(TwoLayers(), None, 0.5, 0.1, prefers_b, example_inputs=INPUTS, round_to=4)
    assert small.a.out_channels in (4, 8, 10) and small.b.out_channels == 4


def test_every_step_is_recorded(tmp_path):
    model = create_model(False, "digits", "digits_cnn")
    args = argparse.Namespace(arch="digits_cnn", dataset="digits")
    pruner = GreedyFilterPruner(model, args, 0.8, 0.25, lambda model: (50.0, 90.0, 1.0), output_dir=tmp_path)
    small = pruner.run()
    with open(tmp_path / "greedy.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["compute_density"]) for row in rows] == [step.compute_density for step in pruner.history]
    assert rows[0]["iteration"] == "1" and rows[-1]["layer"] == pruner.history[-1].layer
    files = sorted(path.name for path in tmp_path.glob("greedy__*"))
    assert len(files) == len(rows) and files[0].startswith("greedy__001__")
    again = create_model(False, "digits", "digits_cnn")
    load_checkpoint(again, str(tmp_path / files[-1]))
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ({"target": 0}, "fraction_to_prune"),
        ({"target": 1.5}, "fraction_to_prune"),
        ({"step": 0.0}, "pruning_step"),
        ({"step": True}, "pruning_step"),
        ({"args": argparse.Namespace(greedy_finetuning_policy="exponential")}, "greedy_finetuning_policy"),
        ({"round_to": 0}, "round_to"),
    ],
    ids=str,
)
def test_mistakes_are_typed(arguments, place):
    given = {"target": 0.5, "step": 0.1, "args": None, "round_to": 1, **arguments}
    with pytest.raises(ArgumentError) as caught:
        GreedyFilterPruner(
            TwoLayers(),
            given["args"],
            given["target"],
            given["step"],
            prefers_b,
            example_inputs=INPUTS,
            round_to=given["round_to"],
        )
    assert caught.value.argument == (place,)


def test_without_inputs_or_macs_the_error_says_so():
    with pytest.raises(ArgumentError, match="example_inputs"):
        GreedyFilterPruner(TwoLayers(), None, 0.5, 0.1, prefers_b)
    with pytest.raises(GraphError, match="no multiply-accumulates"):
        greedy_pruner(nn.ReLU(), None, 0.5, 0.1, prefers_b, example_inputs=INPUTS)


def parsed(*arguments):
    parser = init_classifier_compression_arg_parser()
    add_greedy_arguments(parser)
    return parser.parse_args(arguments)


def test_the_flags_are_distillers():
    args = parsed("--greedy", "--greedy-target-density=0.5", "--greedy-finetuning-policy", "linear-grow")
    assert args.greedy and args.greedy_target_density == 0.5 and args.greedy_finetuning_policy == "linear-grow"
    assert parsed().greedy_pruning_step == 0.1 and parsed().greedy_ft_epochs == 1 and not parsed().greedy
    for wrong in (("--greedy-ft-epochs", "-1"), ("--greedy-target-density", "1.2"), ("--greedy-pruning-step", "0")):
        with pytest.raises(SystemExit):
            parsed(*wrong)
    with pytest.raises(ArgumentError, match="--greedy-target-density"):
        greedy(TwoLayers(), nn.CrossEntropyLoss(), None, parsed("--greedy"))
