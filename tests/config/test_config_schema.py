"""The editor schema is current, accepts what the loader accepts and refuses what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from config_helpers import VALID, load

from distiller_ng.config.kinds import KINDS, NESTED
from distiller_ng.config.schema import main, schedule_schema, write_schema
from distiller_ng.pruning.base import PRUNERS

__all__ = ["load"]

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "schedules" / "schedule.schema.json"
SCHEMA_LINE = "# yaml-language-server: $schema=schedule.schema.json"


@pytest.fixture(scope="module")
def validator():
    schema = schedule_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_committed_schema_is_current():
    assert json.loads(COMMITTED.read_text()) == json.loads(json.dumps(schedule_schema())), (
        "run: python -m distiller_ng.config.schema --write schedules/schedule.schema.json"
    )


def test_our_own_schedules_name_the_schema_and_fit_it(validator):
    for path in sorted((ROOT / "schedules").glob("**/*.yaml")):
        text = path.read_text()
        assert any(line.endswith("schedule.schema.json") for line in text.splitlines()[:3]), f"{path}: {SCHEMA_LINE}"
        validator.validate(yaml.safe_load(text))


def test_every_class_has_a_branch_with_its_arguments():
    definitions = schedule_schema()["$defs"]
    tables = {kind.key: kind.classes for kind in KINDS.values() if kind.classes is not None}
    tables |= {kind.__name__: table for kind, table in NESTED.items()}
    for key, table in tables.items():
        branches = {b["if"]["properties"]["class"]["const"]: b["then"] for b in definitions[key].get("allOf", ())}
        built_in = {name for name in table.names() if table.get(name).is_built_in}
        built_in -= {"LambdaLR", "MultiplicativeLR"}  # they need a function, which no file can hold
        assert set(branches) == built_in
        for name in built_in:
            known = set(branches[name]["properties"]) - {"class"}
            taken = table.get(name)
            assert known <= set(taken.arguments) | set(taken.ignored)
            assert set(branches[name].get("required", [])) <= known


def test_a_branch_describes_its_arguments():
    definitions = schedule_schema()["$defs"]
    agp = next(b["then"] for b in definitions["pruner"]["allOf"] if b["then"]["title"] == "AutomatedGradualPruner")
    weights, scope = agp["properties"]["weights"], agp["properties"]["scope"]
    assert {"type": "string"} in weights["anyOf"] and "targets" in weights["description"]
    assert scope["enum"] == ["layer", "global"] and scope["default"] == "layer"
    assert agp["additionalProperties"] is False and "name" not in agp["properties"]
    assert {"$ref": "#/$defs/SparsitySchedule"} in agp["properties"]["schedule"]["anyOf"]
    assert "rate_scheduler_factory" not in agp["properties"], "only Python can give it"


EVERYTHING = """\
version: 1
pruners:
  a: {class: AutomatedGradualPruner, schedule: {class: AGP, final_sparsity: 0.5}, weights: fc.weight}
  b: {class: SensitivityPruner, sensitivities: {fc.weight: 1, '*': 0.5}}
regularizers:
  l1: {class: L1Regularizer, reg_regims: {fc.weight: 0.1, conv1.weight: [0.1, 3D]}, threshold_criteria: Max}
lr_schedulers:
  s: {class: StepLR, step_size: 3, verbose: true, unit: step}
  p: {class: PolynomialLR, T_max: 5, power: 2}
  q: {class: PolynomialLR, total_iters: 5}
extensions:
policies:
  - pruner: {instance_name: a, args: {keep_mask: True, levels: 0.5}}
    starting_epoch: 0
    ending_epoch: 3.5
    frequency: 0.5
  - pruner: {instance_name: b, epochs: [4]}
  - regularizer: {instance_name: l1, args: }
    epochs: [0, 1]
  - lr_scheduler: {instance_name: s, args: {unit: step}}
    starting_epoch: 0
    ending_epoch: -1
"""


def test_a_schedule_with_everything_fits(validator):
    validator.validate(yaml.safe_load(EVERYTHING))


def test_the_loader_accepts_it_too(load):
    assert load(EVERYTHING).problems == ()


WRONG = [
    ("prunners", "pruners:", "prunners:"),
    ("class", "AutomatedGradualPruner", "AutomatedGradualPrunner"),
    ("argument", "final_sparsity", "final_sparsty"),
    ("type", "final_sparsity: 0.9", "final_sparsity: high"),
    ("boolean", "final_sparsity: 0.9", "final_sparsity: true"),
    ("no class", "    class: AutomatedGradualPruner\n", ""),
    ("policy key", "- pruner:", "- prunner:"),
    ("policy argument", "instance_name: fine", "instance_name: fine, args: {keepmask: true}"),
    ("instance key", "instance_name", "instance"),
    ("timing key", "frequency", "frequencey"),
    ("missing end", "    ending_epoch: 5\n", ""),
    ("both times", "frequency: 2", "epochs: [1]"),
    ("injected", "weights:", "name: x\n    weights:"),
    ("negative epoch", "starting_epoch: 0", "starting_epoch: -2"),
    ("zero frequency", "frequency: 2", "frequency: 0"),
]


@pytest.mark.parametrize(("old", "new"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_mistakes_are_refused_as_by_the_loader(validator, load, old, new):
    assert old in VALID
    text = VALID.replace(old, new, 1)
    assert not validator.is_valid(yaml.safe_load(text))
    assert load(text).problems != ()


def test_classes_of_plug_ins_are_left_to_an_option():
    @PRUNERS.register("PluggedInPrunerOfTheSchemaTest", injected=("name",))
    class Plugged:
        """Does nothing."""

        def __init__(self, name: str, weights: list[str]) -> None: ...

    try:
        assert "PluggedInPrunerOfTheSchemaTest" not in json.dumps(schedule_schema())
        assert "PluggedInPrunerOfTheSchemaTest" in json.dumps(schedule_schema(plugins=True))
    finally:
        PRUNERS._entries.pop("PluggedInPrunerOfTheSchemaTest")


def test_the_command_prints_or_writes(tmp_path, capsys):
    assert main([]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert main(["--write", str(tmp_path / "s.json")]) == 0
    assert json.loads((tmp_path / "s.json").read_text()) == printed == json.loads(json.dumps(schedule_schema()))
    write_schema(tmp_path / "s.json", {"a": 1})
    assert (tmp_path / "s.json").read_text() == '{\n "a": 1\n}\n' and list(tmp_path.iterdir()) == [tmp_path / "s.json"]
