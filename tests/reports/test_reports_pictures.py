"""Connectivity tables and pictures of a model's operations."""

from __future__ import annotations

import builtins
import re

import pytest
import torch
from torch import nn

import distiller_ng as distiller
from distiller_ng.errors import ArgumentError, GraphError
from distiller_ng.graph.summary_graph import SummaryGraph
from distiller_ng.model_summaries import (
    connectivity_summary,
    connectivity_summary_verbose,
    connectivity_tbl_summary,
    create_png,
    draw_img_classifier_to_file,
    draw_model_to_file,
)
from distiller_ng.models import create_model
from distiller_ng.reports import attributes_summary, create_dot
from distiller_ng.reports._layered_layout import layered_layout


class Branched(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(4, 2, 1, bias=False)

    def forward(self, x):
        x = self.a(x)
        return self.c(torch.cat([x, self.b(x)], 1)) + x


@pytest.fixture(scope="module")
def graph():
    return SummaryGraph(Branched(), torch.randn(1, 1, 4, 4))


def test_connectivity_tables(graph):
    table = connectivity_summary(graph)
    assert table.columns == ("Name", "Type", "Inputs", "Outputs")
    assert table.rows[0] == ("a", "Conv", "input.1, a.weight, a.bias", "a:0")
    assert table["Name"] == ["a", "b", "top_level_op", "c", "top_level_op_Add_1"]
    assert table["Inputs"][-1] == "c:0, a:0"
    verbose = connectivity_summary_verbose(graph)
    assert verbose["Inputs"][0] == "input.1 (1, 1, 4, 4), a.weight (2, 1, 1, 1), a.bias (2)"
    assert verbose["Outputs"][2] == "top_level_op:0 (1, 4, 4, 4)"
    assert connectivity_tbl_summary(graph) == str(table)
    assert connectivity_tbl_summary(graph, verbose=True) == str(verbose)
    assert "MACs=32" in attributes_summary(graph)["Attributes"][0]


def test_every_operation_has_a_row():
    model = create_model(False, "cifar10", "resnet20_cifar", parallel=False)
    graph = SummaryGraph(model, distiller.get_dummy_input("cifar10"))
    assert len(connectivity_summary(graph)) == len(connectivity_summary_verbose(graph)) == len(graph.ops) == 73


def test_graphviz_text(graph):
    text = create_dot(graph, rankdir="LR", styles={"b": {"fillcolor": "gray", "shape": "oval"}})
    assert text.startswith("digraph model {\n  rankdir=LR;\n")
    edges = re.findall(r'"(.+)" -> "(.+)";', text)
    assert edges == [
        ("input.1", "a"), ("a", "b"), ("a", "top_level_op"), ("b", "top_level_op"), ("top_level_op", "c"),
        ("c", "top_level_op_Add_1"), ("a", "top_level_op_Add_1"),
    ]  # fmt: skip
    assert r'"b" [label="b\nConv\n(1, 2, 4, 4)", shape="oval", style="rounded,filled", fillcolor="gray"];' in text
    with_parameters = create_dot(graph, display_param_nodes=True)
    assert r'"a.bias" [label="a.bias\n(2)", shape="ellipse"' in with_parameters
    assert '"a.weight" -> "a";' in with_parameters


@pytest.mark.parametrize("rankdir", ["TB", "BT", "LR", "RL"])
def test_png_bytes(graph, rankdir):
    data = create_png(graph, True, rankdir, {"a": {"fillcolor": "#ff0000", "fontcolor": "white", "shape": "oval"}})
    assert data.startswith(b"\x89PNG")
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert (width > 2 * height) == (rankdir in ("LR", "RL"))


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("model.png", b"\x89PNG"),
        ("model", b"\x89PNG"),
        ("model.SVG", b"<?xml"),
        ("model.pdf", b"%PDF"),
        ("model.dot", b"digraph"),
        ("model.gv", b"digraph"),
    ],
)
def test_the_ending_decides(graph, tmp_path, name, start):
    draw_model_to_file(graph, tmp_path / "new" / name)
    assert (tmp_path / "new" / name).read_bytes().startswith(start)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


def test_a_classifier_by_data_set_or_shape(tmp_path):
    model = create_model(False, "mnist", "simplenet_mnist", parallel=False)
    draw_img_classifier_to_file(model, tmp_path / "a.dot", "mnist")
    assert "(1, 1, 28, 28)" in (tmp_path / "a.dot").read_text()
    draw_img_classifier_to_file(nn.DataParallel(model), str(tmp_path / "b.dot"), None, True, input_shape=(2, 1, 28, 28))
    assert "(2, 1, 28, 28)" in (tmp_path / "b.dot").read_text()
    with pytest.raises(GraphError, match="cannot be traced"):
        draw_img_classifier_to_file(model, tmp_path / "c.dot", "cifar10")
    assert not (tmp_path / "c.dot").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rankdir": "top"}, "rankdir='top'.*TB, BT, LR, RL"),
        ({"styles": {"aa": {}}}, "no operation 'aa'"),
        ({"styles": {"a": {"fillcolor": "no-colour"}}}, "'no-colour' is no colour"),
    ],
)
def test_wrong_options(graph, options, message):
    with pytest.raises(ArgumentError, match=message):
        create_png(graph, **options)


def test_other_mistakes(graph, tmp_path, monkeypatch):
    with pytest.raises(ArgumentError, match=r"'.jpeg'; allowed: .png, .svg, .pdf, .dot, .gv"):
        draw_model_to_file(graph, tmp_path / "model.jpeg")
    with pytest.raises(ArgumentError, match=r"SummaryGraph\(model, x\)"):
        connectivity_summary(Branched())
    with pytest.raises(ArgumentError, match="model.input_shape"):
        draw_img_classifier_to_file(Branched(), tmp_path / "model.png")
    usual = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return usual(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ArgumentError, match=r"pip install 'distiller_ng\[plots\]'"):
        draw_model_to_file(graph, tmp_path / "model.png")
    draw_model_to_file(graph, tmp_path / "model.dot")
    assert [path.name for path in tmp_path.iterdir()] == ["model.dot"]


def test_layout():
    layout = layered_layout("abc", [("a", "b"), ("a", "c")])
    assert layout.places == {"a": (0.5, 0), "b": (0.0, 1), "c": (1.0, 1)}
    assert (layout.width, layout.layers) == (1.0, 2)
    long = layered_layout("abcd", [("a", "b"), ("b", "c"), ("a", "c"), ("d", "c")])
    assert [rank for _, rank in long.routes[("a", "c")]] == [0, 1, 2]
    assert long.places["d"][1] == 1  # right above what reads it
    b, d, passing = long.places["b"][0], long.places["d"][0], long.routes[("a", "c")][1][0]
    assert abs(b - d) >= 1 and min(abs(b - passing), abs(d - passing)) >= 0.58 - 1e-9
    assert layered_layout("", []).layers == 0


def test_a_model_without_operations(tmp_path):
    draw_model_to_file(SummaryGraph(nn.Identity(), torch.ones(1)), tmp_path / "model.png")
    assert (tmp_path / "model.png").read_bytes().startswith(b"\x89PNG")
