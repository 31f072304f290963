"""Classes and policies of the user's own, and one component of a file by its class."""

from __future__ import annotations

import sys

import pytest
import torch
from config_helpers import HEADER, new_model_and_optimizer

import distiller_ng as distiller
from distiller_ng.config import EXTENSIONS, config_component_from_file_by_class
from distiller_ng.errors import ArgumentError, ScheduleError, ScheduleWarning
from distiller_ng.pruning import AutomatedGradualPruner
from distiller_ng.pruning.base import Pruner

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
