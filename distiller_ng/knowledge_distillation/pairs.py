"""Which layers or outputs of the student are compared with which of the teacher, and how (layer 2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import Tensor

from distiller_ng.errors import ArgumentError, did_you_mean
from distiller_ng.knowledge_distillation.attention_transfer import attention_map
from distiller_ng.knowledge_distillation.base import (
    DistillationLoss,
    ElementwiseLoss,
    LossSpec,
    check_positive,
    create_loss,
)
from distiller_ng.knowledge_distillation.weights import Weight, check_weight

__all__ = ["FeaturePair", "PairOptions", "Place", "SpatialWeight", "attention_weights", "read_pairs"]

#: ``"none"``, ``"attention"``, or a function of the student's and the teacher's features that returns weights which
#: broadcast to them, e.g. ``[N, 1, H, W]``.
SpatialWeight: TypeAlias = str | Callable[[Tensor, Tensor], Tensor]

_SPATIAL = ("none", "attention")
_KEYS = ("student", "teacher", "loss", "gain", "normalize", "spatial_weight", "project", "epsilon", "source")
_PLACE = re.compile(r"(?P<layer>[^\[\]]*)(\[(?P<path>[^\[\]]+)\])?")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor is found: in the output of ``layer`` (``""``: of the model), at ``path`` (``""``: all of it)."""

    layer: str
    path: str = ""

    def __str__(self) -> str:
        return f"{self.layer}[{self.path}]" if self.layer and self.path else self.layer or self.path


@dataclass(frozen=True, slots=True)
class PairOptions:
    """How pairs are compared unless they say otherwise themselves."""

    loss: LossSpec = "MSE"
    gain: Weight = 1.0
    normalize: bool = False
    spatial_weight: SpatialWeight = "none"
    project: bool = True
    epsilon: float = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturePair:
    """One comparison: ``gain * loss(projection(student), teacher)``.

    ``student`` and ``teacher`` hold one place each, two for FSP. ``source`` names one of several teachers.
    ``argument`` is where the user wrote it.
    """

    name: str
    student: tuple[Place, ...]
    teacher: tuple[Place, ...]
    loss: DistillationLoss
    gain: Weight
    normalize: bool
    spatial_weight: SpatialWeight
    project: bool
    epsilon: float
    source: str | None
    argument: tuple[str | int, ...]

    def compare(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The distance, with spatial weights and normalised if asked for; without the gain."""
        if not isinstance(self.loss, ElementwiseLoss):
            return self.loss(list(student), list(teacher))
        mine, target = student[0], teacher[0].detach()
        if self.spatial_weight == "none":
            value = self.loss(mine, target)
        else:
            self.loss.check(mine, target)
            weigh = attention_weights if isinstance(self.spatial_weight, str) else self.spatial_weight
            value = self.loss.weighted(mine, target, weigh(mine.detach(), target))
        if self.normalize:
            size = self.loss.magnitude(target.to(value.device, value.dtype))
            value = value if size is None else value / (size + self.epsilon)
        return value


def attention_weights(student: Tensor, teacher: Tensor) -> Tensor:
    """Weights of positions, ``[N, 1, H, W]`` or ``[N, T, 1]`` with mean 1 in each sample: ``mean_c t^2``, scaled.

    >>> t = torch.tensor([[[[1.0, 1.0]], [[1.0, 3.0]]]])
    >>> attention_weights(t, t).flatten().tolist()   # mean_c t^2 = 1 and 5, over their mean 3
    [0.3333333432674408, 1.6666666269302368]
    """
    where = attention_map(teacher.float())
    mean = where.mean(tuple(range(1, where.dim())), keepdim=True)
    return where / mean.clamp(min=1e-12)


def read_pairs(layers: Any, outputs: Any, options: PairOptions) -> list[FeaturePair]:
    """The pairs of ``layers`` and ``outputs`` as a user writes them; raises :class:`ArgumentError`.

    Each is a mapping ``{student's: teacher's}``, whose values may be ``{teacher: ..., loss: ..., gain: ...}``, or a
    list of names that are the same in both, or of mappings with ``student`` and ``teacher``. A layer that returns
    several tensors is written ``encoder.3[0]``. ``outputs`` are paths into what the whole model returns.
    """
    check_options(options, ())
    pairs = [_pair(entry, where, options, is_output=False) for entry, where in _entries(layers, "layers")]
    pairs += [_pair(entry, where, options, is_output=True) for entry, where in _entries(outputs, "outputs")]
    names: dict[str, FeaturePair] = {}
    for at, pair in enumerate(pairs):
        name = pair.name if pair.name not in names else f"{pair.name} #{at}"
        names[name] = replace(pair, name=name)
    return list(names.values())


def check_options(options: PairOptions, argument: tuple[str | int, ...]) -> DistillationLoss:
    """The loss, after everything was looked at; raises :class:`ArgumentError`."""
    try:
        loss = create_loss(options.loss)
    except ArgumentError as error:
        raise ArgumentError(str(error), argument=(*argument, "loss", *error.argument)) from None
    check_weight("gain", options.gain, (*argument, "gain"))
    for name in ("normalize", "project"):
        value = getattr(options, name)
        if not isinstance(value, bool):
            raise ArgumentError(f"{name} is true or false, got {value!r}", argument=(*argument, name))
    if not callable(options.spatial_weight) and options.spatial_weight not in _SPATIAL:
        raise ArgumentError(
            f"unknown spatial_weight {options.spatial_weight!r}. {did_you_mean(str(options.spatial_weight), _SPATIAL)} "
            "From code, a function may be given",
            argument=(*argument, "spatial_weight"),
        )
    try:
        check_positive("epsilon", options.epsilon)
    except ArgumentError as error:
        raise ArgumentError(str(error), argument=(*argument, "epsilon")) from None
    _check_fit(loss, options, argument)
    return loss


def _check_fit(loss: DistillationLoss, options: PairOptions, argument: tuple[str | int, ...]) -> None:
    name = type(loss).__name__
    has_size = isinstance(loss, ElementwiseLoss) and type(loss).magnitude is not ElementwiseLoss.magnitude
    if options.normalize and not has_size:
        raise ArgumentError(
            f"normalize divides by the teacher's size, which {name} does not depend on or does not give: leave it out, "
            "or take MSE or L1",
            argument=(*argument, "normalize"),
        )
    if options.spatial_weight != "none" and not isinstance(loss, ElementwiseLoss):
        raise ArgumentError(
            f"spatial_weight weighs positions, which {name} has none of: take MSE, L1 or Cosine",
            argument=(*argument, "spatial_weight"),
        )


def _entries(value: Any, name: str) -> list[tuple[dict[str, Any], tuple[str | int, ...]]]:
    """Each entry as ``{student: ..., teacher: ..., options}`` with its place."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        found: list[tuple[dict[str, Any], tuple[str | int, ...]]] = []
        for key, other in value.items():
            entry = dict(other) if isinstance(other, Mapping) else {"teacher": other}
            if "student" in entry:
                raise ArgumentError(
                    f"{name}: {key!r} is the student's already; leave out student", argument=(name, key, "student")
                )
            found.append(({"student": key, **entry}, (name, key)))
        return found
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ArgumentError(
            f"{name} maps the student's names to the teacher's, or is a list; got {value!r}", argument=(name,)
        )
    return [
        (dict(entry) if isinstance(entry, Mapping) else {"student": entry, "teacher": entry}, (name, at))
        for at, entry in enumerate(value)
    ]


def _pair(
    entry: Mapping[str, Any], argument: tuple[str | int, ...], options: PairOptions, *, is_output: bool
) -> FeaturePair:
    _check_keys(entry, argument)
    settings = {key: entry[key] for key in entry if key not in ("student", "teacher", "source")}
    if "spatial_weight" in settings and settings["spatial_weight"] is None:
        settings["spatial_weight"] = "none"
    own = replace(options, **settings)
    loss = check_options(own, argument if settings else ())
    student, teacher = (
        _places(entry[side], (*argument, side) if isinstance(argument[-1], int) else argument, is_output)
        for side in ("student", "teacher")
    )
    for side, places in (("student", student), ("teacher", teacher)):
        if len(places) != loss.layers:
            raise ArgumentError(
                f"{type(loss).__name__} compares {loss.layers} layer{'s' * (loss.layers > 1)} of each model, the "
                f"{side}'s side names {len(places)}",
                argument=argument,
            )
    ours, theirs = (" + ".join(map(str, places)) for places in (student, teacher))
    return FeaturePair(
        name=ours if ours == theirs else f"{ours} -> {theirs}",
        student=student,
        teacher=teacher,
        loss=loss,
        gain=check_weight("gain", own.gain, (*argument, "gain")),
        normalize=own.normalize,
        spatial_weight=own.spatial_weight,
        project=own.project,
        epsilon=float(own.epsilon),
        source=entry.get("source"),
        argument=argument,
    )


def _check_keys(entry: Mapping[str, Any], argument: tuple[str | int, ...]) -> None:
    for key in entry:
        if key not in _KEYS:
            raise ArgumentError(f"a pair has no {key!r}. {did_you_mean(str(key), _KEYS)}", argument=(*argument, key))
    for side in ("student", "teacher"):
        if side not in entry:
            raise ArgumentError(f"the {side}'s side is missing", argument=argument)
    source = entry.get("source")
    if source is not None and not isinstance(source, str):
        raise ArgumentError(f"source is the name of a teacher, got {source!r}", argument=(*argument, "source"))


def _places(value: Any, argument: tuple[str | int, ...], is_output: bool) -> tuple[Place, ...]:
    texts = [value] if isinstance(value, str | int) and not isinstance(value, bool) else value
    if not isinstance(texts, list | tuple) or not texts:
        raise ArgumentError(f"expected a name, got {value!r}", argument=argument)
    places = []
    for text in texts:
        if isinstance(text, bool) or not isinstance(text, str | int):
            raise ArgumentError(f"expected a name, got {text!r}", argument=argument)
        if is_output:
            places.append(Place("", str(text)))
            continue
        match = _PLACE.fullmatch(str(text))
        if match is None or not (match["layer"] or match["path"]):
            raise ArgumentError(
                f"{text!r} names no layer: write conv1, or lstm[0] for the first of several outputs", argument=argument
            )
        places.append(Place(match["layer"], match["path"] or ""))
    return tuple(places)
