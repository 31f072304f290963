"""Standard output has results and nothing else; who reads it may stop; of several ranks one tells what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest_cli import fails_with

from distiller_ng.cli import _printing
from distiller_ng.cli._printing import ReaderGoneError, print_text, results_apart
from distiller_ng.cli.main import main

ROOT = Path(__file__).parents[2]
LOUD = """\
import os
import tiny_net

print("imported")


class Net(tiny_net.TinyNet):
    def forward(self, x):
        print("forward")
        os.write(1, b"from a library in C\\n")
        return super().forward(x)
"""


def shell(line, folder, **environment):
    names = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    words = line.replace("distiller-ng", f"{sys.executable} -m distiller_ng.cli")
    return subprocess.run(
        ["bash", "-c", words], capture_output=True, text=True, env=names, cwd=folder, check=False, timeout=120
    )


def test_what_the_users_code_prints_is_not_in_the_result(folder, capsys):
    (folder / "loud.py").write_text(LOUD.replace('        os.write(1, b"from a library in C\\n")\n', ""))
    assert main(["summary", "compute", "--json", "--model", "loud.py:Net", "--input-shape", "1,1,8,8"]) == 0
    out, err = capsys.readouterr()
    assert [row["Name"] for row in json.loads(out)["compute"]][:2] == ["conv", "fc"]
    assert "imported" in err and "forward" in err


@pytest.mark.slow
def test_descriptors_are_apart_too_and_the_reader_may_go(folder):
    (folder / "loud.py").write_text(LOUD)
    words = "distiller-ng summary compute --json --model loud.py:Net --input-shape 1,1,8,8"
    done = shell(words, folder)
    assert json.loads(done.stdout)["compute"] and "from a library in C" in done.stderr
    done = shell(f"({words}; echo status $? >&2) | true", folder)  # pipe without a reader
    assert "status 141" in done.stderr and "Error" not in done.stderr and "Traceback" not in done.stderr
    done = shell("distiller-ng recipe translate agp.yaml > /dev/full", folder)
    assert (done.returncode, done.stderr) == (1, "No space left on device\n")
    done = shell("distiller-ng recipe translate agp.yaml >&-", folder)
    assert (done.returncode, done.stderr) == (0, "")


class Narrow:
    """A terminal that takes ASCII only."""

    encoding = "ascii"

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text.encode("ascii").decode()

    def flush(self):
        pass


def test_characters_that_do_not_fit_are_escaped(monkeypatch):
    stream = Narrow()
    monkeypatch.setattr("sys.stdout", stream)
    with results_apart():
        print_text("99 → 98 %\n")
        assert not _printing.writes_unicode()
    assert stream.text == "99 \\u2192 98 %\n"


def test_a_reader_that_is_gone_is_told_apart_from_other_errors(monkeypatch):
    class Closed(Narrow):
        def write(self, text):
            raise BrokenPipeError

        def fileno(self):
            raise ValueError("none")

    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(ReaderGoneError):
        print_text("a")


@pytest.mark.slow
def test_ranks_tell_what_is_wrong_once(folder):
    run = "python -m torch.distributed.run --nproc-per-node 2 -m distiller_ng.cli"
    run = run.replace("python", sys.executable, 1)
    done = shell(f"{run} sensitivity --model tiny_net.py:fails", folder)
    assert done.returncode == 1
    assert done.stderr.count("tiny_net.py:fails() failed: RuntimeError: no weights") == 1


def test_commands_without_shared_work_refuse_several_processes(folder, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    fails_with(capsys, ["lint", "agp.yaml"], "lint runs in one process, and torchrun started 2")
