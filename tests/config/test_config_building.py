"""What loading gives: live objects in the right order, with the options of the three functions."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from config_helpers import HEADER, POLICY, VALID, assert_untouched, new_model_and_optimizer, snapshot
from torch import nn

import distiller_ng as distiller
from distiller_ng.config import dict_config, file_config
from distiller_ng.errors import ArgumentError, ScheduleError, ScheduleWarning
from distiller_ng.policies.lr import LRPolicy
from distiller_ng.policies.pruning import PruningPolicy
from distiller_ng.policies.regularization import RegularizationPolicy

LR = "lr_schedulers:\n  decay: {class: ExponentialLR, gamma: 0.5}\n"
LR_POLICY = "  - lr_scheduler: {instance_name: decay}\n    starting_epoch: 0\n    ending_epoch: 9\n    frequency: 1\n"
DICT = {
    "pruners": {"p": {"class": "SparsityLevelParameterPruner", "levels": {"fc.weight": 0.5}}},
    "policies": [{"pruner": {"instance_name": "p"}, "epochs": [0]}],
}


def test_policies_come_in_file_order_with_learning_rates_last(load):
    text = (
        "policies:\n"
        + LR_POLICY
        + POLICY.removeprefix("policies:\n")
        + "  - regularizer: {instance_name: l1, args: {keep_mask: true}}\n    epochs: [3, 1]\n"
        + LR
        + "regularizers:\n  l1: {class: L1Regularizer, reg_regims: {fc.weight: 1e-5}, threshold_criteria: Max}\n"
        + HEADER
    )
    scheduler = load(text).scheduler
    kinds = [type(policy) for policy, _ in scheduler.schedule]
    assert kinds == [PruningPolicy, RegularizationPolicy, LRPolicy]
    assert scheduler.schedule[1][0].keep_mask is True
    assert scheduler.schedule[1][1].active_epochs() == [1, 3]
    assert scheduler.schedule[1][0].regularizer.reg_regims == {"fc.weight": 1e-5}


def test_one_instance_in_several_policies(load):
    loaded = load(VALID + "  - pruner: {instance_name: fine}\n    epochs: [7, 8]\n")
    first, second = (policy for policy, _ in loaded.scheduler.schedule)
    assert first is not second and first.pruner is second.pruner
    assert loaded.warnings == []


def test_policy_arguments_arrive(load):
    text = VALID.replace("{instance_name: fine}", "{instance_name: fine, args: {keep_mask: True, levels: 0.3}}")
    args = load(text).scheduler.schedule[0][0].args
    assert args.keep_mask is True and args.levels == 0.3


def test_weights_may_be_one_string_and_numbers_whole(load):
    scheduler = load(VALID.replace("[conv1.weight, fc.weight]", "fc.weight").replace("0.05", "0")).scheduler
    pruner = scheduler.schedule[0][0].pruner
    assert pruner.names == ["fc.weight"] and pruner.schedule.target(0.0) == 0.0


@pytest.mark.parametrize("name", ["module.fc.weight", "fc.module.weight", "_orig_mod.fc.weight", "fc.weight"])
def test_names_of_wrapped_models(load, name):
    scheduler = load(VALID.replace("fc.weight", name)).scheduler
    assert scheduler.schedule[0][0].pruner.names == ["conv1.weight", "fc.weight"]


def test_bare_names_on_a_wrapped_model(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(VALID)
    model, optimizer = new_model_and_optimizer()
    scheduler = file_config(nn.DataParallel(model), optimizer, path)
    assert scheduler.schedule[0][0].pruner.names == ["conv1.weight", "fc.weight"]


def test_patterns_and_tokens(load):
    names = (
        load(VALID.replace("[conv1.weight, fc.weight]", "['re:conv.*weight']")).scheduler.schedule[0][0].pruner.names
    )
    assert names == ["conv1.weight", "conv2.weight"]
    every = load(VALID.replace("[conv1.weight, fc.weight]", "__ALL_PRUNABLE__")).scheduler.schedule[0][0].pruner.names
    assert every == ["conv1.weight", "conv2.weight", "fc.weight"]


def test_the_first_masks_are_as_planned(load):
    loaded = load(VALID)
    scheduler = loaded.scheduler
    for epoch, zeros in ((0, int(0.05 * 72)), (4, int(0.9 * 72))):
        scheduler.on_epoch_begin(epoch)
        assert int((scheduler.zeros_mask_dict["conv1.weight"].mask == 0).sum()) == zeros
        scheduler.on_epoch_end(epoch, loaded.optimizer)


def test_the_optimizer_is_attached(load):
    loaded = load(VALID)
    assert loaded.scheduler.optimizer is loaded.optimizer and loaded.scheduler.masks.is_attached


def test_no_optimizer_is_needed_to_load(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(HEADER + LR + POLICY + LR_POLICY)
    scheduler = file_config(new_model_and_optimizer()[0], None, path)
    assert scheduler.optimizer is None and len(scheduler.schedule) == 2


def test_loading_leaves_model_and_optimizer_alone(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(HEADER + LR + POLICY + LR_POLICY)
    model, optimizer = new_model_and_optimizer()
    before = snapshot(model, optimizer)
    file_config(model, optimizer, path)
    # All but the step hooks, which keep masked weights at zero from now on.
    assert_untouched(model, optimizer, (*before[:-1], snapshot(model, optimizer)[-1]))


def test_example_inputs_reach_the_scheduler(load):
    inputs = (torch.zeros(1, 2, 5, 5),)
    assert load(VALID, example_inputs=inputs).scheduler.example_inputs is inputs


# -- an existing scheduler ----------------------------------------------------------------------------------------------


def test_policies_are_added_to_a_scheduler_that_is_given(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(VALID)
    model, optimizer = new_model_and_optimizer()
    mine = distiller.CompressionScheduler(model)
    assert file_config(model, optimizer, path, mine) is mine
    file_config(model, optimizer, path, scheduler=mine)
    assert len(mine.schedule) == 2


def test_nothing_is_added_when_the_file_is_wrong(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(VALID.replace("fc.weight", "fc.wieght"))
    model, optimizer = new_model_and_optimizer()
    mine = distiller.CompressionScheduler(model)
    with pytest.raises(ScheduleError):
        file_config(model, optimizer, path, mine)
    assert mine.schedule == () and mine.optimizer is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"on_unmatched": "ignore"}, "on_unmatched cannot be 'ignore'"),
        ({"scheduler": "x"}, "scheduler must be a CompressionScheduler"),
        ({"resumed_epoch": 1.5}, "resumed_epoch is the last completed epoch"),
        ({"resumed_epoch": True}, "resumed_epoch is the last completed epoch"),
    ],
)
def test_impossible_options(changed, words):
    with pytest.raises(ArgumentError, match=words):
        dict_config(*new_model_and_optimizer(), DICT, **changed)


def test_a_scheduler_of_another_model():
    model, optimizer = new_model_and_optimizer()
    with pytest.raises(ArgumentError, match="another model"):
        dict_config(model, optimizer, DICT, distiller.CompressionScheduler(nn.Linear(2, 2)))
    with pytest.raises(ArgumentError, match="optimizer must be a torch optimizer"):
        dict_config(model, model, DICT)
    with pytest.raises(ArgumentError, match="model must be a torch.nn.Module"):
        dict_config("resnet20", optimizer, DICT)


# -- warnings -----------------------------------------------------------------------------------------------------------


def test_a_definition_without_a_policy_is_built_and_warned_about(load):
    loaded = load(
        VALID.replace("policies:", "  idle: {class: SensitivityPruner, sensitivities: {nope.weight: 1}}\npolicies:")
    )
    assert loaded.problems == ()
    assert any("pruners.idle: pruner 'idle' is defined but no policy uses it" in w for w in loaded.warnings)
    assert any("'nope.weight' matches no parameter" in w for w in loaded.warnings)
    broken = load(VALID.replace("policies:", "  idle: {class: SensitivityPruner}\npolicies:"))
    assert "SensitivityPruner needs sensitivities" in broken.the_problem().message


def test_a_schedule_without_policies(load):
    loaded = load(HEADER)
    assert loaded.scheduler.schedule == ()
    assert any("no policies" in w for w in loaded.warnings)
    assert load("version: 1\npolicies:\n").scheduler.schedule == ()


def test_empty_sections_and_any_version(load):
    assert load("version: 7\nregularizers:\nextensions: {}\n" + VALID.removeprefix("version: 1\n")).warnings == []


def test_duplicate_keys(load):
    loaded = load(VALID.replace("    final_sparsity: 0.9\n", "    final_sparsity: 0.9\n    final_sparsity: 0.8\n"))
    assert loaded.warnings[0].endswith(
        ":7:5: pruners.fine.final_sparsity: the key 'final_sparsity' is repeated; this last one counts"
    )
    assert loaded.scheduler.schedule[0][0].pruner.schedule.target(1.0) == 0.8


def test_old_arguments_of_torch_are_dropped(load):
    text = LR.replace("gamma: 0.5", "gamma: 0.5, verbose: true") + "policies:\n" + LR_POLICY
    loaded = load(text)
    assert loaded.problems == () and any(
        "lr_schedulers.decay.verbose: verbose is ignored" in w for w in loaded.warnings
    )


def test_warnings_blame_the_line_that_asked(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(HEADER)
    with pytest.warns(ScheduleWarning) as caught:
        file_config(*new_model_and_optimizer(), path)
    assert {w.filename for w in caught} == {__file__}


def test_warnings_made_errors_leave_everything_untouched(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(
        VALID.replace("policies:", "  idle: {class: SensitivityPruner, sensitivities: {fc.weight: 1}}\npolicies:")
    )
    model, optimizer = new_model_and_optimizer()
    before = snapshot(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ScheduleWarning):
            file_config(model, optimizer, path)
    assert_untouched(model, optimizer, before)


# -- unmatched names ----------------------------------------------------------------------------------------------------


def test_unmatched_names_can_be_left_out(load):
    loaded = load(
        VALID.replace("[conv1", "[ghost.weight, conv1").replace("fc.weight", "fc.wieght"), on_unmatched="warn"
    )
    assert loaded.scheduler.schedule[0][0].pruner.names == ["conv1.weight"]
    assert len([w for w in loaded.warnings if "matches no parameter" in w]) == 2


def test_unmatched_keys_of_a_map_can_be_left_out(load):
    text = (
        "regularizers:\n  r: {class: GroupLassoRegularizer, reg_regims: {x: [0.1, 3D], conv1.weight: [0.1, 3D]}}\n"
        "policies:\n  - regularizer: {instance_name: r}\n    epochs: [0]\n"
    )
    assert load(text).the_problem().path == "regularizers.r.reg_regims.x"
    loaded = load(text, on_unmatched="warn")
    assert loaded.scheduler.schedule[0][0].regularizer.names == ["conv1.weight"]


def test_a_component_of_which_nothing_is_left_gets_no_policy(load):
    loaded = load(VALID.replace("[conv1.weight, fc.weight]", "ghost.weight"), on_unmatched="warn")
    assert loaded.problems == () and loaded.scheduler.schedule == ()
    assert any("nothing left to work on" in w for w in loaded.warnings)


def test_loading_configures_no_logging(load):
    handlers = list(logging.getLogger().handlers)
    load(VALID)
    assert logging.getLogger().handlers == handlers
