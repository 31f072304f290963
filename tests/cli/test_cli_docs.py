"""Command lines in the documentation are command lines of ours."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from distiller_ng.cli.base import COMMANDS
from distiller_ng.cli.main import main, make_parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def command_lines():
    for page in PAGES:
        for fragment in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            for line in fragment.replace("\\\n", " ").splitlines():
                words = shlex.split(line.partition(" > ")[0], comments=True)
                if words and words[0] == "distiller-ng":
                    yield pytest.param(words[1:], id=f"{page.stem}: {' '.join(words[:5])}")


@pytest.mark.parametrize("words", list(command_lines()))
def test_documented_command_lines_parse(words):
    assert callable(make_parser().parse_args(words).run)


def test_the_plan_that_the_page_shows_is_printed(capsys, monkeypatch):
    page = (ROOT / "docs" / "command.md").read_text(encoding="utf-8")
    command, shown = re.search(r"```sh\ndistiller-ng (plan .*)\n```\n\n```text\n(.*?)```", page, re.DOTALL).groups()
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(command)) == 0
    assert capsys.readouterr().out.splitlines() == shown.splitlines()


@pytest.mark.parametrize("entry", list(COMMANDS), ids=lambda entry: entry.name)
def test_examples_of_the_help_parse(entry):
    for line in entry.cls.example.splitlines():
        name, *words = shlex.split(line)
        assert name == "distiller-ng" and callable(make_parser().parse_args(words).run)


def test_every_command_of_the_page_exists():
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs" / "command.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(sections) <= set(COMMANDS.names()) and len(sections) >= 7
