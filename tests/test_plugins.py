"""Installed packages add to registries through the entry-point group ``distiller_ng.plugins``."""

from __future__ import annotations

import subprocess
import sys

GOOD = """
from distiller_ng.pruning import PRUNERS
from distiller_ng.pruning.level import SparsityLevelParameterPruner

@PRUNERS.register("PackagedPruner", injected=("name",))
class PackagedPruner(SparsityLevelParameterPruner):
    '''Of an installed package.'''
"""
SCHEDULE = """
pruners:
  p: {class: PackagedPruner, levels: {conv2.weight: 0.5}}
policies:
  - {pruner: {instance_name: p}, epochs: [0]}
"""


def install(folder, name, text):
    """Make ``folder`` look as if the package had been installed into it."""
    (folder / f"{name}.py").write_text(text)
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[distiller_ng.plugins]\n{name} = {name}\n")


def test_a_plugin_is_found_and_a_broken_one_takes_nothing_away(tmp_path):
    install(tmp_path, "good_plugin", GOOD)
    install(tmp_path, "bad_plugin", "raise OSError('no disk')\n")
    (tmp_path / "s.yaml").write_text(SCHEDULE)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from distiller_ng.cli.main import main; "
        "sys.exit(main(['lint', 's.yaml', '--arch', 'digits_cnn']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "s.yaml: no problems\n")
    assert done.stderr == (
        "RuntimeWarning: the plugin bad_plugin of bad_plugin cannot be imported, so what it adds is missing "
        "(OSError: no disk): mend or uninstall bad_plugin\n"
    )
