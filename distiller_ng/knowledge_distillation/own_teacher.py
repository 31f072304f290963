"""Teachers made of the student itself: a frozen copy, or a moving average (layer 2)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.errors import CheckpointError, LifecycleError
from distiller_ng.knowledge_distillation.teachers import TeacherSource
from distiller_ng.names import strip_wrappers, unwrap

__all__ = ["OwnTeacher"]


class OwnTeacher(TeacherSource):
    """A copy of the student, taken at the policy's start: frozen (``decay`` None), or a moving average of it.

    After every optimizer step the average becomes ``decay * average + (1 - decay) * student``; buffers are copied.

    Source of the average: Antti Tarvainen, Harri Valpola, "Mean teachers are better role models" (2017),
    https://arxiv.org/abs/1703.01780

    Example: decay 0.9, a weight that was 1.0 at the start and is 2.0 after the first step: the teacher's is 1.1.
    """

    def __init__(self, name: str, decay: float | None = None) -> None:
        super().__init__(name, None)
        self.decay = decay

    def begin(self, student: nn.Module) -> None:
        """Take the copy, if there is none yet."""
        if self.module is None:
            self._take(student)
        self._to_eval(student)

    def update_(self, student: nn.Module) -> None:
        """Move the average; a student whose shapes changed (thinning) is copied anew."""
        if self.decay is None or self.module is None:
            return
        mine, theirs = _tensors(self.module), _tensors(unwrap(student))
        if mine.keys() != theirs.keys() or any(mine[name].shape != theirs[name].shape for name in mine):
            self.close()
            self._take(student)
            self._to_eval(student)
            return
        learned = {name for name, _ in self.module.named_parameters()}
        with torch.no_grad():
            averages = [mine[name] for name in mine if name in learned]
            torch._foreach_lerp_(averages, [theirs[name].detach() for name in mine if name in learned], 1 - self.decay)
            for name in mine:
                if name not in learned:
                    mine[name].copy_(theirs[name])

    def state_dict(self) -> dict[str, Any]:
        """The copy's tensors; nothing before it was taken."""
        return {} if self.module is None else {name: t.detach().clone() for name, t in _tensors(self.module).items()}

    def load_state_dict(self, state: Mapping[str, Any], student: nn.Module) -> None:
        """Restore :meth:`state_dict`; raises :class:`CheckpointError` for another architecture."""
        if not state:
            self.close()
            self.module = None
            return
        if self.module is None:
            self._take(student)
        mine = _tensors(self._ready_module())
        unfit = [n for n in {**mine, **state} if n not in mine or n not in state or mine[n].shape != state[n].shape]
        if unfit:
            raise CheckpointError(
                f"teacher {self.name!r} of the checkpoint is another architecture than the student: {unfit[0]!r} does "
                "not fit. Give the teacher as a module, teachers={...}, when the student changes its structure"
            )
        with torch.no_grad():
            for name, value in state.items():
                mine[name].copy_(value)

    def _ready_module(self) -> nn.Module:
        if self.module is None:
            raise LifecycleError(f"teacher {self.name!r} does not exist before the policy's first epoch")
        return self.module

    def _take(self, student: nn.Module) -> None:
        self.module = copy.deepcopy(unwrap(student)).requires_grad_(False)
        self.module.zero_grad(set_to_none=True)
        self.module.eval()
        self._listen(self.module)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {short: named[name] for short, name in strip_wrappers(named).items()}
