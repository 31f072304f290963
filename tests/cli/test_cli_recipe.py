"""``distiller-ng recipe translate``."""

from __future__ import annotations

import subprocess
import sys

import pytest

from distiller_ng.cli.main import main
from distiller_ng.config import read_schedule

RECIPE = """\
n: 3
modifiers:
  - !EpochRangeModifier {start_epoch: 0, end_epoch: eval(n)}
  - !MagnutidePruningModifier
    params: [fc]
    init_sparsity: 0.05
    final_sparsity: 0.8
    start_epoch: 0
    end_epoch: 2
    update_frequency: 1
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_a_recipe_becomes_a_schedule(recipe, capsys, tmp_path):
    assert main(["recipe", "translate", str(recipe), "--args", "n=5"]) == 0
    out, err = capsys.readouterr()
    assert "is taken for !MagnitudePruningModifier" in err and err.startswith("warning: ")
    schedule = tmp_path / "schedule.yaml"
    schedule.write_text(out)
    spec = read_schedule(schedule)
    assert spec.problems == () and len(spec.policies) == 2
    assert spec.policies[1].timing == {"starting_epoch": 0.0, "ending_epoch": 5.0, "frequency": 0.0, "trigger": "step"}


def test_and_back(recipe, capsys, tmp_path):
    schedule, back = tmp_path / "schedule.yaml", tmp_path / "back.yaml"
    recipe.write_text(RECIPE.replace("Magnutide", "GM"))
    assert main(["recipe", "translate", str(recipe), "--output", str(schedule)]) == 0
    assert main(["recipe", "translate", str(schedule), "--to", "recipe", "--output", str(back)]) == 0
    assert capsys.readouterr().out == ""
    assert main(["recipe", "translate", str(recipe), "--to", "recipe"]) == 0
    assert capsys.readouterr().out == back.read_text()
    assert "- !GMPruningModifier" in back.read_text() and "params: [fc]" in back.read_text()


def test_mistakes_are_told_and_end_in_1(recipe, capsys):
    recipe.write_text(RECIPE.replace("eval(n)", "eval(m)"))
    assert main(["recipe", "translate", str(recipe)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and f"{recipe}:3:53: modifiers[0].end_epoch: there is no variable 'm'" in err
    assert main(["recipe", "translate", str(recipe), "--args", "q=1"]) == 1
    assert main(["recipe", "translate", str(recipe.parent / "missing.md")]) == 1
    assert "file not found" in capsys.readouterr().err


def test_a_wrong_command_line_ends_in_2(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["recip"])
    assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "translate SparseML recipes" in capsys.readouterr().out


@pytest.mark.slow
def test_as_a_program(recipe):
    done = subprocess.run(
        [sys.executable, "-m", "distiller_ng.cli", "recipe", "translate", str(recipe)], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("version: 1\n")
