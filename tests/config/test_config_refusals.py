"""Files that are no schedules are refused by what they seem to be."""

from __future__ import annotations

import pytest
from config_helpers import VALID, new_model_and_optimizer

from distiller_ng.config import FRONTENDS, Frontend, ScheduleSpec, dict_config, file_config, read_schedule
from distiller_ng.config.frontends.base import frontend_for
from distiller_ng.errors import ScheduleError

STATISTICS = """
conv1:
  inputs:
    0: {min: -2.1, max: 2.6, avg_min: -2.0, avg_max: 2.5, mean: 0.0, std: 1.0, shape: '(256, 3, 224, 224)'}
  output: {min: -9.3, max: 10.2, avg_min: -7.1, avg_max: 8.2, mean: 0.1, std: 0.9, shape: '(256, 64, 112, 112)'}
relu:
  output: {min: 0.0, max: 10.2, avg_min: 0.0, avg_max: 8.2, mean: 0.4, std: 0.6, shape: '(256, 64, 112, 112)'}
"""
FILES = [
    (STATISTICS, "calibration statistics"),
    ("network:\n  resnet20_cifar: [layer1.0.conv1, layer1.1.conv1]\n", "search space for automatic compression"),
    ("site_name: Docs\ntheme: readthedocs\nnav:\n  - Home: index.md\n", "MkDocs"),
    ('{"name": "app", "scripts": {"test": "jest"}}', "JSON about something else"),
    ('{"input_info": {}, "compression": {"algorithm": "quantization"}}', "NNCF"),
    ("model: {name: r}\nquantization: {approach: post_training}\n", "Intel Neural Compressor"),
    ("services:\n  web: {image: x}\n", "Docker Compose"),
    ("apiVersion: v1\nkind: Pod\n", "Kubernetes"),
    ("on: [push]\njobs: {test: {}}\n", "GitHub Actions"),
    ("repos: []\n", "pre-commit"),
    ("channels: [main]\ndependencies: [python]\n", "conda environment"),
    ("fine:\n  class: AutomatedGradualPruner\n", "outside any section"),
    ("a: 1\nb: 2\n", "about something else (its keys: a, b)"),
    ("- pruners\n- policies\n", "The document is a list"),
    ("just words", "The document is 'just words'"),
    ("42", "The document is 42"),
    ("", "The file is empty"),
    ("# only a comment\n", "nothing but comments"),
]


@pytest.mark.parametrize(("text", "words"), FILES, ids=[f[1] for f in FILES])
def test_refused_by_what_it_seems(load, text, words):
    problem = load(text).the_problem()
    assert words in problem.message
    assert "A schedule has at least one of the sections pruners, regularizers" in problem.message
    assert (problem.line, problem.column) == (1, 1)


def test_a_schedule_in_json_is_a_schedule(load):
    text = '{"pruners": {"p": {"class": "SensitivityPruner", "sensitivities": {"fc.weight": 0.5}}},'
    loaded = load(text + ' "policies": [{"pruner": {"instance_name": "p"}, "epochs": [0]}]}')
    assert loaded.problems == () and len(loaded.scheduler.schedule) == 1


def test_a_section_that_is_only_misspelt_is_no_other_kind_of_file(load):
    assert "Did you mean 'pruners'?" in load("prunners: {}\n").the_problem().message


@pytest.mark.parametrize("data", [[], "text", 3, None, [("pruners", {})]])
def test_a_dictionary_that_is_none(data):
    with pytest.raises(ScheduleError, match="^<dict>: a schedule is a mapping of sections"):
        dict_config(*new_model_and_optimizer(), data)


# -- front ends ---------------------------------------------------------------------------------------------------------


def test_a_front_end_of_ones_own_is_asked_before_the_native_one(tmp_path):
    class Tiny(Frontend):
        """Reads ``tiny: N``: prune fc.weight to N per cent."""

        def accepts(self, path, text):
            return path is not None and path.suffix == ".tiny"

        def parse(self, text, *, source):
            from distiller_ng.config.marks import Mark, Marks
            from distiller_ng.config.spec import ComponentSpec, PolicySpec

            level = float(text.split(":")[1]) / 100
            path = ("pruners", "tiny")
            component = ComponentSpec(
                "pruners", "tiny", "SparsityLevelParameterPruner", path, {"levels": {"fc.weight": level}}
            )
            policy = PolicySpec("pruner", "tiny", (), {"epochs": [0]}, {"epochs": ()})
            marks = Marks({}, {(*path, "levels"): Mark(1, 7)}, Mark(1, 1))
            return ScheduleSpec(source, (component,), (policy,), marks)

    FRONTENDS.register("tiny")(Tiny)
    try:
        path = tmp_path / "a.tiny"
        path.write_text("tiny: 50")
        model, optimizer = new_model_and_optimizer()
        scheduler = file_config(model, optimizer, path)
        scheduler.on_epoch_begin(0)
        assert int((scheduler.zeros_mask_dict["fc.weight"].mask == 0).sum()) == 15
        path.write_text("tiny: 500")
        with pytest.raises(ScheduleError, match="a.tiny:1:7: pruners.tiny.levels"):
            file_config(model, optimizer, path)
        assert type(frontend_for(tmp_path / "a.yaml", VALID)).__name__ == "ScheduleYaml"
    finally:
        FRONTENDS._entries.pop("tiny")


def test_reading_needs_no_model(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(VALID)
    spec = read_schedule(path)
    assert [c.class_name for c in spec.components] == ["AutomatedGradualPruner"]
    assert spec.text == VALID and spec.problems == ()
    assert spec.policies[0].timing == {"starting_epoch": 0, "ending_epoch": 5, "frequency": 2}
    again = dict_config(*new_model_and_optimizer(), spec.as_dict())
    assert len(again.schedule) == 1
