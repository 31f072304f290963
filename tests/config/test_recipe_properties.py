"""Whatever is done to a recipe, loading it works or tells where it is wrong; and recipes survive being written."""

from __future__ import annotations

import copy
import random
import warnings

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import distiller_ng as distiller
from distiller_ng.config import dict_config, read_schedule
from distiller_ng.config.dumping import schedule_text
from distiller_ng.config.frontends.recipe.reverse import as_recipe
from distiller_ng.config.frontends.recipe.staging import compose
from distiller_ng.config.frontends.recipe.writing import recipe_text
from distiller_ng.config.marks import Marks
from distiller_ng.config.structure import read_spec
from distiller_ng.errors import ScheduleError, ScheduleWarning

RECIPE = """\
# A recipe with a bit of everything.
version: 1.1.0
num_epochs: &n 6.0
warm: 2
total: eval(num_epochs - warm * 0.5)
names: [fc1.weight, "re:fc2.w"]
training_modifiers:
  - !EpochRangeModifier
    start_epoch: 0.0
    end_epoch: *n
  - !LearningRateFunctionModifier
      start_epoch: 0
      end_epoch: -1
      lr_func: cosine
      init_lr: 1e-2
      final_lr: 0
  - !SetWeightDecayModifier {start_epoch: eval(warm), weight_decay: 0.01}
  - !LearningRateModifier
    start_epoch: 0.0
    lr_class: MultiStepLR
    lr_kwargs: {gamma: 0.5, milestones: [1, 2.5]}
    init_lr: 0.1
pruning_modifiers:
  - !GMPruningModifier
    params: eval(names)
    init_sparsity: 0.05
    final_sparsity: 0.85
    start_epoch: 0
    end_epoch: eval(total)
    update_frequency: 0.5
    mask_type: unstructured
    leave_enabled: True
  - !GlobalMagnitudePruningModifier
    params: __ALL_PRUNABLE__
    init_sparsity: __FROM_PARAM__
    final_sparsity: 0.6
    start_epoch: eval(total)
    end_epoch: *n
    update_frequency: -1
    mask_type: block4
  - !ConstantPruningModifier {params: [fc1], start_epoch: 5}
  - !TrainableParamsModifier {params: [fc2.bias], trainable: False, start_epoch: 5.5}
"""
STAGED = """\
shared: 2
first_stage:
  one_modifiers:
    - !EpochRangeModifier {start_epoch: 0, end_epoch: eval(shared)}
second_stage:
  shared: 4
  two_modifiers:
    - !EpochRangeModifier {start_epoch: 2, end_epoch: eval(shared)}
    - !SetLearningRateModifier {learning_rate: 0.1, start_epoch: 2}
"""
PIECES = [
    "!",
    "!X ",
    "- ",
    "  ",
    "\t",
    "\n",
    ":",
    "{",
    "}",
    "[",
    "]",
    "&n ",
    "*n",
    "*q",
    "eval(",
    ")",
    "'",
    '"',
    "---\n",
]
PIECES += [
    "-1",
    "1e400",
    "null",
    "yes",
    "2:4",
    "!!int ",
    "<<: ",
    "re:(",
    "params",
    "modifiers:",
    "end_epoch: ",
    "é",
    "0x1F",
]


def network():
    torch.manual_seed(0)
    return nn.ModuleDict({"fc1": nn.Linear(4, 8), "fc2": nn.Linear(8, 4)})


def load(text):
    """The problems of a text; empty if it loads."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        try:
            distiller.file_config(model, optimizer, text)
        except ScheduleError as error:
            return list(error.problems)
    return []


def mutated(text, seed):
    """A few random changes: pieces put in, parts taken out, lines exchanged, indentation changed."""
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(text)) if text else 0
        kind = chance.randrange(5)
        lines = text.split("\n")
        if kind == 0:
            text = text[:at] + chance.choice(PIECES) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + chance.randint(1, 12) :]
        elif kind == 2 and len(lines) > 2:
            first, second = chance.sample(range(len(lines)), 2)
            lines[first], lines[second] = lines[second], lines[first]
            text = "\n".join(lines)
        elif kind == 3:
            line = chance.randrange(len(lines))
            lines[line] = chance.choice(["", "  ", "    "]) + lines[line].lstrip()
            text = "\n".join(lines)
        else:
            line = chance.randrange(len(lines))
            lines[line : line + 1] = [lines[line]] * 2
            text = "\n".join(lines)
    return text


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [RECIPE, STAGED], ids=["groups", "stages"])
@given(seed=st.integers(0, 10**9))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_damaged_recipe_loads_or_says_where_it_is_wrong(recipe, seed):
    text = mutated(recipe, seed) + "\n"
    for problem in load(text):
        assert problem.line >= 1 and problem.column >= 1, (problem, text)
        assert problem.line <= text.count("\n") + 1
        assert "Traceback" not in problem.message and problem.message


@pytest.mark.parametrize("seed", range(25))
def test_a_few_damaged_recipes(seed):
    for problem in load(mutated(RECIPE, seed) + "\n"):
        assert problem.line >= 1 and problem.column >= 1


PROPERTIES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.floats(allow_nan=True),
    st.text(max_size=5),
    st.just({}),
    st.just([[]]),
)


@given(
    value=PROPERTIES, name=st.sampled_from(["params", "init_sparsity", "final_sparsity", "start_epoch", "end_epoch"])
)
@settings(max_examples=60, deadline=None)
def test_any_value_in_any_property(value, name):
    properties = {
        "params": ["fc1.weight"],
        "init_sparsity": 0.1,
        "final_sparsity": 0.5,
        "start_epoch": 0,
        "end_epoch": 2,
    }
    body = "\n".join(f"    {k}: {_written(value if k == name else v)}" for k, v in properties.items())
    text = f"modifiers:\n  - !MagnitudePruningModifier\n{body}\n    update_frequency: 1\n"
    for problem in load(text):
        assert problem.line >= 1


def _written(value):
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True).removesuffix("\n").removesuffix("\n...")


# -- writing -----------------------------------------------------------------------------------------------------------


def spec_of(text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        return read_schedule(text)


@pytest.mark.parametrize("text", [RECIPE, STAGED], ids=["groups", "stages"])
def test_a_recipe_is_the_same_after_it_was_written(text):
    first = spec_of(text)
    written = recipe_text(as_recipe(first))
    second = spec_of(written)
    assert second.problems == ()
    assert [m.tag for m in second.recipe.modifiers] == [m.tag for m in first.recipe.modifiers]
    assert [dict(m.properties) for m in second.recipe.modifiers] == [dict(m.properties) for m in first.recipe.modifiers]
    assert recipe_text(as_recipe(second)) == written
    assert "eval(" not in written and "&" not in written


def run(scheduler, optimizer, model, epochs=7):
    torch.manual_seed(1)
    for _ in scheduler.epochs(epochs):
        for x in scheduler.minibatches(torch.randn(3, 5, 4).unbind()):
            optimizer.zero_grad()
            scheduler.backward(
                model["fc2"](torch.relu(model["fc1"](x))).pow(2).mean() + model["fc1"].weight.sum() * 0.01
            )
            optimizer.step()
    return copy.deepcopy(model.state_dict())


def test_a_translated_schedule_trains_exactly_as_the_recipe(tmp_path):
    path = tmp_path / "schedule.yaml"
    path.write_text(schedule_text(spec_of(RECIPE)))
    results = []
    for source in (RECIPE, path):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScheduleWarning)
            scheduler = distiller.file_config(model, optimizer, source)
        results.append(run(scheduler, optimizer, model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert float((results[0]["fc1.weight"] == 0).float().mean()) >= 0.6


SCHEDULE = {
    "pruners": {
        "fine": {
            "class": "MagnitudePruner",
            "weights": ["fc1.weight", "re:fc2.*weight"],
            "schedule": {"class": "AGP", "initial_sparsity": 0.05, "final_sparsity": 0.8},
            "scope": "global",
        }
    },
    "lr_schedulers": {"lr": {"class": "StepLR", "step_size": 2, "gamma": 0.5}},
    "policies": [
        {"pruner": {"instance_name": "fine"}, "starting_epoch": 0, "ending_epoch": 5, "frequency": 2},
        {"lr_scheduler": {"instance_name": "lr"}, "starting_epoch": 0, "ending_epoch": 9, "frequency": 1},
    ],
}


def schedule_spec(data):
    return read_spec(data, source="<dict>", marks=Marks())


def test_a_schedule_as_a_recipe():
    recipe = as_recipe(schedule_spec(SCHEDULE))
    first, second = recipe.modifiers
    assert first.tag == "GlobalMagnitudePruningModifier"
    assert dict(first.properties) == {
        "params": ["fc1.weight", "re:(?:fc2.*weight)$"],
        "init_sparsity": 0.05,
        "final_sparsity": 0.8,
        "inter_func": "cubic",
        "start_epoch": 0.0,
        "end_epoch": 4.0,
        "update_frequency": 2.0,
    }
    assert second.tag == "LearningRateModifier" and second.properties["lr_kwargs"] == {"step_size": 2, "gamma": 0.5}
    assert load(recipe_text(recipe)) == []


def test_what_no_recipe_can_express_is_refused_by_name():
    data = copy.deepcopy(SCHEDULE)
    data["pruners"]["fine"] = {"class": "SensitivityPruner", "sensitivities": {"fc1.weight": 0.5}}
    with pytest.raises(
        ScheduleError, match="pruners.fine.class: recipes have no modifier for the class 'SensitivityPruner'"
    ):
        as_recipe(schedule_spec(data))
    data = copy.deepcopy(SCHEDULE)
    data["policies"][0] = {"pruner": {"instance_name": "fine"}, "epochs": [0, 1, 5]}
    with pytest.raises(ScheduleError, match="list of epochs"):
        as_recipe(schedule_spec(data))


def test_as_dict_is_a_schedule():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = dict_config(model, optimizer, spec_of(STAGED).as_dict())
    assert len(scheduler.schedule) == 3 and scheduler.max_epochs == 4


# -- one recipe after the other ----------------------------------------------------------------------------------------

BASE = "modifiers:\n  - !EpochRangeModifier {start_epoch: 0, end_epoch: 3}\n  - !SetLearningRateModifier {learning_rate: 0.1}\n"
OPEN = "modifiers:\n  - !ConstantPruningModifier {params: [fc1.weight], start_epoch: -1}\n  - !EpochRangeModifier {start_epoch: 0, end_epoch: 2}\n"


def composed(first, second, **options):
    return compose(as_recipe(spec_of(first)), as_recipe(spec_of(second)), **options)


def times(recipe):
    return [(m.stage, m.tag, m.properties["start_epoch"], m.properties.get("end_epoch")) for m in recipe.modifiers]


def test_recipes_one_after_the_other():
    assert times(composed(OPEN, BASE)) == [
        ("stage_0", "EpochRangeModifier", 0, 2),
        ("stage_0", "ConstantPruningModifier", -1, 2),
        ("stage_1", "EpochRangeModifier", 2, 5),
        ("stage_1", "SetLearningRateModifier", 2, None),
    ]
    assert times(composed(BASE, OPEN, keep_original_epochs=True))[-1] == ("stage_1", "ConstantPruningModifier", -1, -1)
    assert load(recipe_text(composed(BASE, OPEN))) == []


def test_names_of_stages():
    assert composed(STAGED, BASE).stages == ["first_stage", "second_stage", "stage_3"]
    assert composed(BASE, STAGED).stages == ["pre_first_stage", "first_stage", "second_stage"]
    with pytest.raises(distiller.ArgumentError, match="both recipes have a stage 'first_stage'"):
        composed(STAGED, STAGED)


def test_quantization_goes_on_in_composed_recipes():
    base = "modifiers:\n  - !QuantizationModifier {start_epoch: 1, freeze_bn_stats_epoch: 2}\n" + OPEN.removeprefix(
        "modifiers:\n"
    )
    recipe = composed(base, base)
    quantization = [m for m in recipe.modifiers if m.tag == "QuantizationModifier"]
    assert [m.properties.get("end_epoch", -1) for m in quantization] == [-1, -1]
    assert [m.properties["freeze_bn_stats_epoch"] for m in quantization] == [2, 4]
