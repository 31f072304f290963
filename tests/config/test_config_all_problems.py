"""All range errors of one component, of one policy's arguments and of one window are reported, and nothing else."""

from __future__ import annotations

import pytest
from config_helpers import VALID

PRUNER = """\
pruners:
  p:
    class: {cls}
{arguments}
policies:
  - pruner: {{instance_name: p}}
    epochs: [0]
"""
RANKER = "L1RankedStructureParameterPruner"
COMPONENTS = [
    # class, arguments line by line (the first is line 4), the arguments that are reported (None: the definition)
    (RANKER, ["group_type: Filters", "desired_sparsity: 1.5", "group_size: -3", "noise: 7"], {5, 6, 7}),
    (RANKER, ["group_type: Filterz", "desired_sparsity: 1.5", "weights: [conv1.weight]"], {4, 5}),
    (RANKER, ["group_type: Filters", "desired_sparsity: 1.5", "group_size: x", "weights: [conv1.weight]"], {5, 6}),
    (
        RANKER,
        ["group_type: Filters", "desired_sparsity: 2", "scope: all", "pattern: '4:2'", "weights: []"],
        {5, 6, 7, 8},
    ),
    ("AutomatedGradualPruner", ["initial_sparsity: -1", "final_sparsity: 3", "weights: [fc.weight]"], {4, 5}),
    ("AutomatedGradualPruner", ["initial_sparsity: -1", "final_sparsity: 0.2", "weights: [fc.weight]"], {4}),
    ("AutomatedGradualPruner", ["initial_sparsity: low", "final_sparsity: 3", "weights: []"], {4, 5, 6}),
    (
        "SplicingPruner",
        ["sensitivities: {fc.weight: 1}", "low_thresh_mult: -2", "hi_thresh_mult: -5", "sensitivity_multiplier: -3"],
        {5, 6, 7},
    ),
    ("SplicingPruner", ["sensitivities: {fc.weight: 1}", "low_thresh_mult: -2", "hi_thresh_mult: 0.3"], {5}),
    ("SplicingPruner", ["sensitivities: {fc.weight: 1}", "low_thresh_mult: 2", "hi_thresh_mult: -0.3"], {6}),
    ("MagnitudeParameterPruner", ["thresholds:", "  '*': -1", "  fc.weight: 0.1"], {5}),
    ("MagnitudeParameterPruner", ["thresholds:", "  '*': -1", "  fc.weight: -0.1", "scope: all"], {5, 6, 7}),
    (
        "AutomatedGradualPruner",
        ["schedule:", "  class: AGP", "  initial_sparsity: -1", "  final_sparsity: 3", "weights: []"],
        {6, 7, 8},
    ),
    (
        "AutomatedGradualPruner",
        ["schedule:", "  class: AGP", "  initial_sparsity: x", "  final_sparsity: 3", "weights: [fc.weight]"],
        {6, 7},
    ),
    ("SparsityLevelParameterPruner", ["levels:", "  fc.weight: 1.5", "  conv1.weight: -2", "scope: all"], {5, 6, 7}),
    ("BaiduRNNPruner", ["q: -1", "ramp_epoch_offset: -2", "ramp_slope_mult: x", "weights: [fc.weight]"], {4, 5, 6}),
]


@pytest.mark.parametrize(("cls", "arguments", "lines"), COMPONENTS, ids=[str(i) for i in range(len(COMPONENTS))])
def test_all_of_a_component(load, cls, arguments, lines):
    text = PRUNER.format(cls=cls, arguments="\n".join(f"    {line}" for line in arguments))
    loaded = load(text)
    expected = []
    for number, line in enumerate(arguments, start=4):
        name = line.strip().split(":")[0].strip("'\"")
        if line.startswith("  "):
            outer = arguments[0].rstrip(":")
            name = f"{outer}.{name}" if name.isidentifier() else f"{outer}[{name!r}]"
        expected.append((number, f"pruners.p.{name}"))
    assert [(p.line, p.path) for p in loaded.problems] == [e for e in expected if e[0] in lines]


WINDOWS = [
    ("starting_epoch: -1\n    ending_epoch: -5\n    frequency: 0", {10, 11, 12}),
    ("starting_epoch: -1\n    ending_epoch: 5\n    frequency: 0", {10, 12}),
    ("starting_epoch: -1\n    ending_epoch: 5\n    frequency: 3", {10}),
    ("starting_epoch: 9\n    ending_epoch: 5\n    frequency: 7", {11}),
    ("starting_epoch: x\n    ending_epoch: -5\n    frequency: 0", {10, 11, 12}),
    ("starting_epoch: 3\n    ending_epoch: x\n    frequency: 100", {11}),
    ("starting_epoch: 3000000\n    ending_epoch: 4\n    frequency: 2", {10}),
]


@pytest.mark.parametrize(("times", "lines"), WINDOWS)
def test_all_of_a_window(load, times, lines):
    loaded = load(VALID.replace("starting_epoch: 0\n    ending_epoch: 5\n    frequency: 2", times))
    names = {10: "starting_epoch", 11: "ending_epoch", 12: "frequency"}
    assert [(p.line, p.path) for p in loaded.problems] == [(n, f"policies[0].{names[n]}") for n in sorted(lines)]


@pytest.mark.parametrize(
    ("epochs", "columns"), [("[-1, -2]", {14, 18}), ("[-1, 3, -2]", {14, 21}), ("[a, 3, -2]", {14, 20})]
)
def test_all_of_a_list_of_epochs(load, epochs, columns):
    loaded = load(VALID.replace("starting_epoch: 0\n    ending_epoch: 5\n    frequency: 2", f"epochs: {epochs}"))
    assert {p.column for p in loaded.problems} == columns and len(loaded.problems) == len(columns)
    assert all(p.path.startswith("policies[0].epochs[") for p in loaded.problems)


ARGS = [
    (
        "{levels: 3, mini_batch_pruning_frequency: -3, mask_gradients: true, keep_mask: 5}",
        ["levels", "mini_batch_pruning_frequency", "mask_gradients", "keep_mask"],
    ),
    ("{levels: {fc.weight: 2, conv1.weight: -1}}", ["levels['fc.weight']", "levels['conv1.weight']"]),
    ("{mask_gradients: true, mask_on_forward_only: 1}", ["mask_on_forward_only"]),
]


@pytest.mark.parametrize(("args", "names"), ARGS)
def test_all_of_a_policys_arguments(load, args, names):
    loaded = load(VALID.replace("instance_name: fine", f"instance_name: fine, args: {args}"))
    assert [(p.line, p.path) for p in loaded.problems] == [(9, f"policies[0].pruner.args.{name}") for name in names]


def test_arguments_of_a_policy_are_checked_though_its_pruner_is_wrong(load):
    text = VALID.replace("final_sparsity: 0.9", "final_sparsity: 9")
    args = "{mini_batch_pruning_frequency: -3, keep_mask: 5}"
    loaded = load(text.replace("instance_name: fine", f"instance_name: fine, args: {args}"))
    assert [(p.line, p.path) for p in loaded.problems] == [
        (6, "pruners.fine.final_sparsity"),
        (9, "policies[0].pruner.args.mini_batch_pruning_frequency"),
        (9, "policies[0].pruner.args.keep_mask"),
    ]


def test_messages_name_what_the_user_wrote_and_no_stand_in(load):
    loaded = load(
        VALID.replace("starting_epoch: 0", "starting_epoch: -1").replace("ending_epoch: 5", "ending_epoch: -5")
    )
    assert [p.message for p in loaded.problems] == [
        "starting_epoch must be 0 or more, got -1",
        "ending_epoch cannot be -5, whatever the others are",
    ]


def test_many_wrong_entries_are_all_reported(load):
    entries = "\n".join(f"      fc.{at}: -1" for at in range(100))
    loaded = load(f"pruners:\n  p:\n    class: SparsityLevelParameterPruner\n    levels:\n{entries}\n")
    assert {p.line for p in loaded.problems} >= set(range(5, 105))
