"""A model of the user's own and schedules for it, in a working folder that is gone afterwards."""

from __future__ import annotations

import sys

import pytest

MODEL = """\
from torch import nn


class TinyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4 * 6 * 6, 10)

    def forward(self, x):
        return self.fc(self.conv(x).relu().flatten(1))


class Parts:
    Net = TinyNet


built = TinyNet()
size = 5


def fails():
    raise RuntimeError("no\\nweights")


def returns_a_number():
    return 3
"""

SCHEDULE = """\
pruners:
  fine:
    class: AutomatedGradualPruner
    initial_sparsity: 0.05
    final_sparsity: 0.5
    weights: [conv.weight]
lr_schedulers:
  steps: {class: MultiStepLR, milestones: [3, 5], gamma: 0.1}
policies:
  - pruner: {instance_name: fine}
    starting_epoch: 0
    ending_epoch: 4
    frequency: 1
  - lr_scheduler: {instance_name: steps}
    starting_epoch: 0
    ending_epoch: 6
    frequency: 1
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """``tiny_net.py`` and ``agp.yaml`` in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    modules = sys.modules
    monkeypatch.delitem(modules, "tiny_net", raising=False)
    (tmp_path / "tiny_net.py").write_text(MODEL)
    (tmp_path / "agp.yaml").write_text(SCHEDULE)
    yield tmp_path
    modules.pop("tiny_net", None)


@pytest.fixture
def own():
    """Arguments that name the model."""
    return ["--model", "tiny_net.py:TinyNet", "--input-shape", "1,1,8,8"]
