"""The distances between one pass of the student and the teachers' (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, LifecycleError
from distiller_ng.knowledge_distillation.base import DistillationLoss
from distiller_ng.knowledge_distillation.capture import Call, is_compiled
from distiller_ng.knowledge_distillation.pairs import FeaturePair, Place
from distiller_ng.knowledge_distillation.structures import find_output, the_logits
from distiller_ng.knowledge_distillation.teachers import TeacherSource

__all__ = ["TermSum", "Terms", "add_terms", "feature_sides", "logits_term"]


@dataclass(frozen=True, slots=True)
class Terms:
    """The distances of one step, unscaled: of the logits (None without such a term), and of each pair by its name."""

    logits: Tensor | None
    pairs: Mapping[str, Tensor]


@dataclass(slots=True)
class TermSum:
    """Terms of several passes, added up."""

    values: dict[str, Tensor] = field(default_factory=dict)

    def terms(self) -> Terms:
        """The sums."""
        return Terms(self.values.get(""), {name: value for name, value in self.values.items() if name})


def add_terms(total: TermSum, name: str, value: Tensor, share: float) -> None:
    """Add ``share * value`` to one of the sums, in place."""
    scaled = value if share == 1 else value * share
    total.values[name] = total.values[name] + scaled if name in total.values else scaled


def logits_term(
    loss: DistillationLoss,
    call: Call,
    taught: Sequence[Call],
    shares: Sequence[float],
    sources: Sequence[TeacherSource],
    keys: tuple[Sequence[str], Sequence[str]],
) -> Tensor:
    """The mean distance of the outputs that are compared, from all teachers together.

    Raises :class:`ArgumentError`, naming the output, where student and teacher do not fit.
    """
    mine = the_logits(call.output, keys[0], whose="student")
    targets = [
        the_logits(given.output, keys[1], whose=f"teacher ({source.name})") for given, source in zip(taught, sources)
    ]
    values = []
    for at, student in enumerate(mine):
        theirs = [target[at] for target in targets]
        try:
            for target in theirs:
                loss.check(student, target)
            values.append(loss(student, loss.combine(theirs, shares)))
        except ArgumentError as error:
            where = f"output {keys[0][at]!r}" if keys[0] else "the logits"
            raise ArgumentError(f"{where}: {error}", argument=("output_keys",)) from None
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total / len(values)


def feature_sides(
    pair: FeaturePair, student: tuple[Call, nn.Module], teacher: tuple[Call, nn.Module]
) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """What a pair compares: for each time the layers ran in the pass, the student's tensors and the teacher's.

    Each side is given as its pass and its model.
    Raises :class:`LifecycleError` for a layer that did not run, and :class:`ArgumentError` for layers that ran a
    different number of times.
    """
    ours = [_values(place, *student, pair, whose="student") for place in pair.student]
    theirs = [_values(place, *teacher, pair, whose="teacher") for place in pair.teacher]
    counts = {len(values) for values in (*ours, *theirs)}
    if len(counts) != 1:
        raise ArgumentError(
            f"{pair.name}: the student's layer ran {len(ours[0])} times in one pass, the teacher's {len(theirs[0])} "
            "times: choose layers that run equally often",
            argument=pair.argument,
        )
    return [list(values) for values in zip(*ours)], [list(values) for values in zip(*theirs)]


def _values(place: Place, call: Call, model: nn.Module, pair: FeaturePair, *, whose: str) -> list[Tensor]:
    if not place.layer:
        found = [call.output]
    elif place.layer in call.features:
        found = call.features[place.layer]
    elif is_compiled(model):
        raise LifecycleError(
            f"nothing was seen of the {whose}'s layer {place.layer!r}: hooks on layers inside a compiled model have to "
            "be there before its first call. Load the schedule (or add the policy) right after torch.compile, before "
            "the model is run. If another model of this class was compiled before, call torch._dynamo.reset() first: "
            "torch shares compiled code among the models of a class"
        )
    else:
        raise LifecycleError(
            f"the {whose}'s layer {place.layer!r} did not run in the forward pass, or without gradients (activation "
            "checkpointing needs use_reentrant=False)"
        )
    values = []
    for value in found:
        tensor = find_output(
            value, place.path, whose=f"{whose}'s {place.layer}" if place.layer else whose, argument=pair.argument
        )
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise ArgumentError(
                f"the {whose}'s {str(place) or 'output'} gives a {type(tensor).__name__}, not a tensor of numbers: say "
                f"which part, e.g. {place.layer}[0]",
                argument=pair.argument,
            )
        values.append(tensor)
    return values
