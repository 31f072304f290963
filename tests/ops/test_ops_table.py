"""Tables: text, CSV, JSON, rich."""

import csv
import io
import json
import os

import pytest

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.files import write_text_atomically
from distiller_ng.ops.table import Table, pretty_int, size_to_str

TABLE = Table("Layers", ("Name", "MACs", "Share"), (("conv[1]", 352800, 0.5), ("fc, last", 840, None)), decimals=2)


def test_text_is_aligned():
    assert str(TABLE).splitlines() == [
        "Layers",
        "Name        MACs  Share",
        "--------  ------  -----",
        "conv[1]   352800   0.50",
        "fc, last     840      -",
    ]


def test_columns_and_records():
    assert TABLE["MACs"] == TABLE.column("MACs") == [352800, 840]
    assert len(TABLE) == 2 and TABLE.records()[1] == {"Name": "fc, last", "MACs": 840, "Share": None}
    with pytest.raises(ArgumentError, match="no column 'MAC'. Did you mean 'MACs'?"):
        TABLE.column("MAC")


def test_ragged_rows_are_refused():
    with pytest.raises(ArgumentError, match="row 0 has 1 cells for 2 columns"):
        Table("t", ("a", "b"), ((1,),))


def test_csv(tmp_path):
    path = tmp_path / "new" / "layers.csv"
    text = TABLE.to_csv(path)
    assert path.read_text() == text
    assert list(csv.reader(io.StringIO(text))) == [
        ["Name", "MACs", "Share"],
        ["conv[1]", "352800", "0.5"],
        ["fc, last", "840", ""],
    ]


def test_json(tmp_path):
    table = Table("t", ("x",), ((float("nan"),), (1.5,), (True,)))
    path = tmp_path / "t.json"
    loaded = json.loads(table.to_json(path))
    assert loaded == {"title": "t", "columns": ["x"], "rows": [{"x": None}, {"x": 1.5}, {"x": True}]}
    assert json.loads(path.read_text()) == loaded


def test_rich_shows_every_cell():
    from rich.console import Console

    buffer = io.StringIO()
    Console(file=buffer, width=80).print(TABLE.to_rich())
    shown = buffer.getvalue()
    assert "conv[1]" in shown and "352800" in shown and "Layers" in shown


def test_empty_table():
    assert str(Table("", ("a",), ())) == "a\n-"


def test_formatting():
    assert size_to_str((16, 3, 3, 3)) == "(16, 3, 3, 3)"
    assert pretty_int(1234567) == "1,234,567"


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f.txt"
    write_text_atomically(path, "old\r\n")
    assert path.read_bytes() == b"old\r\n"

    def refuse(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_text_atomically(path, "new")
    assert path.read_text() == "old\n" and [p.name for p in tmp_path.iterdir()] == ["f.txt"]
