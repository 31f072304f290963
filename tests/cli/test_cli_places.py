"""Places that cannot be written to are refused before anything is measured."""

from __future__ import annotations

import os

import pytest
from conftest_cli import fails_with

from distiller_ng.cli import _places
from distiller_ng.cli._places import check_file_place, check_folder_place
from distiller_ng.errors import ArgumentError

DATA = ["--evaluate", "tiny_net.py:fails"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sensitivity", *DATA, "--csv", "there"], "--csv there: this is a folder; name a file in it"),
        (["sensitivity", *DATA, "--png", "a.txt"], "--png a.txt: the name must end in .png, .svg or .pdf"),
        (["sensitivity", *DATA, "--results-file", "there"], "--results-file there: this is a folder"),
        (["search", *DATA, "--budget", "macs=0.5", "-o", "agp.yaml/a.yaml"], "'agp.yaml' is a file, not a folder"),
        (["search", *DATA, "--budget", "macs=0.5", "macs=0.4"], "there is a budget of macs already"),
        (["init", "--target", "macs=0.5", "-o", "agp.yaml/a.yaml"], "'agp.yaml' is a file, not a folder"),
        (["quantize", "-o", "there"], "-o there: this is a folder"),
        (["export", "--to", "onnx", "-o", "there"], "-o there: this is a folder"),
        (["calibrate", "-o", "there"], "-o there: this is a folder"),
        (["plan", "agp.yaml", "--picture", "agp.yaml/p.svg"], "'agp.yaml' is a file, not a folder"),
        (["summary", "-o", "agp.yaml"], "--out-dir agp.yaml: 'agp.yaml' is a file, not a folder"),
    ],
)
def test_a_place_that_cannot_be(folder, own, capsys, words, said):
    (folder / "there").mkdir()
    fails_with(capsys, [*words, *own], said)


def test_report_and_recipe_look_too(folder, capsys):
    (folder / "there").mkdir()
    fails_with(capsys, ["report", ".", "-o", "there"], "-o there: this is a folder")
    fails_with(capsys, ["recipe", "translate", "agp.yaml", "--output", "there"], "--output there: this is a folder")


def test_missing_folders_are_made_later_and_locked_ones_refused(tmp_path, monkeypatch):
    check_file_place(str(tmp_path / "new" / "deeper" / "a.csv"), "--csv")
    check_folder_place(str(tmp_path / "new"), "-o")
    check_file_place(None, "--csv")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(_places.os, "access", lambda path, mode: mode == os.R_OK)
    with pytest.raises(ArgumentError, match="nothing can be written in .*: permission denied"):
        check_file_place(str(tmp_path / "new" / "a.csv"), "--csv")
