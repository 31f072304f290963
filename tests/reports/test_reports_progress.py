"""The progress bar shows on terminals and is silent elsewhere."""

import io

from rich.console import Console

from distiller_ng.reports.progress import TrainingProgress


def run(console, **kwargs):
    with TrainingProgress(console=console, **kwargs) as progress:
        seen = []
        for step in progress.track(["a", "b"], "epoch 3"):
            seen.append(step)
            progress.show(loss=0.25, lr=0.1, sparsity=0.5, top1=91.23, top5=None)
        progress.show(loss=1.0)
        for _ in progress.track(iter([1, 2]), "unsized", total=2):
            pass
        progress.advance()
    return seen


def test_terminal():
    file = io.StringIO()
    assert run(Console(file=file, force_terminal=True, width=120)) == ["a", "b"]
    shown = file.getvalue()
    assert "epoch 3" in shown and "loss 0.2500  lr 0.1  sparsity 50.0%  top1 91.23" in shown


def test_pipe_is_quiet():
    file = io.StringIO()
    assert run(Console(file=file)) == ["a", "b"]
    assert file.getvalue() == ""


def test_disabled_on_a_terminal():
    file = io.StringIO()
    run(Console(file=file, force_terminal=True), enabled=False)
    assert file.getvalue() == ""
