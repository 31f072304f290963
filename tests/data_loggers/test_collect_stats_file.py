"""The calibration file: Distiller's form, old files, wrong files, files of another model."""

import os

import pytest
import torch
import yaml
from torch import nn

from distiller_ng.data_loggers import (
    QuantCalibrationStatsCollector,
    collect_quant_stats,
    collector_context,
    load_quant_stats,
    save_quant_stats,
)
from distiller_ng.errors import CalibrationError
from distiller_ng.models import create_model

OLD_FILE = """\
module.0:
  inputs:
    0:
      min: -2.5
      max: 2.5
      avg_min: -1.0e-05
      avg_max: 1e-5
      mean: 0.0
      std: 1.0
      shape: (2, 3, 8, 8)
  output:
    min: 0.0
    max: 4
    avg_min: 0.0
    avg_max: 3.0
    mean: 1.0
    std: 1.0
    shape: (2, 4, 8, 8)
"""


def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2)).eval()


@pytest.fixture
def stats():
    torch.manual_seed(0)
    return collect_quant_stats(small(), lambda model: model(torch.randn(2, 3, 8, 8)))


def test_seed_code_yields_a_complete_file(tmp_path):
    import distiller_ng as distiller
    from distiller_ng.data_loggers.collector import collector_context

    model = small()
    distiller.utils.assign_layer_fq_names(model)
    collector = distiller.data_loggers.QuantCalibrationStatsCollector(model)
    with collector_context(collector):
        for _ in range(3):
            model(torch.randn(2, 3, 8, 8))
    yaml_path = tmp_path / "some" / "dir" / "quantization_stats.yaml"
    assert collector.save(str(yaml_path)) == str(yaml_path)
    content = yaml.safe_load(yaml_path.read_text())
    keys = ["min", "max", "avg_min", "avg_max", "mean", "std", "b", "shape", "total_numel"]
    assert list(content) == ["0", "1", "2", "3"]
    for entry in content.values():
        assert list(entry) == ["inputs", "output"] and list(entry["inputs"]) == [0]
        assert list(entry["output"]) == list(entry["inputs"][0]) == keys
    assert content["0"]["inputs"][0]["shape"] == "(2, 3, 8, 8)"
    assert "    0:\n      min: " in yaml_path.read_text()


def test_round_trip_is_exact_and_the_ending_is_added(tmp_path, stats):
    path = save_quant_stats(tmp_path / "acts", stats)
    assert path == tmp_path / "acts.yaml" and os.listdir(tmp_path) == ["acts.yaml"]
    assert load_quant_stats(path, small()) == stats
    assert load_quant_stats(str(path)) == stats
    assert load_quant_stats(stats, small()) == stats


def test_histograms_stay_out_of_the_file(tmp_path):
    model = small()
    rich = collect_quant_stats(model, lambda model: model(torch.randn(2, 3, 8, 8)), tmp_path, histograms=True)
    assert "histogram" in rich["0"]["output"]
    plain = load_quant_stats(tmp_path / "acts_quantization_stats.yaml", model)
    assert "histogram" not in plain["0"]["output"]
    assert "histogram" in load_quant_stats(rich, model)["0"]["output"]


def test_old_files_load(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(OLD_FILE)
    found = load_quant_stats(path, nn.Sequential(nn.Conv2d(3, 4, 3)))
    assert found["0"]["inputs"][0] == {
        "min": -2.5, "max": 2.5, "avg_min": -1e-5, "avg_max": 1e-5, "mean": 0.0, "std": 1.0, "shape": "(2, 3, 8, 8)"
    }  # fmt: skip
    assert found["0"]["output"]["max"] == 4


def test_wrapped_models_and_wrapped_names(tmp_path, stats):
    wrapped = {f"module.{name}": entry for name, entry in stats.items()}
    assert load_quant_stats(wrapped, small()) == stats
    assert load_quant_stats(stats, nn.DataParallel(small())) == stats


def test_statistics_of_another_model_are_refused_with_the_names(stats):
    with pytest.raises(CalibrationError, match="another model") as refused:
        load_quant_stats(stats, create_model(False, "digits", "digits_cnn"))
    assert "only the statistics have: 0, 1, 2, 3" in str(refused.value)
    assert "only the model has: conv1" in str(refused.value)
    deeper = nn.Sequential(*small(), nn.Linear(2, 2))
    with pytest.raises(CalibrationError, match=r"only the model has: 4\..*allow_missing"):
        load_quant_stats(stats, deeper)
    assert load_quant_stats(stats, deeper, allow_missing=True) == stats
    stats["0.add"] = stats["1"]
    with pytest.raises(CalibrationError, match="only the statistics have: 0.add"):
        load_quant_stats(stats, small())
    assert "0.add" in load_quant_stats(stats, small(), extra_names=["0.add"])


def test_the_same_names_with_other_widths_are_refused(stats):
    wider = nn.Sequential(nn.Conv2d(6, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
    with pytest.raises(CalibrationError, match="0 takes 6 channels.*3 takes 128 channels"):
        load_quant_stats(stats, wider)


def test_layers_that_never_run_on_their_own_need_no_statistics():
    model = nn.Sequential(nn.MultiheadAttention(4, 2))
    stats = collect_quant_stats(model, lambda model: model[0](*[torch.randn(3, 1, 4)] * 3))
    assert list(load_quant_stats(stats, model)) == ["0"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping"),
        ("- 1", "expected a mapping"),
        ("a: [1", "not valid YAML"),
        ("conv: 3", "conv: expected a mapping with 'inputs' and 'output'"),
        ("conv: {output: {min: 1}}", r"conv.output: needs at least 'min' and 'max'"),
        ("conv: {output: {min: 1, max: x}}", r"conv.output.max: expected a number, got 'x'"),
        ("conv: {output: {min: .nan, max: 1}}", r"conv.output.min: expected a finite number"),
        ("conv: {output: {min: 0, max: .inf}}", r"conv.output.max: expected a finite number"),
        ("conv: {output: {min: 2, max: 1}}", "min 2 is above max 1"),
        ("conv: {inputs: {x: {min: 0, max: 1}}}", "'x' is no index"),
        ("conv: {inputs: {0: {min: true, max: 1}}}", r"conv.inputs\[0\].min: expected a finite number"),
        ("conv: !!python/object:os.system {}", "not valid YAML"),
    ],
)
def test_files_that_are_wrong(tmp_path, text, message):
    path = tmp_path / "stats.yaml"
    path.write_text(text)
    with pytest.raises(CalibrationError, match=message):
        load_quant_stats(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_quant_stats(tmp_path / "none.yaml")


def test_a_failed_save_leaves_the_old_file(tmp_path, stats):
    path = save_quant_stats(tmp_path / "acts.yaml", stats)
    before = path.read_text()
    with pytest.raises(CalibrationError):
        save_quant_stats(path, {"conv": {"output": {"min": float("nan"), "max": 1.0}}})
    assert path.read_text() == before
    collector = QuantCalibrationStatsCollector(small())
    with collector_context(collector):
        pass
    with pytest.raises(CalibrationError, match="nothing"):
        collector.save(path)
    assert path.read_text() == before
