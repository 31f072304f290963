"""The tutorials are followed: files are written, commands typed, and what they print is compared with the page.

Everything happens in one fresh folder for each page, in the page's order. Directives, before the fragment they concern:
``<!-- file: train.py -->`` writes it to that file. ``<!-- take: mynet.py mydata.py from ../page.md -->`` writes files of
another page before. A fragment ``sh`` is run by a shell, with ``distiller-ng`` and ``python`` of this environment; it
must succeed, or fail behind ``<!-- fails -->``. A fragment behind ``<!-- output -->`` is what the commands before it
print to standard output (failing ones: also to standard error), up to spaces and the length of rulers; ``...`` stands
for anything. ``<!-- output: within 3 -->`` lets numbers differ by 3 or by 3 % (not whole ones below 1,000: they count
epochs and layers); ``<!-- output: numbers vary -->`` lets all of them be any.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from docs_pages import ROOT, following, pages, read_page

TUTORIALS = [page for page in pages() if page.is_tutorial]
_NUMBER = r"(?<![\w.,])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?=(?:x|ms|s|k|M)?(?!\w))"
_PIECES = re.compile(rf"(?P<anything>\.\.\.)|(?P<space>\s+)|(?P<ruler>-{{3,}})|(?P<number>{_NUMBER})")


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """The variables of a shell in which the package is installed, with one thread."""
    scripts = Path(sys.executable).parent
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", "COLUMNS": "120", "MPLBACKEND": "Agg"}
    if not (scripts / "distiller-ng").exists():  # not installed: the script that installing would write
        scripts = tmp_path_factory.mktemp("bin")
        launcher = scripts / "distiller-ng"
        launcher.write_text(
            f"#!{sys.executable}\nimport sys\nfrom distiller_ng.cli.main import main\nsys.exit(main())\n"
        )
        launcher.chmod(launcher.stat().st_mode | stat.S_IXUSR)
        variables["PYTHONPATH"] = str(ROOT)
    variables["PATH"] = f"{scripts}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return variables


def difference(wanted, got, tolerance):
    """None if ``got`` is what the page shows, else the reason; ``tolerance`` None: numbers are the page's."""
    numbers, pattern, end = [], "", 0
    wanted, got = wanted.strip(), got.strip()
    for piece in _PIECES.finditer(wanted):
        pattern += re.escape(wanted[end : piece.start()])
        end = piece.end()
        if piece["anything"]:
            pattern += "(?:.*?)"
        elif piece["space"]:
            pattern += r"\s+"
        elif piece["ruler"]:
            pattern += "-{3,}"
        elif tolerance is None or (piece["number"].isdigit() and tolerance != float("inf")):
            pattern += re.escape(piece["number"])
        else:
            numbers.append(value(piece["number"]))
            pattern += rf"({_NUMBER})"
    found = re.fullmatch(pattern + re.escape(wanted[end:]), got, re.DOTALL)
    if found is None:
        return "another text"
    for number, group in zip(numbers, found.groups(), strict=True):
        if abs(number - value(group)) > max(tolerance, tolerance / 100 * abs(number)):
            return f"{group} where the page has {number:g}"
    return None


def value(text):
    return float(text.replace(",", ""))


def tolerance_of(mode):
    """``""`` -> None, ``within 3`` -> 3.0, ``numbers vary`` -> infinity."""
    if mode == "numbers vary":
        return float("inf")
    word, _, number = (mode or "").partition(" ")
    assert word in ("", "within"), f"<!-- output: {mode} --> means nothing"
    return float(number) if word else None


def take(directive, page, folder):
    """Write the files that ``mynet.py mydata.py from ../page.md`` names."""
    names, _, source = directive.partition(" from ")
    known = {
        f.directives["file"]: f.text for f in read_page(page.path.parent / source).fragments if "file" in f.directives
    }
    for name in names.split():
        (folder / name).write_text(known[name], encoding="utf-8")


@pytest.mark.parametrize(
    "page", [pytest.param(p, id=p.name, marks=[pytest.mark.slow] if p.is_slow else []) for p in TUTORIALS]
)
def test_a_tutorial_works_as_it_is_written(page, environment, tmp_path):
    for fragment in page.fragments:
        if "take" in fragment.directives:
            take(fragment.directives["take"], page, tmp_path)
        if "file" in fragment.directives:
            (tmp_path / fragment.directives["file"]).write_text(fragment.text, encoding="utf-8")
        if fragment.language != "sh":
            continue
        done = subprocess.run(
            ["sh", "-e", "-c", fragment.text],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        fails = "fails" in fragment.directives
        assert (done.returncode != 0) == fails, (
            f"{fragment.place}: status {done.returncode}\n{done.stdout}{done.stderr}"
        )
        assert "Traceback" not in done.stderr, f"{fragment.place}:\n{done.stderr}"
        shown = following(page, fragment, "output")
        if shown is not None:
            printed = done.stdout + (done.stderr if fails else "")
            reason = difference(shown.text, printed, tolerance_of(shown.directives["output"]))
            assert reason is None, f"{shown.place}: {reason}; it printed:\n{printed}"


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.name)
def test_a_tutorial_has_its_parts(page):
    assert len(re.findall(r"^# ", page.prose, re.MULTILINE)) == 1
    assert re.findall(r"^## (.*)$", page.prose, re.MULTILINE)[-1] == "Next"
    assert any(f.language == "sh" for f in page.fragments), "a tutorial has commands"
    assert all(
        f.language == "sh" or "file" in f.directives for f in page.fragments if f.language in ("python", "yaml", "sh")
    )


@pytest.mark.parametrize(
    ("wanted", "got", "tolerance", "same"),
    [
        ("top1 99.44, 5 files", "top1 99.44,  5 files\n", None, True),
        ("top1 99.44", "top1 99.45", None, False),
        ("top1 99.44", "top1 98.0", 3.0, True),
        ("top1 99.44", "top1 96.0", 3.0, False),
        ("171,659 bytes (0.30x)", "175,000 bytes (0.31x)", 3.0, True),
        ("conv1 64x32x3x3", "conv2 64x32x3x3", float("inf"), False),
        ("...\nepoch 5 top1 99.44", "epoch 4 top1 90.0\nepoch 5 top1 99.0", 3.0, True),
        ("epoch 5 top1 99.44", "epoch 6 top1 99.44", 3.0, False),
        ("a ... b", "a 1\n2 b", None, True),
        ("-----\n1", "---------\n  -7e-3", float("inf"), True),
        ("a b", "a", float("inf"), False),
    ],
)
def test_outputs_are_compared(wanted, got, tolerance, same):
    assert (difference(wanted, got, tolerance) is None) == same
