"""Small layers that bring a student's features to the teacher's number of channels (layer 2)."""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init
from torch.optim import Optimizer

from distiller_ng.errors import ArgumentError, CheckpointError
from distiller_ng.knowledge_distillation._optimizer import join_group_
from distiller_ng.knowledge_distillation.base import Alignment, without_autocast

__all__ = ["Projections", "projection_for"]

logger = logging.getLogger(__name__)

_CONVOLUTIONS: Mapping[int, type[nn.Module]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


class Projections:
    """The projections of one distiller by key: identity (not stored), Linear, or a 1x1 convolution, without biases.

    Each is drawn from a generator of its own, seeded by its key: the same on every rank and in every run, and the
    run's random numbers are not touched. Shapes are ``[N, ...]``.
    """

    def __init__(self) -> None:
        self.modules: dict[str, nn.Module] = {}
        self._inputs: dict[str, tuple[int, int]] = {}  # by key: dimension, size of the student's side when it was made
        self._retired: list[nn.Parameter] = []
        #: Whether there are new ones that no optimizer has.
        self.has_changes = False

    def parameters(self) -> list[nn.Parameter]:
        """All parameters, in the order they were made."""
        return [parameter for module in self.modules.values() for parameter in module.parameters()]

    def fit(self, key: str, student: Tensor, teacher: Tensor, alignment: Alignment) -> bool:
        """Make the projection that ``key`` needs for these features; True if there is a new one.

        One that no longer fits, because student or teacher was thinned, is made anew. Raises :class:`ArgumentError` for
        shapes that no projection brings together.
        """
        if key in self._inputs:
            dim, size = self._inputs[key]
            fits = student.dim() > dim and student.shape[dim] == size
            if key in self.modules:
                fits = fits and teacher.dim() > dim and teacher.shape[dim] == _weight(self.modules[key]).shape[0]
            elif fits:
                fits = not projection_dim(student.shape, teacher.shape, alignment)
            if fits:
                return False
        dim = projection_dim(student.shape, teacher.shape, alignment)
        if key in self.modules:
            logger.warning("the features of %s changed their size: their projection begins anew", key)
            self._retired += self.modules.pop(key).parameters()
        at = dim or _channels(student)
        self._inputs[key] = (at, student.shape[at])
        if dim:
            self.modules[key] = projection_for(key, student, teacher.shape, dim)
        self.has_changes = self.has_changes or bool(dim or self._retired)
        return bool(dim)

    def apply(self, key: str, features: Tensor) -> Tensor:
        """The projected features; themselves where there is no projection."""
        module = self.modules.get(key)
        if module is None:
            return features
        weight = next(module.parameters())
        if weight.device != features.device:  # the model was moved; parameters keep their identity
            module.to(features.device)
        with without_autocast(features.device.type):
            projected: Tensor = module(features.to(weight.dtype))
        return projected

    def join_(self, optimizer: Optimizer) -> None:
        """Give new projections to ``optimizer``, in place, as a group with the first group's learning rate.

        Those that were replaced leave it.
        """
        gone = {id(parameter) for parameter in self._retired}
        for group in optimizer.param_groups if gone else ():
            for parameter in [p for p in group["params"] if id(p) in gone]:
                optimizer.state.pop(parameter, None)
            group["params"] = [p for p in group["params"] if id(p) not in gone]
        self._retired, self.has_changes = [], False
        join_group_(optimizer, self._named())

    def state_dict(self) -> dict[str, Any]:
        """Kinds and weights by key."""
        return {
            key: {
                "kind": type(self.modules[key]).__name__ if key in self.modules else "Identity",
                "dim": dim,
                "size": size,
                "weight": next(self.modules[key].parameters()).detach().clone() if key in self.modules else None,
            }
            for key, (dim, size) in self._inputs.items()
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore :meth:`state_dict`; parameters of the same shape keep their identity."""
        kinds: dict[str, type[nn.Module]] = {cls.__name__: cls for cls in _CONVOLUTIONS.values()}
        kinds["Linear"] = nn.Linear
        for key, saved in state.items():
            self._inputs[key] = (int(saved["dim"]), int(saved["size"]))
            weight = saved["weight"]
            if weight is None:
                self.modules.pop(key, None)
                continue
            if saved["kind"] not in kinds:
                raise CheckpointError(f"the projection of {key} is a {saved['kind']}, which this version does not know")
            module = self.modules.get(key)
            if type(module).__name__ != saved["kind"] or _weight(module).shape != weight.shape:
                module = _empty(kinds[saved["kind"]], weight.shape[1], weight.shape[0], weight.dtype, device)
                self.modules[key] = module
                self.has_changes = True
            with torch.no_grad():
                _weight(module).copy_(weight)

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [
            (f"distillation.{key}.{name}", parameter)
            for key, module in self.modules.items()
            for name, parameter in module.named_parameters()
        ]


def projection_dim(student: Sequence[int], teacher: Sequence[int], alignment: Alignment) -> int:
    """The dimension a projection must change, 0 for none. Raises :class:`ArgumentError` if more than one differs.

    >>> projection_dim([8, 16, 4, 4], [8, 64, 4, 4], "shape")
    1
    """
    if alignment in ("positions", "batch"):
        return 0
    shapes = f"student {list(student)}, teacher {list(teacher)}"
    if len(student) != len(teacher) or len(student) < 2:
        raise ArgumentError(f"no projection from {len(student)} to {len(teacher)} dimensions: {shapes}")
    channels = 1 if len(student) >= 4 else len(student) - 1
    looked_at = [channels] if alignment == "channels" else range(1, len(student))
    differing = [dim for dim in looked_at if student[dim] != teacher[dim]]
    if not differing:
        return 0
    allowed = {1, len(student) - 1} if len(student) != 5 else {1, 4}
    if len(differing) > 1 or differing[0] not in allowed:
        raise ArgumentError(
            f"these features differ in more than their channels: {shapes}. Choose layers of the same resolution, or a "
            "loss that compares relations (RKD)"
        )
    return differing[0]


def projection_for(key: str, student: Tensor, teacher: Sequence[int], dim: int) -> nn.Module:
    """A new projection of dimension ``dim`` from the student's size to the teacher's, where the student's features are.

    A 1x1 convolution for dimension 1 of features with positions behind it, else a Linear layer.
    """
    is_last = dim == student.dim() - 1
    kind = nn.Linear if is_last else _CONVOLUTIONS[student.dim()]
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    module = _empty(kind, student.shape[dim], teacher[dim], dtype, student.device)
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    bound = 1 / math.sqrt(student.shape[dim])
    with torch.no_grad():
        drawn = torch.empty(_weight(module).shape, dtype=dtype).uniform_(-bound, bound, generator=generator)
        _weight(module).copy_(drawn)
    return module


def _channels(features: Tensor) -> int:
    return 1 if features.dim() >= 4 else features.dim() - 1


def _weight(module: nn.Module | None) -> Tensor:
    weight = None if module is None else module.weight
    return weight if isinstance(weight, Tensor) else torch.empty(0)


def _empty(kind: type[nn.Module], size: int, to: int, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """A layer whose weights are not drawn, so that the run's random numbers stay as they are."""
    more = {} if kind is nn.Linear else {"kernel_size": 1}
    made: nn.Module = skip_init(kind, size, to, bias=False, dtype=dtype, device=device, **more)  # type: ignore[no-untyped-call]
    return made
