"""How large and how costly a model will be after each step of a schedule, before it is trained (layer 4)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from distiller_ng.core.entries import Entry
from distiller_ng.core.hooks import HookDriver
from distiller_ng.errors import DistillerError
from distiller_ng.graph.inputs import ExampleInputs
from distiller_ng.names import ParameterIndex, canonical_name, unwrap
from distiller_ng.policies.layer_pruning import LayerPruning
from distiller_ng.policies.layer_thinning import LayerThinning
from distiller_ng.policies.low_rank_thinning import LowRankThinning
from distiller_ng.policies.pruning import PruningPolicy
from distiller_ng.policies.quantization import QuantizationPolicy
from distiller_ng.policies.regularization import RegularizationPolicy
from distiller_ng.policies.structure_remover import StructureRemover
from distiller_ng.pruning.bernoulli import BernoulliFilterPruner
from distiller_ng.pruning.group_pruner import GroupPruner
from distiller_ng.pruning.random_level import RandomLevelStructureParameterPruner
from distiller_ng.reports._plan_curves import Curve, value_at
from distiller_ng.reports._plan_rehearsal import Snapshot, buffer_bytes, is_structural, macs_of, rehearse, sizes_of

__all__ = ["PredictedSize", "PredictedSizes", "predict_sizes", "quantized_bits"]

#: Numbers that differ by more between two sets of weights are not predictions.
_ALIKE = 0.03
#: What running a policy on a model it does not fit may raise, besides our own errors.
_MODEL_ERRORS = (DistillerError, RuntimeError, TypeError, ValueError, LookupError, AttributeError, NotImplementedError)


@dataclass(frozen=True, slots=True)
class PredictedSize:
    """The model from ``epoch`` on, after what ``cause`` names did its part; None is what cannot be known.

    ``nonzero`` counts values that are not pruned, ``macs`` those of one input, ``size_bytes`` every value at its number
    of bits, zeros included. ``approximate``: the fields that depend on weights which training will still change.
    """

    epoch: float
    cause: str
    parameters: int | None
    nonzero: int | None
    macs: int | None
    size_bytes: int | None
    approximate: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PredictedSizes:
    """The rows, the first of them the model as it is, and what cannot be known, with the reason."""

    rows: tuple[PredictedSize, ...]
    notes: tuple[str, ...] = ()


def predict_sizes(
    scheduler: HookDriver,
    model: nn.Module,
    epochs: int,
    planned: Sequence[tuple[Entry, Sequence[float], Sequence[Curve]]],
    example: ExampleInputs | None,
) -> PredictedSizes:
    """Rows for every moment at which a policy ends its pruning, removes structures or begins to quantize.

    ``planned``: each policy with the epochs of its acts and its curves. ``model`` is looked at and not changed;
    ``example``: what it is called with.
    Sparsities of single weights follow from the schedule. Structured pruning and removal are run on copies, once with
    the present weights and once with random ones: what differs is approximate.
    """
    return _Forecast(scheduler, model, epochs, planned, example).make()


@dataclass(slots=True)
class _Event:
    epoch: float
    entries: list[Entry] = field(default_factory=list)


class _Forecast:
    def __init__(
        self,
        scheduler: HookDriver,
        model: nn.Module,
        epochs: int,
        planned: Sequence[tuple[Entry, Sequence[float], Sequence[Curve]]],
        example: ExampleInputs | None,
    ) -> None:
        self.scheduler, self.model, self.epochs, self.planned = scheduler, model, epochs, planned
        self.example = example
        self.notes: list[str] = []
        self.told: set[int] = set()
        self.bits = {name: 8 * p.element_size() for name, p in _named(model)}
        self.first = Snapshot(-1, sizes_of(model), {}, self._macs(), buffer_bytes(model))
        self.tries: list[list[Snapshot]] | None = [[self.first], [self.first]]
        self.unknown_structure: dict[int, float] = {}  # entry's number: from which epoch

    def make(self) -> PredictedSizes:
        self._look_for_unknowns()
        self._rehearse()
        rows = [self._row(-1.0, "the model as it is", 0.0)]
        for event in self._events():
            rows.append(self._row(event.epoch, ", ".join(map(_label, event.entries)), event.epoch))
        if any(row.approximate for row in rows):
            self.notes.append(
                "~: which channels go is decided on weights that training will have changed; other weights gave about "
                "the same number"
            )
        return PredictedSizes(tuple(rows), tuple(dict.fromkeys(self.notes)))

    # -- what happens when --------------------------------------------------------------------------------------------

    def _events(self) -> list[_Event]:
        found: dict[float, _Event] = {}
        for entry, acts, curves in self.planned:
            for at in _moments(entry, acts, curves, self.epochs):
                found.setdefault(at, _Event(at)).entries.append(entry)
        return [found[at] for at in sorted(found) if at <= self.epochs]

    def _look_for_unknowns(self) -> None:
        for number, (entry, acts, curves) in enumerate(self.planned):
            why = _why_unknown(entry, acts, curves, self.scheduler.parameters)
            if why is not None:
                self.unknown_structure[number] = acts[0]
                self.notes.append(
                    f"{_label(entry)}: {why}, so how many values are not zero from epoch {acts[0]:g} on is not known"
                )

    def _rehearse(self) -> None:
        if not any(is_structural(entry) and acts for entry, acts, _ in self.planned):
            return
        try:
            for number, tried in enumerate(self.tries or ()):
                also = {math.floor(event.epoch) for event in self._events()}
                found, last = rehearse(
                    self.scheduler, self.model, self.epochs, self.example, also=also, redrawn=bool(number)
                )
                tried += [*found, last]
        except _MODEL_ERRORS as error:
            self.tries = None
            reason = " ".join(str(error).split())
            self.notes.append(f"what structured pruning leaves cannot be tried on a copy of the model: {reason}")

    def _macs(self) -> int | None:
        if self.example is None:
            self.notes.append("MACs are not known: give the shape of the model's input")
            return None
        try:
            return macs_of(self.model, self.example)
        except _MODEL_ERRORS as error:
            self.notes.append(f"MACs are not known: the model does not run ({' '.join(str(error).split())})")
            return None

    # -- one row ------------------------------------------------------------------------------------------------------

    def _row(self, epoch: float, cause: str, at: float) -> PredictedSize:
        if epoch < 0:
            total = self.first.parameters
            return PredictedSize(0.0, cause, total, total - self._zeros_now(), self.first.macs, self._bytes(0.0, -1))
        hidden = any(at >= start for start in self.unknown_structure.values())
        removes = self._removes_before(at)
        if self.tries is None:
            snapshots = None if removes else (self.first, self.first)
        else:
            snapshots = (_latest(self.tries[0], at), _latest(self.tries[1], at))
        if snapshots is None or (hidden and removes):
            return PredictedSize(epoch, cause, None, None, None, None)
        mine, other = (self._counted(one, number, at, hidden) for number, one in enumerate(snapshots))
        values: dict[str, int | None] = {}
        loose = []
        for name, value in mine.items():
            theirs = other[name]
            values[name] = value
            if value is None or theirs is None or value == theirs:
                continue
            if abs(value - theirs) <= _ALIKE * max(value, theirs):
                loose.append(name)
            else:
                values[name] = None
                self._tell(cause, at, name, value)
        return PredictedSize(epoch, cause, **values, approximate=tuple(loose))

    def _counted(self, snapshot: Snapshot, number: int, at: float, hidden: bool) -> dict[str, int | None]:
        """All four numbers of one try."""
        nonzero = None if hidden or self.tries is None else self._nonzero(snapshot, at)
        return {
            "parameters": snapshot.parameters,
            "nonzero": nonzero,
            "macs": snapshot.macs,
            "size_bytes": self._bytes(at, number),
        }

    def _tell(self, cause: str, at: float, name: str, value: int) -> None:
        """Once for each number: what is removed was zero before."""
        if name != "size_bytes" and value not in self.told:
            self.told.add(value)
            what = {"parameters": "parameters", "macs": "MACs"}.get(name, "non-zero values")
            self.notes.append(
                f"the number of {what} after {cause} (epoch {at:g}) depends on which channels training will make "
                f"unimportant; with the weights the model has now it would be {value:,}"
            )

    def _nonzero(self, snapshot: Snapshot, at: float) -> int:
        """Zeros of structures and of single weights lie on top of each other as far as they can."""
        levels: dict[str, float] = {}
        shared = 0
        for entry, _, curves in self.planned:
            for curve in () if is_structural(entry) else curves:
                level = value_at(curve.values, at)
                if curve.of != "sparsity" or level is None:
                    continue
                if curve.together:
                    shared += int(level * sum(snapshot.numel.get(name, 0) for name in curve.parameters) + 1e-6)
                else:
                    levels |= {name: max(level, levels.get(name, 0.0)) for name in curve.parameters}
        zeros = {name: int(level * snapshot.numel.get(name, 0) + 1e-6) for name, level in levels.items()}
        single = sum(max(zeros.get(name, 0), snapshot.zeros.get(name, 0)) for name in {*zeros, *snapshot.zeros})
        return snapshot.parameters - single - shared

    def _bytes(self, at: float, number: int) -> int:
        snapshot = self.first if number < 0 or self.tries is None else _latest(self.tries[number], at)
        bits = dict(self.bits)
        for entry, acts, _ in self.planned:
            if isinstance(entry.policy, QuantizationPolicy) and acts and number >= 0 and acts[0] <= at:
                bits |= quantized_bits(entry.policy)
        return snapshot.buffers + math.ceil(sum(size * bits.get(name, 32) for name, size in snapshot.numel.items()) / 8)

    def _zeros_now(self) -> int:
        """Zeros of a model that was pruned before; those of biases and norms say nothing."""
        return sum(int((parameter == 0).sum()) for _, parameter in _named(self.model) if parameter.dim() > 1)

    def _removes_before(self, at: float) -> bool:
        kinds = (StructureRemover, LayerThinning, LayerPruning, LowRankThinning)
        return any(isinstance(e.policy, kinds) and acts and acts[0] <= at for e, acts, _ in self.planned)


def _label(entry: Entry) -> str:
    return entry.name or entry.policy.describe()


def _moments(entry: Entry, acts: Sequence[float], curves: Sequence[Curve], epochs: int) -> Iterator[float]:
    """When a policy has done what changes the model's size."""
    policy = entry.policy
    if isinstance(policy, LayerThinning):
        yield from [at for at in policy.update_epochs if at < epochs] or [float(epochs)]
    elif not acts:
        return
    elif isinstance(policy, StructureRemover | LowRankThinning):
        yield from acts
    elif isinstance(policy, QuantizationPolicy):
        yield acts[0]
    elif isinstance(policy, LayerPruning):
        if math.isinf(entry.window.end):
            yield float(epochs)
    elif isinstance(policy, PruningPolicy) or curves:
        ends = [values[-1][0] for curve in curves if (values := curve.values)]
        yield min(max([acts[-1], *ends]), float(epochs))


def _why_unknown(
    entry: Entry, acts: Sequence[float], curves: Sequence[Curve], parameters: ParameterIndex
) -> str | None:
    policy = entry.policy
    if not acts:
        return None
    if isinstance(policy, RegularizationPolicy) and policy.regularizer.threshold_criteria is not None:
        return "zeroes what falls below a threshold while training"
    if not isinstance(policy, PruningPolicy):
        planned = policy.planned_sparsity(entry.window, parameters)
        return "learns how much it prunes" if planned and not curves else None
    if isinstance(policy.pruner, GroupPruner) or any(c.of in ("sparsity", "channels") for c in curves):
        return None
    by_chance = isinstance(policy.pruner, BernoulliFilterPruner | RandomLevelStructureParameterPruner)
    return f"{'chance decides' if by_chance else 'the weights decide'} how much it prunes"


def quantized_bits(policy: QuantizationPolicy) -> dict[str, int]:
    """Bits of every parameter that a policy quantizes: ``{"fc.weight": 8, "fc.bias": 32}``."""
    found: dict[str, int] = {}
    for row in policy.quantizer.plan().rows:
        for own, bits in (("weight", row.weights), ("bias", row.bias)):
            if bits is not None:
                found[f"{row.module}.{own}" if row.module else own] = bits
    return found


def _latest(snapshots: Sequence[Snapshot], at: float) -> Snapshot:
    return next(one for one in reversed(snapshots) if one.epoch <= math.floor(at + 1e-9))


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in unwrap(model).named_parameters():
        yield canonical_name(name), parameter
