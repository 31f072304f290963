"""Reading recipes: texts, tags, groups, stages, variables, expressions, and what is said about mistakes."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import distiller_ng as distiller
from distiller_ng.compat.sparseml.manager import ScheduledModifierManager
from distiller_ng.config import read_schedule
from distiller_ng.config.frontends.recipe.expressions import evaluate, expression_in
from distiller_ng.config.frontends.recipe.variables import parse_recipe_args
from distiller_ng.errors import ArgumentError, ScheduleError, ScheduleWarning

RANGE = "  - !EpochRangeModifier\n    start_epoch: 0.0\n    end_epoch: {end}\n"


def read(text, path=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        spec = read_schedule(text if path is None else path, **options)
    assert spec.problems == (), "\n".join(map(str, spec.problems))
    return spec


def modifiers(text, **options):
    return [(m.tag, dict(m.properties)) for m in read(text, **options).recipe.modifiers]


def ends(text, **options):
    return [properties["end_epoch"] for _, properties in modifiers(text, **options)]


def problems(text, **options):
    try:
        return [str(problem) for problem in read_schedule(text, **options).problems]
    except ScheduleError as error:
        return [str(problem) for problem in error.problems]


# -- shapes ------------------------------------------------------------------------------------------------------------

SAME = [
    "modifiers:\n  - !EpochRangeModifier\n    start_epoch: 0\n    end_epoch: 2.5\n",
    "modifiers:\n  - !EpochRangeModifier\n      start_epoch: 0\n      end_epoch: 2.5\n",
    "modifiers:\n- !EpochRangeModifier\n  end_epoch: 2.5\n  start_epoch: 0\n",
    "modifiers: [!EpochRangeModifier {start_epoch: 0, end_epoch: 2.5}]\n",
    "modifiers:\n  - !EpochRangeModifier {start_epoch: 0.0, end_epoch: 2.5}\n",
    "modifiers:\n  - !pytorch.EpochRangeModifier\n    start_epoch: 0\n    end_epoch: 2.5\n",
    "some_training_modifiers_here:\n  - !EpochRangeModifier\n    start_epoch: 0\n    end_epoch: '2.5'\n",
    "modifiers: !EpochRangeModifier\n  start_epoch: 0\n  end_epoch: 2.5\n",
    "- !EpochRangeModifier\n  start_epoch: 0\n  end_epoch: 2.5\n",
    "    - !EpochRangeModifier\n        start_epoch: 0\n        end_epoch: 2.5\n",
    "!EpochRangeModifier\nstart_epoch: 0\nend_epoch: 2.5\n",
    "version: 1.1.0\nend: &e 2.5\nmodifiers:\n  - !EpochRangeModifier {start_epoch: 0, end_epoch: *e}\n",
    "only_stage:\n  a_modifiers:\n  - !EpochRangeModifier {start_epoch: 0, end_epoch: 2.5}\n",
    "only_stage:\n  a_modifiers:\n    EpochRangeModifier: {start: 0, end: 2.5}\n",
    "---\nmodifiers:\n  - !EpochRangeModifier\n    start_epoch: 0\n    end_epoch: 2.5\n---\n# Card\nText: --- more\n",
    "<!--\nA licence\n-->\n---\nmodifiers:\n- !EpochRangeModifier\n  start_epoch: 0 # ---\n  end_epoch: 2.5\n---\n",
    "+++\nmodifiers:\n  - !EpochRangeModifier\n    start_epoch: 0\n    end_epoch: 2.5\n+++\n",
    "---\nlayout: null\n---\nmodifiers:\n  - !EpochRangeModifier\n    start_epoch: 0\n    end_epoch: 2.5\n",
]


@pytest.mark.parametrize("text", SAME, ids=range(len(SAME)))
def test_one_modifier_in_many_shapes(text):
    assert modifiers(text) == [("EpochRangeModifier", {"start_epoch": 0.0, "end_epoch": 2.5})]


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".md", ".YAML", ".MD"])
def test_files(tmp_path, suffix):
    path = tmp_path / f"recipe{suffix}"
    text = "modifiers:\n" + RANGE.format(end=3)
    path.write_text(f"# A title\n\n---\n{text}---\n" if "md" in suffix.lower() else text)
    spec = read(None, path)
    assert spec.policies[0].timing["ending_epoch"] == 3
    line = 5 if "md" in suffix.lower() else 2
    assert spec.marks.of_value(("modifiers", 0, "end_epoch")).line == line + 2


def test_markdown_without_front_matter(tmp_path):
    path = tmp_path / "readme.md"
    path.write_text("# Title\n```yaml\nmodifiers: []\n```\n")
    with pytest.raises(ScheduleError, match=r"readme.md:1:1: this Markdown file has no front matter.*```yaml blocks"):
        read_schedule(path)


def test_a_first_block_without_modifiers_is_passed_over_with_a_warning(tmp_path):
    path = tmp_path / "card.md"
    path.write_text("---\ntitle: A card\n---\n\n---\nmodifiers:\n" + RANGE.format(end=2) + "---\n")
    spec = read_schedule(path)
    assert [w.line for w in spec.warnings] == [2] and "line 6" in spec.warnings[0].message
    assert spec.policies[0].timing["ending_epoch"] == 2


def test_groups_come_together_and_modifiers_act_by_end_then_start():
    text = """
training_modifiers:
  - !SetLearningRateModifier {learning_rate: 0.1}
  - !EpochRangeModifier {start_epoch: 0, end_epoch: 9}
pruning_modifiers:
  - !LearningRateFunctionModifier {start_epoch: 3, end_epoch: 5, lr_func: linear, init_lr: 0.1, final_lr: 0}
  - !LearningRateFunctionModifier {start_epoch: 0, end_epoch: 3, lr_func: linear, init_lr: 0.1, final_lr: 0}
"""
    spec = read(text)
    assert [p.instance_name for p in spec.policies] == [
        "pruning_modifiers.1.LearningRateFunction",
        "pruning_modifiers.0.LearningRateFunction",
        "training_modifiers.1.EpochRange",
        "training_modifiers.0.SetLearningRate",
    ]


def test_stages_see_their_own_variables_and_the_recipes():
    text = """
n: 2
m: 7
first_stage:
  n: 3
  total: eval(n * m + 1)
  run_modifiers:
    - !EpochRangeModifier {start_epoch: 0, end_epoch: eval(total)}
second_stage:
  a_modifiers:
    - !EpochRangeModifier {start_epoch: 22, end_epoch: eval(22 + n)}
"""
    spec = read(text)
    assert [m.properties["end_epoch"] for m in spec.recipe.modifiers] == [22, 24]
    assert spec.recipe.stages == ["first_stage", "second_stage"]
    overridden = read(text, recipe_args={"n": 4})
    assert [m.properties["end_epoch"] for m in overridden.recipe.modifiers] == [26, 29]


def test_metadata_is_kept():
    text = "__metadata__: {epochs: 3}\nmodifiers:\n" + RANGE.format(end=1)
    assert read(text).recipe.metadata == {"": {"epochs": 3}}


# -- expressions and variables -----------------------------------------------------------------------------------------

VARIABLES = {"a": 3, "b": 0.5, "text": "2e-1", "names": ["x"], "flag": True, "word": "linear"}
VALUES = [
    ("a + b", 3.5),
    ("a - (b * 2) + 2", 4.0),
    ("-a", -3),
    ("- (a - 5)", 2),
    ("+a ** 2 // 2 % 3", 1),
    ("round(a / 7, ndigits=2)", 0.43),
    ("max(a, b, 9) - min(a, abs(-1))", 8),
    ("int(a * 1.5) + float(1)", 5.0),
    ("a", 3),
    ("names", ["x"]),
    ("word", "linear"),
    ("text * 2", 0.4),
    ("flag + 1", 2),
    ("1.e-3 * 2", 0.002),
]
REFUSED = [
    ("a < b", "not allowed"),
    ("a if b else 1", "not allowed"),
    ("math.pi", "not allowed"),
    ("__import__('os')", "no function '__import__'"),
    ("[a, b]", "not allowed"),
    ("'x' * 3", "not allowed"),
    ("a.real", "not allowed"),
    ("(lambda: 1)()", "no function"),
    ("max(*names)", "not allowed"),
    ("max(a, **b)", "not allowed"),
    ("a +", "no expression"),
    ("", "no expression"),
    ("a / 0", "has no value"),
    ("min()", "has no value"),
    ("9 ** 9 ** 9", "too large"),
    ("10 ** 500 * 10 ** 500", "too large"),
    ("(-8) ** 0.5", "no number"),
    ("word + 1", "no number to calculate with"),
    ("c", "no variable 'c'"),
    ("aa + 1", "no variable 'aa'"),
    ("1e308 * 10", "not finite"),
    ("+".join(["a"] * 600), "more than 1000 characters"),
    ("(" * 300 + "a" + ")" * 300, "nested too deeply|no expression"),
]


def lookup(name):
    if name not in VARIABLES:
        raise ArgumentError(f"there is no variable {name!r}")
    return VARIABLES[name]


@pytest.mark.parametrize(("expression", "value"), VALUES)
def test_expressions(expression, value):
    found = evaluate(expression, lookup)
    assert found == value or found == pytest.approx(value)


@pytest.mark.parametrize(("expression", "words"), REFUSED, ids=[r[0][:20] for r in REFUSED])
def test_what_is_no_arithmetic(expression, words):
    with pytest.raises(ArgumentError, match=words):
        evaluate(expression, lookup)


def test_only_whole_strings_are_expressions():
    assert expression_in("eval( x )") == "x"
    assert expression_in("re:.*eval(x)") is None and expression_in("eval(x) + 1") is None and expression_in(3) is None


def test_variables_in_any_order_and_objects_behind_names():
    text = """
total: eval(first + second)
second: eval(first * 2)
first: 2
names: [fc.weight]
same: eval(names)
mapping: {gamma: 0.5, step_size: eval(first)}
modifiers:
  - !EpochRangeModifier {start_epoch: 0, end_epoch: eval(total)}
  - !TrainableParamsModifier {params: eval(same), trainable: true, start_epoch: 0, end_epoch: -1}
  - !LearningRateModifier {start_epoch: 0, lr_class: StepLR, lr_kwargs: eval(mapping), init_lr: 1e-1}
"""
    found = dict(modifiers(text))
    assert found["EpochRangeModifier"]["end_epoch"] == 6
    assert found["TrainableParamsModifier"]["params"] == ["fc.weight"]
    assert found["LearningRateModifier"]["lr_kwargs"] == {"gamma": 0.5, "step_size": 2}
    assert found["LearningRateModifier"]["init_lr"] == 0.1


def test_aliases_follow_values_given_from_outside():
    text = "n: &n 3\nhalf: &h eval(n / 2)\nmodifiers:\n" + RANGE.format(end="*n") + RANGE.format(end="*h")
    assert sorted(ends(text)) == [1.5, 3.0]
    assert sorted(ends(text, recipe_args={"n": 8})) == [4.0, 8.0]
    assert sorted(ends(text, recipe_args="n=5, half=1")) == [1.0, 5.0]


def test_anchors_inside_modifiers_and_merged_mappings():
    text = """
base: &base {start_epoch: 0, end_epoch: &end 4}
modifiers:
  - !EpochRangeModifier
    <<: *base
  - !EpochRangeModifier {start_epoch: &s 1, end_epoch: *end}
  - !EpochRangeModifier {start_epoch: *s, end_epoch: 2}
"""
    found = [properties for _, properties in modifiers(text)]
    assert [(p["start_epoch"], p["end_epoch"]) for p in found] == [(1, 2), (0, 4), (1, 4)]


ARGS = [
    ({"n": 7}, {"n": 7}),
    ('{"n": 7, "f": "linear"}', {"n": 7, "f": "linear"}),
    ("n=7,f=linear", {"n": 7, "f": "linear"}),
    ("n:7, lr: 1e-3", {"n": 7, "lr": 0.001}),
    ("flag=true,other=None", {"flag": True, "other": None}),
    (None, {}),
    ("", {}),
]


@pytest.mark.parametrize(("given", "expected"), ARGS)
def test_values_from_outside(given, expected):
    assert parse_recipe_args(given) == expected


@pytest.mark.parametrize("given", ["n", "[1, 2]", {"a=b": 1}, {"": 1}, {1: 2}, 7, "{n: 3"])
def test_values_that_cannot_be_read(given):
    with pytest.raises(ArgumentError, match="recipe_args"):
        parse_recipe_args(given)


def test_a_value_for_a_variable_that_does_not_exist():
    text = "num_epochs: 3\nmodifiers:\n" + RANGE.format(end="eval(num_epochs)")
    with pytest.raises(ArgumentError, match="Did you mean 'num_epochs'"):
        read_schedule(text, recipe_args={"num_epoch": 4})


# -- mistakes ----------------------------------------------------------------------------------------------------------

MISTAKES = [
    (
        "modifiers:\n  - !EpochRangModifier {end_epoch: 1}\n",
        "<text>:2:5: modifiers[0]: unknown modifier !EpochRangModifier. Did you mean 'EpochRangeModifier'",
    ),
    (
        "modifiers:\n  - !EpochRangeModifier\n    start_epoc: 0\n    end_epoch: 2\n",
        "<text>:3:5: modifiers[0].start_epoc: EpochRangeModifier has no property 'start_epoc'. Did you mean 'start_epoch'",
    ),
    (
        "modifiers:\n  - !EpochRangeModifier\n    start_epoch: 0\n",
        "<text>:2:5: modifiers[0]: EpochRangeModifier needs end_epoch",
    ),
    (
        "modifiers:\n  - !EpochRangeModifier\n    start_epoch: soon\n    end_epoch: 2\n",
        "<text>:3:18: modifiers[0].start_epoch: start_epoch is a number of epochs, got 'soon'",
    ),
    (
        "modifiers:\n  - !EpochRangeModifier\n    start_epoch: 3\n    end_epoch: 2\n",
        "<text>:4:16: modifiers[0].end_epoch: end_epoch (2) lies before start_epoch (3)",
    ),
    ("modifiers:\n  - !EpochRangeModifier\n    start_epoch: -3\n    end_epoch: 2\n", "start_epoch is 0 or more, or -1"),
    (
        "modifiers:\n  - !EpochRangeModifier\n    start_epoch: 0\n    end_epoch: eval(n)\n",
        "<text>:4:16: modifiers[0].end_epoch: there is no variable 'n'",
    ),
    (
        "n: eval(m)\nm: eval(n)\nmodifiers:\n" + RANGE.format(end="eval(n)"),
        "<text>:1:4: n: the variable 'n' is defined by itself: n -> m -> n",
    ),
    ("modifiers:\n" + RANGE.format(end="*n"), "undefined alias 'n'"),
    ("modifiers:\n  - EpochRangeModifier:\n      end_epoch: 2\n", "write '- !EpochRangeModifier'"),
    ("modifiers:\n  - SetLearningRateModifier\n", "write '- !SetLearningRateModifier'"),
    ("modifiers:\n  - 3\n", "expected a modifier, '- !EpochRangeModifier'; got 3"),
    ("modifiers: 3\n", "modifiers is a list of modifiers"),
    (
        "a:\n  - !EpochRangeModifier {start_epoch: 0, end_epoch: 1}\nmodifiers:\n" + RANGE.format(end=1),
        "<text>:1:1: a: modifiers below 'a'",
    ),
    ("modfiers:\n  - !EpochRangeModifier {start_epoch: 0, end_epoch: 1}\n", "Did you mean 'modifiers' by 'modfiers'?"),
    ("modifiers: []\n", "lists of modifiers are empty"),
    ("sparsity_stage:\n  pruning_modifiers: []\n", "lists of modifiers are empty"),
    (
        "x_stage:\n  a_modifiers:\n    SmoothQuantModifier: {smoothing_strength: 0.5}\n",
        "<text>:3:5: x_stage.a_modifiers.SmoothQuantModifier: SmoothQuantModifier belongs to the newer framework",
    ),
    (
        "modifiers:\n  - !SetLearningRateModifier {learning_rate: 1.5}\n",
        "<text>:2:46: modifiers[0].learning_rate: learning_rate is a learning rate above 0",
    ),
    (
        "modifiers:\n  - !GMPruningModifier\n    params: {a: b}\n    start_epoch: 0\n    end_epoch: 2\n    update_frequency: 0\n    init_sparsity: 0.1\n    final_sparsity: 0.5\n",
        "<text>:3:13: modifiers[0].params: params is a list of names",
    ),
    (
        "modifiers:\n  - !GMPruningModifier\n    params: [fc.weight, 3]\n    start_epoch: 0\n    end_epoch: 2\n    update_frequency: -3\n    init_sparsity: 0.1\n    final_sparsity: 0.5\n",
        "<text>:3:25: modifiers[0].params[1]: expected a name or pattern, got 3",
    ),
    (
        "modifiers:\n  - !GMPruningModifier\n    params: [fc.weight]\n    start_epoch: 0\n    end_epoch: 2\n    update_frequency: -3\n    init_sparsity: 0.1\n    final_sparsity: 0.5\n",
        "<text>:6:23: modifiers[0].update_frequency: update_frequency is above 0, or -1",
    ),
    (
        "modifiers:\n  - !LearningRateFunctionModifier {start_epoch: 0, end_epoch: -1, lr_func: linear, init_lr: 0.1, final_lr: 0}\n",
        "no other modifier says which",
    ),
    ("modifiers:\n  - !!python/object/apply:os.system [ls]\n", "has no meaning"),
    ("modifiers:\n  - !EpochRangeModifier [1, 2]\n", "is followed by its properties"),
    (
        "modifiers:\n  - !EpochRangeModifier {start_epoch: !SetLearningRateModifier {}, end_epoch: 2}\n",
        "stands where a value belongs",
    ),
    ("strict_sparseml: maybe\nmodifiers:\n" + RANGE.format(end=1), "strict_sparseml is true or false"),
    ("zoo:cv/model\n", ""),
]


def every_problem(text):
    model = nn.ModuleDict({"fc": nn.Linear(2, 2)})
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ScheduleWarning)
            distiller.file_config(model, optimizer, text)
    except ScheduleError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize(("text", "words"), MISTAKES, ids=[m[1][-40:] for m in MISTAKES])
def test_mistakes_are_told_with_their_place(text, words):
    found = every_problem(text)
    assert found and any(words in message for message in found), found
    assert all(message.startswith("<text>:") for message in found)


def test_everything_wrong_is_told_at_once():
    text = """
n: eval(q)
modifiers:
  - !EpochRangeModifier {start_epoch: x, end_epoch: eval(n)}
  - !Unknown {}
  - !SetLearningRateModifier {learning_rate: 7, start: 0}
  - !GMPruningModifier
    params: [fc.wieght]
    init_sparsity: 0.1
    final_sparsity: 2.0
    start_epoch: 0
    end_epoch: 2
    update_frequency: 1
"""
    found = "\n".join(every_problem(text))
    for words in (
        "2:4: n: there is no variable 'q'",
        "4:39",
        "5:5",
        "6:46",
        "6:49",
        "'fc.wieght'",
        "10:21: modifiers[3].final_sparsity",
    ):
        assert words in found, (words, found)


def test_recipe_variables_are_not_for_schedules(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("policies: []\n")
    with pytest.raises(ArgumentError, match="recipe_args are for recipes"):
        read_schedule(path, recipe_args={"a": 1})


def test_zoo_stubs_are_told_about():
    with pytest.raises(ScheduleError, match="shut down"):
        read_schedule("zoo:cv/classification/x")


# -- leniencies --------------------------------------------------------------------------------------------------------


def warned(text, **options):
    spec = read_schedule(text, **options)
    assert spec.problems == (), list(map(str, spec.problems))
    return spec, [str(warning) for warning in spec.warnings]


def test_leniencies_are_warnings():
    text = """
modifiers:
  - !LearningRateFunctionModifier
    lr_func: constant
    init_lr: '1e-3'
    final_lr: 0
    cycle_epoch: 2
    groups: [0]
    start_epoch: 0
    end_epoch: -1
    log_types: __ALL__
    constant_logging: true
  - !EpochRange {start_epoch: 0, end_epoch: 4}
  - !MagnutidePruningModifier
    params: re:.*weight
    init_sparsity: 0.05
    final_sparsity: 0.8
    start_epoch: 0
    end_epoch: 2
    update_frequency: 1
"""
    spec, notes = warned(text)
    for words in (
        "cycle_epoch is taken for cycle_epochs",
        "groups is taken for param_groups",
        "log_types is ignored",
        "constant_logging is ignored",
        "!EpochRange is taken for !EpochRangeModifier",
        "!MagnutidePruningModifier is taken for !MagnitudePruningModifier",
        "[re:.*weight] is meant",
    ):
        assert any(words in note for note in notes), (words, notes)
    function = next(c for c in spec.components if c.class_name == "LearningRateFunction")
    assert function.args["init_lr"] == 0.001
    assert next(p for p in spec.policies if p.instance_name == function.name).timing["ending_epoch"] == 4


def test_yaml_1_1_traps():
    text = """
modifiers:
  - !MagnitudePruningModifier
    params: [fc.weight]
    init_sparsity: 5e-1
    final_sparsity: 0.5
    start_epoch: 0
    end_epoch: 2
    update_frequency: 1
    mask_type: 2:4
    leave_enabled: no
"""
    spec, _ = warned(text)
    (component,), (policy,) = spec.components, spec.policies
    assert component.args["mask_type"] == "2:4" and component.args["init_sparsity"] == 0.5
    assert policy.args == {"leave_enabled": False}


@pytest.mark.parametrize(
    ("tag", "rest"),
    [
        ("TrainableParamsModifier", "trainable: false, params_strict: false"),
        ("SetParamModifier", "val: 0.5, params_strict: false"),
        ("PowerpropagationModifier", "start_epoch: 0, end_epoch: 1, alpha: 2.0, strict: false"),
    ],
)
def test_names_may_match_nothing_where_the_recipe_says_so(tag, rest):
    text = f"modifiers:\n  - !{tag} {{params: [nothing.weight, 0.weight], {rest}}}\n"
    model = nn.Sequential(nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(ScheduleWarning, match=r"<text>:2:\d+: .*'nothing.weight' matches no parameter"):
        scheduler = distiller.file_config(model, optimizer, text)
    assert len(scheduler.entries) == 1
    assert scheduler.entries[0].policy.weights == ["0.weight"]
    strict = text.replace("strict: false", "strict: true")
    with pytest.raises(ScheduleError, match="matches no parameter"):
        distiller.file_config(model, optimizer, strict)
    with pytest.warns(ScheduleWarning, match="matches no parameter"):  # or where the loader is told so
        distiller.file_config(model, optimizer, strict, on_unmatched="warn")
    with pytest.raises(ScheduleError, match="strict is true or false, got 3"):
        distiller.file_config(model, optimizer, text.replace("strict: false", "strict: 3"))


@pytest.mark.parametrize("fuse", [True, False])
def test_quantizers_of_schedules_become_properties_that_recipes_have(fuse):
    schedule = (
        "version: 1\nquantizers:\n  q: {class: SchemeQuantizer, ignore: [fc], fuse: " + str(fuse).lower() + "}\n"
        "policies:\n  - quantizer: {instance_name: q}\n    starting_epoch: 1\n    ending_epoch: -1\n"
        "    frequency: 0\n    trigger: step\n"
    )
    text = str(ScheduledModifierManager.from_yaml(schedule))
    assert "fuse:" not in text
    assert ("model_fuse_fn_name: no_fuse" in text) is not fuse
    assert read_schedule(text).components[0].args["fuse"] is fuse
