"""Teachers made of the student itself: a frozen copy, or a moving average (layer 2)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.errors import CheckpointError
from distiller_ng.knowledge_distillation.structures import tensors_in
from distiller_ng.knowledge_distillation.teachers import TeacherSource
from distiller_ng.names import strip_wrappers, unwrap

__all__ = ["OwnTeacher"]

_HALF = (torch.float16, torch.bfloat16)


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
        learned = [name for name, tensor in mine.items() if isinstance(tensor, nn.Parameter)]
        with torch.no_grad():
            values = [theirs[name].detach().to(mine[name].dtype) for name in learned]
            torch._foreach_lerp_([mine[name] for name in learned], values, 1 - self.decay)
            for name in mine.keys() - set(learned):
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
        module = self._take(student) if self.module is None else self.module
        mine = _tensors(module)
        unfit = [name for name in {**mine, **state} if name not in mine or name not in state]
        if unfit:
            raise CheckpointError(
                f"teacher {self.name!r} of the checkpoint is another architecture than the student: {unfit[0]!r} is in "
                "one of them only. Give the teacher as a module, teachers={...}, when the student changes its structure"
            )
        with torch.no_grad():
            for name, value in state.items():
                if mine[name].shape == value.shape:
                    mine[name].copy_(value)
                else:  # the student was thinned after the copy was taken
                    _replace_(module, mine[name], value)
        _restore_sizes_(module)

    def _take(self, student: nn.Module) -> nn.Module:
        bare = unwrap(student)
        module = copy.deepcopy(bare, _computed_in(bare)).requires_grad_(False)
        module.zero_grad(set_to_none=True)
        if self.decay is not None and any(p.dtype in _HALF for p in module.parameters()):
            module.float()  # steps of 0.1 % are lost in half precision
        self.module = module.eval()
        self._listen(module)
        return module


def _computed_in(module: nn.Module) -> dict[int, Any]:
    """Copies of tensors that modules keep of their last pass, which belong to its graph and cannot be deep-copied.

    ``torch.nn.utils.weight_norm`` and ``spectral_norm`` keep the weight they compute.
    """
    held = (value for part in module.modules() for value in vars(part).values())
    return {id(t): t.detach().clone() for value in held for t in tensors_in(value) if not t.is_leaf}


def _replace_(module: nn.Module, old: Tensor, value: Tensor) -> None:
    """Put a tensor of another shape where ``old`` is, in place."""
    fresh = value.detach().to(old.device, old.dtype, copy=True)
    for part in module.modules():
        for name in [name for name, tensor in part._parameters.items() if tensor is old]:
            part._parameters[name] = nn.Parameter(fresh, requires_grad=False)
        for name in [name for name, tensor in part._buffers.items() if tensor is old]:
            part._buffers[name] = fresh


def _restore_sizes_(module: nn.Module) -> None:
    """Make the numbers that layers keep of their sizes fit their tensors, in place."""
    for part in module.modules():
        weight = getattr(part, "weight", None)
        if not isinstance(weight, Tensor):
            continue
        if isinstance(part, nn.modules.conv._ConvNd) and not part.transposed:
            if part.groups > 1 and weight.shape[1] == 1 and part.groups == part.in_channels:  # depthwise
                part.groups = weight.shape[0] * part.in_channels // part.out_channels
            part.out_channels, part.in_channels = weight.shape[0], weight.shape[1] * part.groups
        elif isinstance(part, nn.Linear):
            part.out_features, part.in_features = weight.shape
        elif isinstance(part, nn.modules.batchnorm._NormBase):
            part.num_features = weight.shape[0]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {short: named[name] for short, name in strip_wrappers(named).items()}
