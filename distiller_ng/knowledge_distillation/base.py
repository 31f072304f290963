"""What every distillation loss is: a distance between what a student and a teacher computed (layer 2)."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError, did_you_mean, listed
from distiller_ng.registry import Registry

__all__ = [
    "DISTILLATION_LOSSES",
    "Alignment",
    "DistillationLoss",
    "ElementwiseLoss",
    "LossSpec",
    "channel_dim",
    "check_positive",
    "create_loss",
    "without_autocast",
]

DISTILLATION_LOSSES: Registry[DistillationLoss] = Registry("distillation loss", "distiller_ng.knowledge_distillation")

#: What must agree: everything; all but the channels; the channels alone; or the batch alone.
Alignment: TypeAlias = Literal["shape", "positions", "channels", "batch"]

_HALF = (torch.float16, torch.bfloat16)


class DistillationLoss(ABC):
    """Base of all distillation losses. Called with what the student and the teacher computed, it returns a scalar.

    Tensors have the batch first, ``[N, ...]``. No gradient reaches the teacher's. Half precision is computed in
    float32, whatever autocast says; float64 stays. Raises :class:`ArgumentError` for tensors that do not fit together.

    A complete one::

        @DISTILLATION_LOSSES.register("Largest")
        class Largest(DistillationLoss):
            def distance(self, student, teacher):
                return (student - teacher).abs().max()
    """

    #: What the two sides must agree in before :meth:`distance` is called.
    alignment: ClassVar[Alignment] = "shape"
    #: How many layers of each model it looks at; with 2, :meth:`distance` is called with the two outputs of each.
    layers: ClassVar[int] = 1

    @property
    def scale(self) -> float:
        """What the distance is multiplied by in the total loss: ``T^2`` for softened distributions, else 1."""
        return 1.0

    def __call__(self, student: Tensor | Sequence[Tensor], teacher: Tensor | Sequence[Tensor]) -> Tensor:
        """The distance, a scalar; sequences for losses that look at two layers."""
        ours, theirs = self._sides(student), self._sides(teacher)
        device = ours[0].device
        for mine, other in zip(ours, theirs, strict=True):
            self.check(mine, other)
        with without_autocast(device.type):
            prepared = [_widened(value) for value in ours]
            targets = [_widened(value.detach().to(device)) for value in theirs]
            return self.distance(*prepared, *targets)

    @abstractmethod
    def distance(self, *values: Tensor) -> Tensor:
        """The scalar distance of ``student, teacher``; with two layers, of ``student, student, teacher, teacher``."""

    def check(self, student: Tensor, teacher: Tensor) -> None:
        """Refuse shapes that do not fit together; raises :class:`ArgumentError`."""
        problem = misfit(self.alignment, student.shape, teacher.shape)
        if problem:
            raise ArgumentError(
                f"{type(self).__name__} cannot compare a student's {list(student.shape)} with a teacher's "
                f"{list(teacher.shape)}: {problem}"
            )

    def combine(self, targets: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """One target of several teachers' outputs: their mean, weighted. ``weights`` sum to 1."""
        total = targets[0] * weights[0]
        for target, weight in zip(targets[1:], weights[1:]):
            total = total + target.to(total.device) * weight
        return total

    def _sides(self, value: Tensor | Sequence[Tensor]) -> list[Tensor]:
        found = [value] if isinstance(value, Tensor) else list(value)
        if len(found) != self.layers or not all(isinstance(v, Tensor) and v.is_floating_point() for v in found):
            got = [f"{v.dtype} {list(v.shape)}" if isinstance(v, Tensor) else type(v).__name__ for v in found]
            raise ArgumentError(
                f"{type(self).__name__} takes {self.layers} floating-point tensor{'s' * (self.layers > 1)} of each "
                f"model, got {listed(got) or 'none'}"
            )
        return found


class ElementwiseLoss(DistillationLoss):
    """A mean over positions, so that positions can be weighted, and a distance compared with the teacher's size."""

    @abstractmethod
    def elements(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The distance of every element, or of every position with the channels kept as one."""

    def magnitude(self, teacher: Tensor) -> Tensor | None:
        """The teacher's own size in the units of the distance, for ``normalize``; None where the distance has none."""
        return None

    def distance(self, *values: Tensor) -> Tensor:
        """The mean of :meth:`elements`."""
        return self.elements(*values).mean()

    def weighted(self, student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
        """The mean of ``weights * elements``; ``weights`` broadcast to the shape, e.g. ``[N, 1, H, W]``."""
        self.check(student, teacher)
        with without_autocast(student.device.type):
            target = _widened(teacher.detach().to(student.device))
            return (self.elements(_widened(student), target) * weights.detach().to(student.device)).mean()


#: How a loss is written: its name, ``{"class": name, **arguments}``, or the object.
LossSpec: TypeAlias = str | Mapping[str, Any] | DistillationLoss


def create_loss(spec: LossSpec, **defaults: Any) -> DistillationLoss:
    """A loss from its name, in any case (``"mse"``), a definition ``{"class": "AT", "power": 4}``, or itself.

    ``defaults`` are arguments it gets if it takes them and they are not written. Raises :class:`ArgumentError` for an
    unknown name, with the nearest, and for arguments the class does not take.
    """
    if isinstance(spec, DistillationLoss):
        return spec
    arguments: dict[str, Any] = {}
    if isinstance(spec, Mapping):
        arguments = {key: value for key, value in spec.items() if key != "class"}
        spec = spec.get("class", "")
    if not isinstance(spec, str):
        raise ArgumentError(f"a loss is given by its name, as {{class: ..., ...}} or as an object; got {spec!r}")
    names = {name.casefold(): name for name in DISTILLATION_LOSSES.names()}
    if spec.casefold() not in names:
        raise ArgumentError(f"unknown distillation loss {spec!r}. {did_you_mean(spec, names.values())}")
    cls = DISTILLATION_LOSSES.get(names[spec.casefold()]).cls
    taken = _arguments_of(cls)
    unknown = [key for key in arguments if key not in taken]
    if unknown:
        raise ArgumentError(f"{spec} has no argument {unknown[0]!r}. {did_you_mean(str(unknown[0]), taken)}")
    return cls(**{**{key: value for key, value in defaults.items() if key in taken}, **arguments})


def _arguments_of(cls: type[DistillationLoss]) -> list[str]:
    init = cls.__init__
    code = getattr(init, "__code__", None)
    if code is None:
        return []
    return list(code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount])


def channel_dim(tensor: Tensor) -> int:
    """Where the channels or classes of a tensor are: dimension 1 of ``[N, C, H, W]`` (and of 5-D), else the last.

    >>> channel_dim(torch.zeros(2, 10)), channel_dim(torch.zeros(2, 10, 8, 8))
    (1, 1)
    """
    return 1 if tensor.dim() >= 4 else tensor.dim() - 1


def misfit(alignment: Alignment, student: Sequence[int], teacher: Sequence[int]) -> str:
    """Why two shapes do not fit together; nothing if they do."""
    if not student or not teacher:
        return "a batch of values is needed, not one number"
    if student[0] != teacher[0]:
        return "the batches differ: both must see the same inputs"
    if alignment == "batch":
        return ""
    if len(student) != len(teacher):
        return f"they have {len(student)} and {len(teacher)} dimensions"
    dim = 1 if len(student) >= 4 else len(student) - 1
    rest = [i for i in range(len(student)) if i != dim]
    if alignment != "positions" and student[dim] != teacher[dim]:
        return f"{student[dim]} and {teacher[dim]} channels: a projection (1x1 convolution or Linear) has to match them"
    if alignment != "channels" and any(student[i] != teacher[i] for i in rest):
        return "the positions differ: choose layers of the same resolution"
    return ""


def check_positive(name: str, value: Any) -> float:
    """``value`` as a finite number above 0. Raises :class:`ArgumentError` that carries ``name``.

    >>> check_positive("temperature", 4)
    4.0
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value <= 0:
        raise ArgumentError(f"{name} must be a finite number above 0, got {value!r}", argument=(name,))
    return float(value)


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """Full precision for losses, as torch's own have it under autocast."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def _widened(value: Tensor) -> Tensor:
    return value.float() if value.dtype in _HALF else value
