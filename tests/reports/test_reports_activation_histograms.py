"""Histograms with the ranges of clippings: data, table, pictures."""

import json
import sys

import pytest
import torch
from torch import nn

from distiller_ng.data_loggers import collect_histograms, collect_quant_stats
from distiller_ng.errors import ArgumentError, CalibrationError
from distiller_ng.ops.linear_quantization import LinearQuantMode
from distiller_ng.reports import activation_histograms_summary


def histogram(counts, low, high):
    edges = torch.linspace(low, high, len(counts) + 1)
    return {"hist": torch.tensor(counts), "bin_centroids": (edges[1:] + edges[:-1]) / 2}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval()


def run(model):
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        model(torch.randn(64, 8, generator=generator))


def test_fraction_outside_and_chosen_ranges():
    collected = {"relu": {"output": histogram([1.0] * 9, 0.0, 9.0)}}
    report = activation_histograms_summary(
        collected, clippings=["NONE"], chosen={("relu", "output"): (0.0, 4.5), ("x", 0): (0.0, 1.0)}
    )
    (tensor,) = report.tensors
    none, chosen = tensor.choices
    assert (tensor.layer, tensor.tensor) == ("relu", "output")
    assert (none.clipping, none.low, none.high, none.outside) == ("NONE", 0.0, 9.0, pytest.approx(0))
    assert (chosen.clipping, chosen.high, chosen.outside) == ("chosen", 4.5, pytest.approx(0.5))
    assert none.sqnr > 40 > chosen.sqnr


def test_everything_the_data_suffices_for(model, tmp_path):
    stats = collect_quant_stats(model, run, save_dir=tmp_path)
    collected = collect_histograms(model, run, save_dir=tmp_path, activation_stats=stats, nbins=256)
    bare = activation_histograms_summary(collected)
    assert [choice.clipping for choice in bare.tensors[0].choices] == ["NONE", "KL", "MSE"]
    full = activation_histograms_summary(collected, stats, num_bits=4, n_stds=2)
    assert [c.clipping for c in full.tensors[0].choices] == ["NONE", "AVG", "GAUSS", "KL", "LAPLACE", "MSE", "N_STD"]
    assert [(one.layer, one.tensor) for one in full.tensors] == [
        ("0", "input 0"), ("0", "output"), ("1", "input 0"), ("1", "output")
    ]  # fmt: skip
    for one in full.tensors:
        best = max(choice.sqnr for choice in one.choices)
        mse = next(choice for choice in one.choices if choice.clipping == "MSE")
        assert mse.sqnr == pytest.approx(best, abs=0.05)
    average = full.tensors[0].choices[1]
    assert (average.low, average.high) == pytest.approx(
        (stats["0"]["inputs"][0]["avg_min"], stats["0"]["inputs"][0]["avg_max"])
    )
    files = tmp_path / "acts_histograms.pt", tmp_path / "acts_quantization_stats.yaml"
    assert activation_histograms_summary(*files, num_bits=4, n_stds=2).table() == full.table()
    symmetric = activation_histograms_summary(collected, mode="symmetric")
    assert symmetric.mode is LinearQuantMode.SYMMETRIC
    assert all(choice.low == -choice.high for one in symmetric.tensors for choice in one.choices)


def test_table(model):
    report = activation_histograms_summary(collect_histograms(model, run), clippings=["NONE", "mse"])
    table = report.table()
    assert table.columns == ("Layer", "Tensor", "Clipping", "Low", "High", "Outside (%)", "SQNR (dB)")
    assert len(table) == 8 and table["Clipping"][:2] == ["NONE", "MSE"]
    assert str(report).startswith("Clipping of activations, 8 bits, ASYMMETRIC_UNSIGNED\n")
    json.loads(table.to_json())


def test_pictures_show_the_ranges(model, tmp_path):
    pytest.importorskip("matplotlib")
    report = activation_histograms_summary(collect_histograms(model, run, nbins=300), clippings=["NONE", "MSE"])
    written = report.draw(tmp_path / "pictures")
    assert [path.name for path in written] == ["0_input_0.svg", "0_output.svg", "1_input_0.svg", "1_output.svg"]
    assert "MSE" in written[0].read_text()
    with pytest.raises(ArgumentError, match=r"\.svg"):
        report.draw(tmp_path, extension=".xyz")


def test_pictures_without_matplotlib(model, tmp_path, monkeypatch):
    report = activation_histograms_summary(collect_histograms(model, run), clippings=["NONE"])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ArgumentError, match="plots"):
        report.draw(tmp_path)
    assert str(report)


def test_constant_activations():
    model = nn.Sequential(nn.ReLU())
    report = activation_histograms_summary(collect_histograms(model, lambda model: model(torch.zeros(2, 3))))
    assert all(choice.outside <= 1 for one in report.tensors for choice in one.choices)
    assert str(report)
    single = activation_histograms_summary({"a": {"output": histogram([5.0], 1.0, 1.0)}}, clippings=["NONE"])
    assert single.tensors[0].choices[0].outside == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"clippings": ["AVG"]}, CalibrationError, "relu: AVG clipping needs"),
        ({"clippings": ["avgg"]}, ArgumentError, "AVG"),
        ({"mode": "sideways"}, ArgumentError, "sideways"),
        ({"num_bits": 0}, ArgumentError, "bits"),
    ],
)
def test_mistakes(arguments, error, message):
    with pytest.raises(error, match=message):
        activation_histograms_summary({"relu": {"output": histogram([1.0] * 9, 0.0, 9.0)}}, **arguments)


def test_files_that_are_none(tmp_path):
    path = tmp_path / "x.pt"
    path.write_text("nothing")
    with pytest.raises(CalibrationError, match="no file of histograms"):
        activation_histograms_summary(path)
    torch.save([1], path)
    with pytest.raises(CalibrationError, match="holds a list"):
        activation_histograms_summary(path)
    for wrong in ({"a": 3}, {"a": {"output": {"hist": torch.ones(2)}}}):
        with pytest.raises(CalibrationError, match="a: "):
            activation_histograms_summary(wrong)
    with pytest.raises(FileNotFoundError):
        activation_histograms_summary(tmp_path / "none.pt")
