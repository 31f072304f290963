"""Every kind of mistake is reported, all of a file's at once, each where it stands and with what to write instead."""

from __future__ import annotations

import re

import pytest
from config_helpers import HEADER, POLICY, VALID

from distiller_ng.errors import ScheduleError


def test_a_valid_file_has_no_problems_and_no_warnings(load):
    loaded = load(VALID)
    assert loaded.problems == () and loaded.warnings == []
    assert [str(window) for _, window in loaded.scheduler.schedule] == ["epochs 0 to 5, every 2"]


def test_everything_wrong_with_a_file_comes_in_one_error(load):
    loaded = load("""\
        version: 1
        prunners: {}
        pruners:
          fine:
            class: AutomatedGradualPruner
            initial_sparsty: 0.05
            final_sparsity: high
            weights: [conv1.wieght, fc.weight, 're:nothing.*']
          coarse:
            class: SensitivtyPruner
            sensitivities: {fc.weight: 0.5}
        regularizers:
          lasso:
            class: GroupLassoRegularizer
            reg_regims:
              conv1.weight: [0.1, 3d]
              conv2.weight: [-1, Filters]
              conv3.weight: [0.1, Filters]
              fc.weight: [0.1, 2D]
        lr_schedulers:
          decay: {class: ExponentialLR, gama: 0.9}
        policies:
          - pruner: {instance_name: fin}
            starting_epoch: 0
            ending_epoch: 5
            frequencey: 1
          - regularizer: {instance_name: lasso, args: {keepmask: true}}
            epochs: [1]
            starting_epoch: 0
          - lr_scheduler: {instance_name: decay}
            starting_epoch: 0
        """)
    assert loaded.places() == [
        (2, 1, "prunners"),
        (6, 5, "pruners.fine.initial_sparsty"),
        (7, 21, "pruners.fine.final_sparsity"),
        (8, 15, "pruners.fine.weights[0]"),
        (8, 40, "pruners.fine.weights[2]"),
        (10, 12, "pruners.coarse.class"),
        (16, 27, "regularizers.lasso.reg_regims['conv1.weight'][1]"),
        (17, 22, "regularizers.lasso.reg_regims['conv2.weight'][0]"),
        (18, 21, "regularizers.lasso.reg_regims['conv3.weight']"),
        (19, 24, "regularizers.lasso.reg_regims['fc.weight'][1]"),
        (21, 33, "lr_schedulers.decay.gama"),
        (23, 29, "policies[0].pruner.instance_name"),
        (26, 5, "policies[0].frequencey"),
        (27, 48, "policies[1].regularizer.args.keepmask"),
        (28, 5, "policies[1].epochs"),
        (30, 5, "policies[2]"),
    ]
    assert "conv1.weight" in loaded.problems[3].message


def test_each_problem_prints_as_file_line_column_path_message(load):
    loaded = load(VALID.replace("weights", "wieghts"))
    assert str(loaded.the_problem()) == (
        f"{loaded.path}:7:5: pruners.fine.wieghts: AutomatedGradualPruner has no argument 'wieghts'. "
        "Did you mean 'weights'?"
    )


CASES = [
    # what is replaced, by what, where the problem is, what its message says
    ("pruners:", "pruner:", (2, 1, "pruner"), "unknown section 'pruner'. Did you mean 'pruners'?"),
    ("AutomatedGradualPruner", "AutomatedGradualPrunner", (4, 12, "pruners.fine.class"), "Did you mean"),
    ("AutomatedGradualPruner", "L1Regularizer", (4, 12, "pruners.fine.class"), "define it below regularizers"),
    ("AutomatedGradualPruner", "7", (4, 12, "pruners.fine.class"), "class is the name of a class, got 7"),
    ("AutomatedGradualPruner", "[a]", (4, 12, "pruners.fine.class"), "got a list"),
    ("class:", "klass:", (3, 3, "pruners.fine"), "'fine' has no class"),
    ("class:", "name: x\n    class:", (4, 5, "pruners.fine.name"), "name is injected by the library: leave it out"),
    ("final_sparsity: 0.9", "final_sparsity: '0.9'", (6, 21, "pruners.fine.final_sparsity"), "without quotes"),
    (
        "final_sparsity: 0.9",
        "final_sparsity: true",
        (6, 21, "pruners.fine.final_sparsity"),
        "expected a number, got true",
    ),
    ("final_sparsity: 0.9", "final_sparsity: .nan", (6, 21, "pruners.fine.final_sparsity"), "finite number"),
    ("final_sparsity: 0.9", "final_sparsity: 1.5", (6, 21, "pruners.fine.final_sparsity"), "1.5"),
    (
        "final_sparsity: 0.9",
        "final_sparsity: 0.01",
        (6, 21, "pruners.fine.final_sparsity"),
        "must exceed initial_sparsity",
    ),
    ("    final_sparsity: 0.9\n", "", (3, 3, "pruners.fine.final_sparsity"), "final_sparsity is missing"),
    ("[conv1.weight, fc.weight]", "[]", (7, 14, "pruners.fine.weights"), "names no parameter"),
    ("[conv1.weight, fc.weight]", "{a: 1}", (7, 14, "pruners.fine.weights"), "expected text or a list, got a mapping"),
    ("fc.weight]", "3]", (7, 29, "pruners.fine.weights[1]"), "expected text, got 3"),
    ("fc.weight]", "fc]", (7, 29, "pruners.fine.weights[1]"), "'fc' is a module, not a parameter"),
    ("fc.weight]", "fc.wieght]", (7, 29, "pruners.fine.weights[1]"), "Did you mean 'fc.weight'"),
    ("fc.weight]", "bn1.running_mean]", (7, 29, "pruners.fine.weights[1]"), "is a buffer"),
    ("fc.weight]", "'re:fc']", (7, 29, "pruners.fine.weights[1]"), "only the beginning of"),
    ("fc.weight]", "'re:('] ", (7, 29, "pruners.fine.weights[1]"), "not a valid regular expression"),
    ("  fine:\n", "  fine: 3\n  other:\n", (3, 9, "pruners.fine"), "a definition is a mapping"),
    ("instance_name: fine", "instance_name: fien", (9, 29, "policies[0].pruner.instance_name"), "Did you mean 'fine'?"),
    ("instance_name: fine", "name: fine", (9, 14, "policies[0].pruner.name"), "unknown key 'name'"),
    (
        "pruner: {instance_name: fine}",
        "pruner: fine",
        (9, 13, "policies[0].pruner"),
        "write 'instance_name: NAME' here",
    ),
    ("- pruner:", "- prunner:", (9, 5, "policies[0].prunner"), "Did you mean 'pruner'"),
    ("starting_epoch: 0", "starting_epoch: '0'", (10, 21, "policies[0].starting_epoch"), "without quotes"),
    ("starting_epoch: 0", "starting_epoch: -1", (10, 21, "policies[0].starting_epoch"), "must be 0 or more"),
    ("    starting_epoch: 0\n", "", (9, 5, "policies[0]"), "starting_epoch missing"),
    ("    ending_epoch: 5\n", "", (9, 5, "policies[0]"), "ending_epoch missing"),
    ("ending_epoch: 5", "ending_epoch: 0", (11, 19, "policies[0].ending_epoch"), "must lie after starting_epoch"),
    ("ending_epoch: 5", "ending_epoch: 99999999999", (11, 19, "policies[0].ending_epoch"), "at most 1000000"),
    ("frequency: 2", "frequency: 0", (12, 16, "policies[0].frequency"), "above 0"),
    ("frequency: 2", "frequency: 2\n    epochs: [1]", (13, 5, "policies[0].epochs"), "cannot be combined with"),
    ("frequency: 2", "frequency: 2\n    epoch: [1]", (13, 5, "policies[0].epoch"), "Did you mean 'epochs'"),
    ("policies:\n", "policies:\n  - 3\n", (9, 5, "policies[0]"), "a policy is a mapping"),
    ("policies:\n", "policies:\n  - epochs: [1]\n", (9, 5, "policies[0]"), "a policy needs one of pruner, regularizer"),
]


@pytest.mark.parametrize(("old", "new", "place", "words"), CASES, ids=[f"{c[1].strip()[:40]!r}" for c in CASES])
def test_one_mistake(load, old, new, place, words):
    assert old in VALID
    loaded = load(VALID.replace(old, new, 1))
    found = [problem for problem in loaded.problems if (problem.line, problem.column, problem.path) == place]
    assert found, "\n".join(map(str, loaded.problems))
    assert words in found[0].message


ARGS = [
    ("{keep_mask: 'yes'}", "keep_mask", "expected true or false, got 'yes'"),
    ("{mask_gradients: true}", "mask_gradients", "needs mask_on_forward_only"),
    ("{mini_batch_pruning_frequency: -1}", "mini_batch_pruning_frequency", "-1"),
    ("{levels: {fc.wieght: 0.5}}", "levels['fc.wieght']", "Did you mean 'fc.weight'"),
    ("{levels: 1.5}", "levels", "1.5"),
    ("{threshold: 3}", "threshold", "has no argument 'threshold'"),
]


@pytest.mark.parametrize(("args", "name", "words"), ARGS, ids=[a[1] for a in ARGS])
def test_arguments_of_a_policy(load, args, name, words):
    problem = load(VALID.replace("instance_name: fine", f"instance_name: fine, args: {args}")).the_problem()
    assert problem.path == f"policies[0].pruner.args.{name}"
    assert problem.line == 9 and words in problem.message


def test_two_components_in_one_policy(load):
    problem = load(
        VALID.replace("    frequency: 2", "    regularizer: {instance_name: x}\n    frequency: 2")
    ).the_problem()
    assert "names 2 components (pruner, regularizer): write one policy for each" in problem.message


def test_an_instance_of_another_section_is_pointed_out(load):
    loaded = load(VALID.replace("- pruner:", "- regularizer:"))
    assert "It is defined below pruners; a 'regularizer' policy looks below regularizers" in str(loaded.problems[0])


def test_missing_required_arguments_are_named(load):
    text = VALID.replace("AutomatedGradualPruner", "SplicingPruner")
    messages = [p.message for p in load(text).problems]
    assert "SplicingPruner needs sensitivities, low_thresh_mult, hi_thresh_mult" in messages


def test_a_nested_schedule_is_checked_like_any_definition(load):
    lines = "    initial_sparsity: 0.05\n    final_sparsity: 0.9\n"
    text = VALID.replace(lines, "    schedule: {class: AGP, final_sparsity: '1', x: 2}\n")
    assert [p.path for p in load(text).problems] == ["pruners.fine.schedule.final_sparsity", "pruners.fine.schedule.x"]
    wrong = load(text.replace("class: AGP", "class: AGQ")).the_problem()
    assert wrong.path == "pruners.fine.schedule.class"
    assert "Did you mean 'AGP'" in wrong.message
    assert "a class is needed here" in load(text.replace("class: AGP, ", "")).the_problem().message


def test_unknown_class_of_a_quantizer(load):
    text = VALID + "  - quantizer: {instance_name: q}\n    epochs: [0]\n"
    loaded = load("quantizers:\n  q: {class: DorefaQuantiser, bits_weights: 4}\n" + text)
    assert "unknown quantizer class 'DorefaQuantiser'. Did you mean 'DorefaQuantizer'" in str(loaded.the_problem())


def test_a_problem_of_a_misspelt_policy_does_not_hide_others(load):
    loaded = load(VALID.replace("instance_name: fine", "instance_name: fien").replace("fc.weight]", "fc.wieght]"))
    assert [p.path for p in loaded.problems] == ["pruners.fine.weights[1]", "policies[0].pruner.instance_name"]


@pytest.mark.parametrize(
    "definition", ["{class: StepLR}", "{class: StepLR, step_size: 0}", "{class: StepLR, step_size: x}"]
)
def test_learning_rate_schedulers(load, definition):
    text = f"lr_schedulers:\n  lr: {definition}\npolicies:\n  - lr_scheduler: {{instance_name: lr}}\n    epochs: [1]\n"
    assert load(text).the_problem().line == 2
    assert re.search("step_size", load(text).the_problem().message + load(text).the_problem().path)


def test_an_optimizer_that_does_not_fit_the_scheduler(tmp_path, load):
    text = "lr_schedulers:\n  lr: {class: CyclicLR, base_lr: 0.1, max_lr: [1.0, 2.0]}\npolicies:\n"
    loaded = load(text + "  - lr_scheduler: {instance_name: lr}\n    epochs: [1]\n")
    assert loaded.the_problem().line == 2


def test_the_error_is_a_value_error_with_every_line(load):
    loaded = load(HEADER.replace("fc.weight", "fc.wieght") + POLICY.replace("5", "x"))
    error = ScheduleError(loaded.problems)
    assert isinstance(error, ValueError) and len(str(error).splitlines()) == 2
