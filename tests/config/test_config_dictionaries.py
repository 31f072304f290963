"""Schedules given as dictionaries: never changed, in Python's types, located by path."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from config_helpers import new_model_and_optimizer

from distiller_ng.config import dict_config
from distiller_ng.errors import ScheduleError

DICT = {
    "pruners": {"p": {"class": "SparsityLevelParameterPruner", "levels": {"fc.weight": 0.5}}},
    "policies": [{"pruner": {"instance_name": "p"}, "epochs": [0]}],
}


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
