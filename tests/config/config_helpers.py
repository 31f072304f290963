"""A small model, and ways to load text onto it and to look at what was reported."""

from __future__ import annotations

import copy
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distiller_ng.config import file_config
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import Problem, ScheduleError, ScheduleWarning

HEADER = """\
version: 1
pruners:
  fine:
    class: AutomatedGradualPruner
    initial_sparsity: 0.05
    final_sparsity: 0.9
    weights: [conv1.weight, fc.weight]
"""
POLICY = """\
policies:
  - pruner: {instance_name: fine}
    starting_epoch: 0
    ending_epoch: 5
    frequency: 2
"""
VALID = HEADER + POLICY


class Net(nn.Module):
    """conv1 [4, 2, 3, 3], bn1, conv2 [6, 4, 3, 3], fc [5, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv2(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


def new_model_and_optimizer(lr: float = 0.1) -> tuple[Net, torch.optim.SGD]:
    model = Net()
    return model, torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


class Loaded:
    """What came of loading a text: a scheduler or problems, and the warnings of the library."""

    def __init__(self, path: Path, text: str, **options: Any) -> None:
        path.write_text(textwrap.dedent(text))
        self.path = path
        self.model, self.optimizer = new_model_and_optimizer()
        self.scheduler: CompressionScheduler | None = None
        self.problems: tuple[Problem, ...] = ()
        before = snapshot(self.model, self.optimizer)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                self.scheduler = file_config(self.model, self.optimizer, path, **options)
            except ScheduleError as error:
                self.problems = error.problems
        if self.scheduler is None:
            assert_untouched(self.model, self.optimizer, before)
        self.warnings = [str(w.message) for w in caught if issubclass(w.category, ScheduleWarning)]

    def places(self) -> list[tuple[int, int, str]]:
        return [(p.line, p.column, p.path) for p in self.problems]

    def the_problem(self) -> Problem:
        assert len(self.problems) == 1, "\n".join(map(str, self.problems))
        return self.problems[0]


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
    """Everything a load must leave alone, copied."""
    return (
        copy.deepcopy(model.state_dict()),
        copy.deepcopy(optimizer.state_dict()),
        [id(parameter) for parameter in model.parameters()],
        [name for name, _ in model.named_modules()],
        [sorted(vars(module)) for module in model.modules()],
        [parameter._backward_hooks for parameter in model.parameters()],
        len(optimizer._optimizer_step_post_hooks) + len(optimizer._optimizer_step_pre_hooks),
    )


def assert_untouched(model: nn.Module, optimizer: torch.optim.Optimizer, before: tuple[Any, ...]) -> None:
    """Bit for bit the same as in the snapshot."""
    state, *others = before
    now, *others_now = snapshot(model, optimizer)
    assert list(now) == list(state)
    assert all(torch.equal(now[key], state[key]) for key in state)
    assert others_now == others


@pytest.fixture
def load(tmp_path):
    """``load(text)`` writes a schedule file and loads it onto a fresh model."""
    return lambda text, **options: Loaded(tmp_path / "schedule.yaml", text, **options)
