"""What loading gives: live objects in the right order, with the options of the three functions."""

from __future__ import annotations

import copy
import logging
import sys
import warnings

import numpy as np
import pytest
import torch
from config_helpers import HEADER, POLICY, VALID, assert_untouched, new_model_and_optimizer, snapshot
from torch import nn

import distiller_ng as distiller
from distiller_ng.config import EXTENSIONS, config_component_from_file_by_class, dict_config, file_config
from distiller_ng.errors import ArgumentError, ScheduleError, ScheduleWarning
from distiller_ng.policies.lr import LRPolicy
from distiller_ng.policies.pruning import PruningPolicy
from distiller_ng.policies.regularization import RegularizationPolicy
from distiller_ng.pruning import AutomatedGradualPruner
from distiller_ng.pruning.base import Pruner

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


# -- dictionaries -------------------------------------------------------------------------------------------------------


def test_a_dictionary_is_not_changed():
    given = copy.deepcopy(DICT)
    scheduler = dict_config(*new_model_and_optimizer(), given)
    assert given == DICT and len(scheduler.schedule) == 1


def test_problems_of_a_dictionary_are_located_by_path():
    given = copy.deepcopy(DICT)
    given["pruners"]["p"]["levels"] = {"fc.wieght": 0.5}
    with pytest.raises(ScheduleError) as caught:
        dict_config(*new_model_and_optimizer(), given)
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (0, 0)
    assert str(problem).startswith("<dict>: pruners.p.levels['fc.wieght']: 'fc.wieght' matches no parameter")


def test_types_that_python_has_and_yaml_has_not():
    given = {
        "pruners": {"p": {"class": "AutomatedGradualPruner", "weights": ("fc.weight",)}},
        "policies": [{"pruner": {"instance_name": "p"}, "epochs": range(0, 4, 2)}],
    }
    given["pruners"]["p"] |= {"initial_sparsity": np.float32(0.25), "final_sparsity": np.float64(0.5)}
    given["policies"] = tuple(given["policies"])
    scheduler = dict_config(*new_model_and_optimizer(), given)
    policy, window = scheduler.schedule[0]
    assert window.active_epochs() == [0, 2] and policy.pruner.schedule.target(0.0) == 0.25


def test_functions_may_be_given_from_python():
    given = copy.deepcopy(DICT)
    given["lr_schedulers"] = {"l": {"class": "LambdaLR", "lr_lambda": lambda epoch: 1 / (epoch + 1)}}
    given["policies"].append({"lr_scheduler": {"instance_name": "l"}, "starting_epoch": 0, "ending_epoch": 5})
    model, optimizer = new_model_and_optimizer(lr=0.6)
    scheduler = dict_config(model, optimizer, given)
    scheduler.on_epoch_begin(0)
    scheduler.on_epoch_end(0, optimizer)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.3)


def test_a_dictionary_that_contains_itself():
    given = {"pruners": {}}
    given["pruners"]["p"] = given
    with pytest.raises(ScheduleError, match="does the data contain itself"):
        dict_config(*new_model_and_optimizer(), given)


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


# -- classes of the user's ----------------------------------------------------------------------------------------------

USER_MODULE = """
from distiller_ng.pruning.base import Pruner, targets_of_list

class KeepAll(Pruner):
    def __init__(self, name, weights, strength: float = 1.0):
        super().__init__(name)
        self.weights, self.strength = weights, strength
    def targets(self):
        return targets_of_list("weights", self.weights)
    def compute_masks(self, group, ctx):
        return {name: ctx.weight(name).new_ones(ctx.weight(name).shape) for name in group.names}

class OldStyle:
    def __init__(self, name, model):
        self.name = name
    def set_param_mask(self, param, param_name, zeros_mask_dict, meta):
        pass

not_a_class = 3
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "my_pruners_of_the_config_tests.py").write_text(USER_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_pruners_of_the_config_tests"
    sys.modules.pop("my_pruners_of_the_config_tests", None)


def user_schedule(cls: str, args: str = "weights: [fc.weight], ") -> str:
    return f"pruners:\n  u: {{{args}class: {cls}}}\npolicies:\n  - pruner: {{instance_name: u}}\n    epochs: [0]\n"


def test_dotted_classes_need_permission(load, user_module):
    problem = load(user_schedule(f"{user_module}.KeepAll")).the_problem()
    assert "only with allow_user_classes=True" in problem.message and user_module not in sys.modules
    loaded = load(user_schedule(f"{user_module}.KeepAll"), allow_user_classes=True)
    assert isinstance(loaded.scheduler.schedule[0][0].pruner, Pruner)


def test_dotted_classes_are_checked_like_our_own(load, user_module):
    text = user_schedule(f"{user_module}.KeepAll", "weights: [fc.wieght], strength: x, stregth: 1, ")
    paths = [p.path for p in load(text, allow_user_classes=True).problems]
    assert paths == ["pruners.u.weights[0]", "pruners.u.strength", "pruners.u.stregth"]


def test_dotted_classes_that_do_not_exist(load, user_module):
    for name, words in (("Missing", "cannot import"), ("not_a_class", "is no class")):
        assert words in str(load(user_schedule(f"{user_module}.{name}"), allow_user_classes=True).the_problem())
    assert "cannot import" in str(load(user_schedule("no_such_module_here.X"), allow_user_classes=True).the_problem())
    assert "Write the name alone" in str(load(user_schedule("distiller.pruning.SensitivityPruner")).problems[0])


def test_a_pruner_written_for_distiller(load, user_module):
    loaded = load(user_schedule(f"{user_module}.OldStyle", ""), allow_user_classes=True)
    assert loaded.problems == () and len(loaded.scheduler.schedule) == 1


def test_a_learning_rate_class_of_ones_own(load, tmp_path, monkeypatch):
    (tmp_path / "my_lr_of_the_config_tests.py").write_text(
        "from torch.optim.lr_scheduler import StepLR\nclass Mine(StepLR):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = "lr_schedulers:\n  l: {class: my_lr_of_the_config_tests.Mine, step_size: 2}\npolicies:\n"
    loaded = load(text + "  - lr_scheduler: {instance_name: l}\n    epochs: [1]\n", allow_user_classes=True)
    loaded.scheduler.on_epoch_begin(1)
    loaded.scheduler.on_epoch_end(1, loaded.optimizer)
    assert loaded.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


# -- policies of the user's ---------------------------------------------------------------------------------------------


@pytest.fixture
def own_policy():
    class Inflate(distiller.Policy):
        """Adds ``factor`` times the loss."""

        def __init__(self, name: str, factor: float) -> None:
            self.name, self.factor = name, factor

        def before_backward_pass(self, ctx):
            extra = self.factor * ctx.loss
            return distiller.PolicyLoss(ctx.loss + extra, distiller.LossComponent(self.name, extra))

    EXTENSIONS.register("InflateOfTheConfigTests", injected=("name",))(Inflate)
    yield
    EXTENSIONS._entries.pop("InflateOfTheConfigTests")


EXTENSION = """\
extensions:
  bigger: {class: InflateOfTheConfigTests, factor: 0.5}
policies:
  - extension: {instance_name: bigger}
    epochs: [0]
  - extension: {instance_name: bigger}
    epochs: [2]
"""


def test_a_registered_policy_is_an_extension(load, own_policy):
    loaded = load(EXTENSION)
    scheduler = loaded.scheduler
    assert len({id(policy) for policy, _ in scheduler.schedule}) == 1
    scheduler.on_epoch_begin(2)
    scheduler.on_minibatch_begin(2, 0, 1)
    assert float(scheduler.before_backward_pass(2, 0, 1, torch.tensor(2.0))) == 3.0


def test_extensions_are_checked_like_everything_else(load, own_policy):
    assert load(EXTENSION.replace("factor: 0.5", "factor: x")).the_problem().path == "extensions.bigger.factor"
    problem = load(
        EXTENSION.replace("{instance_name: bigger}", "{instance_name: bigger, args: {a: 1}}", 1)
    ).the_problem()
    assert "has no argument 'a'" in problem.message
    missing = load(EXTENSION.replace("InflateOf", "Inflate")).the_problem()
    assert "unknown extension class" in missing.message and "Did you mean 'InflateOfTheConfigTests'" in missing.message


# -- one component ------------------------------------------------------------------------------------------------------


def test_one_component_by_its_class(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("regularizers:\n  broken: {class: Nope}\n" + HEADER + "policies:\n  - nonsense: 1\n")
    model, _ = new_model_and_optimizer()
    pruner = config_component_from_file_by_class(model, path, "AutomatedGradualPruner")
    assert isinstance(pruner, AutomatedGradualPruner) and pruner.name == "fine"
    other = config_component_from_file_by_class(model, path, "AutomatedGradualPruner", final_sparsity=0.5)
    assert other.schedule.target(1.0) == 0.5


def test_one_component_that_is_wrong_or_missing(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(HEADER.replace("fc.weight", "fc.wieght"))
    model, _ = new_model_and_optimizer()
    with pytest.raises(ScheduleError, match=r"s.yaml:7:29: pruners.fine.weights\[1\]"):
        config_component_from_file_by_class(model, path, "AutomatedGradualPruner")
    with pytest.raises(ScheduleError, match="no definition has the class 'PostTrainLinearQuantizer'; classes in this"):
        config_component_from_file_by_class(model, path, "PostTrainLinearQuantizer")
    with pytest.raises(ArgumentError, match="takes no argument 'bits'"):
        config_component_from_file_by_class(model, path, "AutomatedGradualPruner", bits=8)


def test_two_components_of_one_class(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(HEADER + "  other: {class: AutomatedGradualPruner}\n")
    with pytest.warns(ScheduleWarning, match="'fine' is taken; 'other' has the same class"):
        assert config_component_from_file_by_class(new_model_and_optimizer()[0], path, "AutomatedGradualPruner").name


def test_loading_configures_no_logging(load):
    handlers = list(logging.getLogger().handlers)
    load(VALID)
    assert logging.getLogger().handlers == handlers
