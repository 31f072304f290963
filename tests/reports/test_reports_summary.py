"""Sparsity, module and attribute summaries and their common entry point."""

import csv
import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.reports import (
    PICTURES,
    SUMMARIES,
    Table,
    attributes_summary,
    attributes_summary_tbl,
    masks_sparsity_summary,
    masks_sparsity_tbl_summary,
    model_summary,
    modules_summary,
    modules_tbl_summary,
    weights_sparsity_summary,
)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=(1, 2), padding_mode="reflect"),
        nn.ReLU(),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)),
    )


def test_masks():
    mask = torch.ones(2, 1, 3, 3)
    mask[1] = 0
    maskers = {"0.weight": SimpleNamespace(mask=mask), "2.2.weight": SimpleNamespace(mask=None)}
    scheduler = SimpleNamespace(zeros_mask_dict=maskers)
    table = masks_sparsity_summary(model(), scheduler)
    assert table["Name"] == ["0.weight", "2.2.weight", "Total sparsity:"]
    assert table["NNZ (sparse)"] == [9, 6, 15] and table["3D (%)"] == [50, 0, 0]
    assert table["Fine (%)"] == [50, 0, pytest.approx(100 * 9 / 24)]
    assert masks_sparsity_tbl_summary(model(), scheduler) == str(table)
    assert masks_sparsity_summary(model(), scheduler, (4,))["Name"] == ["0.weight", "Total sparsity:"]
    del maskers["2.2.weight"]
    assert masks_sparsity_summary(model(), scheduler)["Fine (%)"][1] == 0


def test_modules():
    table = modules_summary(nn.DataParallel(model()))
    assert table.rows == (
        ("0", "Conv2d"), ("1", "ReLU"), ("2.0", "AdaptiveAvgPool2d"), ("2.1", "Flatten"), ("2.2", "Linear")
    )  # fmt: skip
    assert modules_tbl_summary(model()) == str(table)


def test_attributes():
    assert attributes_summary(model())["Attributes"][0] == (
        "1, 2, kernel_size=(3, 3), stride=(1, 1), padding=(1, 2), padding_mode=reflect"
    )
    table = attributes_summary(model(), ["stride", "padding"])
    assert table["Attributes"][0] == "1, 2, kernel_size=(3, 3), padding_mode=reflect"
    graph = SimpleNamespace(ops={"conv1": {"name": "conv1", "type": "Conv", "attrs": {"MACs": 5, "pads": [1, 1]}}})
    assert attributes_summary(graph, ["pads"]).rows == (("conv1", "Conv", "MACs=5"),)
    assert "MACs=5" in attributes_summary_tbl(graph)


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_sparsity_summary_is_logged_and_written(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="distiller_ng.reports"):
        table = model_summary(model(), "sparsity", logdir=tmp_path)
    assert table == weights_sparsity_summary(model())
    assert read_csv(tmp_path / "weights_sparsity.csv")[0][:2] == ["Name", "Shape"]
    assert "Total sparsity: 0.00" in caplog.text and "2.2.weight" in caplog.text


def test_compute_summary(tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = model()
    state = torch.get_rng_state()
    with caplog.at_level(logging.INFO, logger="distiller_ng.reports"):
        table = model_summary(net, "compute", "mnist")
    assert torch.equal(state, torch.get_rng_state())  # a training run's random numbers are not shifted
    assert table["MACs"] == [2 * 28 * 30 * 9, 6] and "Total MACs: 15,126" in caplog.text
    assert list(tmp_path.iterdir()) == []  # nothing is written unless asked for
    net.input_shape = (1, 1, 4, 4)
    assert model_summary(net, "compute")["MACs"] == [2 * 4 * 6 * 9, 6]
    assert model_summary(net, "compute", "digits")["MACs"][0] == 2 * 8 * 10 * 9
    assert model_summary(net, "compute", dummy_input=torch.ones(1, 1, 5, 5))["MACs"][0] == 2 * 5 * 7 * 9


def test_text_summaries(tmp_path):
    assert model_summary(model(), "model") == str(model())
    assert isinstance(model_summary(model(), "modules", logdir=tmp_path), Table)
    assert read_csv(tmp_path / "modules.csv")[1] == ["0", "Conv2d"]


def test_graph_summaries(tmp_path, caplog):
    net = model()
    with caplog.at_level(logging.INFO, logger="distiller_ng.reports"):
        table = model_summary(net, "connectivity", dummy_input=torch.ones(1, 1, 5, 5), logdir=tmp_path)
        attributes = model_summary(net, "attributes", "mnist", tmp_path)
    assert table["Type"] == ["Pad", "Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    assert "kernel_shape=[3, 3]" in attributes["Attributes"][1]
    assert read_csv(tmp_path / "connectivity.csv")[1][0] == table["Name"][0]
    assert len(read_csv(tmp_path / "attributes.csv")) == 7
    assert "GlobalAveragePool" in caplog.text


@pytest.mark.parametrize("what", ["png", "png_w_params"])
def test_pictures(tmp_path, caplog, what):
    net = model()
    net.input_shape = (1, 1, 8, 8)
    with caplog.at_level(logging.INFO, logger="distiller_ng.reports"):
        path = model_summary(net, what, logdir=tmp_path / "run")
    assert path == str(tmp_path / "run" / "model.png") and path in caplog.text
    assert (tmp_path / "run" / "model.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("onnx", "allowed: attributes, compute, connectivity, model, modules, png, png_w_params, sparsity"),
        ("png_with_params", "Did you mean 'png_w_params'"),
        ("sparsty", "Did you mean 'sparsity'"),
    ],
)
def test_unknown_summaries(what, message):
    with pytest.raises(ArgumentError, match=message):
        model_summary(model(), what)


@pytest.mark.parametrize("what", ["compute", "connectivity", "attributes", "png", "png_w_params"])
def test_summaries_without_an_input_shape(what):
    with pytest.raises(ArgumentError, match="set model.input_shape"):
        model_summary(model(), what)
    with pytest.raises(ArgumentError, match="unknown data set 'my-data'.*register_dataset_shape"):
        model_summary(model(), "compute", "my-data")


def test_the_names_of_the_summaries():
    assert list(SUMMARIES) == ["sparsity", "compute", "model", "modules", "connectivity", "attributes"]
    assert PICTURES == {"png": False, "png_w_params": True}
