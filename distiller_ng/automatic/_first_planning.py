"""From a model and a target to the levels of a first schedule."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from distiller_ng.automatic._first_allocation import CostOf, Layer, allocate, least_share
from distiller_ng.automatic._first_layers import Advice, Unit, advice_for, units_of
from distiller_ng.automatic._first_rehearsal import (
    Rehearsed,
    rehearsal_windows,
    rehearse,
    rounded_parameters,
)
from distiller_ng.automatic._first_sensitivity import Evaluate, Sensitivity, measured_sensitivity
from distiller_ng.automatic._first_target import (
    TECHNIQUES,
    Target,
    Technique,
    UnreachableTarget,
    technique_named,
    two_digits,
)
from distiller_ng.automatic._first_text import Entry, Sheet, schedule_text
from distiller_ng.automatic._first_windows import Windows, windows_for
from distiller_ng.automatic._search_latency import latency_share
from distiller_ng.automatic.candidates import Candidates, LayerChoice, PredictedCost
from distiller_ng.errors import ArgumentError, GraphError
from distiller_ng.graph.inputs import ExampleInputs, batch_size

__all__ = ["Plan", "make_plan"]

logger = logging.getLogger(__name__)

_TRIES = 6
_SECONDS = 2.0  # for each measurement of the latency
_INT8_IS_NEAR = 0.3  # sizes from here on are met by zeros alone without great damage


@dataclass
class Plan:
    """What was found and decided; the text is written from it."""

    model: nn.Module
    target: Target
    technique: Technique
    windows: Windows
    before: PredictedCost
    why: str
    rehearsed: Rehearsed
    units: Sequence[Unit] = ()
    advice: Mapping[str, Advice] = field(default_factory=dict)
    relaxed: bool = False
    levels: Mapping[str, float] = field(default_factory=dict)
    bits: Mapping[str, int] = field(default_factory=dict)
    activations: bool = True
    sensitivity: Sensitivity | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    reached: float = 1.0
    batch: int = 1


def make_plan(
    model: nn.Module,
    inputs: ExampleInputs,
    target: Target,
    technique: str | None,
    *,
    epochs: int,
    evaluate: Evaluate | None,
    levels: Sequence[float],
    seconds: float,
    processes: int,
    seed: int,
) -> Plan:
    """Choose, measure, share out, try. Errors are those of :func:`first_schedule`."""
    _check_levels(levels)
    given = None if technique is None else technique_named(technique, target)
    plain = Candidates(model, inputs)
    before = plain.cost({})
    if before.of("size") == 0 or (target.budget != "size" and before.macs == 0):
        raise ArgumentError("the model has nothing to compress: no weights that multiply its input")
    bits, activations = _int8_weights(model, given)
    chosen, why = (given, "you asked for it") if given is not None else _choose(plain, target, bits)
    shapes = {name: tuple(parameter.shape) for name, parameter in plain.parameters.items()}
    untouched = Rehearsed(model, before, shapes)
    plan = Plan(model, target, chosen, windows_for(chosen, epochs), before, why, untouched, activations=activations)
    plan.bits = bits if chosen.bits != 32 else {}
    if chosen.bits != 32 and not bits:
        raise ArgumentError(f"technique {chosen.name!r}: the model has no layer that can be rounded to 8 bits")
    plan.shapes, plan.batch = shapes, batch_size(inputs) or 1
    if chosen.group is None:
        _only_rounded(plan, model, inputs)
        return plan
    candidates = plain if chosen.group == "element" else _followed(model, inputs)
    plan.before = candidates.cost({})
    plan.units = [unit for unit in units_of(candidates, inputs) if _fits(unit, chosen)]
    plan.sensitivity = measured_sensitivity(
        candidates, plan.units, evaluate, levels, seconds=seconds, processes=processes, seed=seed
    )
    _settle(plan, model, inputs, candidates)
    return plan


def _check_levels(levels: Sequence[float]) -> None:
    wrong = [level for level in levels if isinstance(level, bool) or not 0 < level < 1]
    if wrong or not levels:
        message = f"levels are shares above 0 and below 1, such as (0.3, 0.5, 0.7); got {list(levels)}"
        raise ArgumentError(message, argument=("levels",))


def _int8_weights(model: nn.Module, given: Technique | None) -> tuple[dict[str, int], bool]:
    """What 8 bits would round; nothing for models the quantizer refuses, unless it was asked for."""
    try:
        return rounded_parameters(model, 8)
    except ArgumentError:
        if given is not None and given.bits != 32:
            raise
        return {}, False


def _choose(plain: Candidates, target: Target, bits: Mapping[str, int]) -> tuple[Technique, str]:
    """The technique that fits a target, and why."""
    if target.budget != "size":
        words = {"macs": "multiply-accumulates", "latency": "time"}[target.budget]
        why = (
            f"zeros alone do not save {words}: a dense runtime multiplies by them as by any other number. Whole "
            "filters are removed instead, which makes the layers themselves smaller, on any runtime"
        )
        return TECHNIQUES["filters"], why
    rounded = plain.cost({name: LayerChoice(bits=8) for name in bits}).of("size") / plain.cost({}).of("size")
    if bits and rounded <= target.share < _INT8_IS_NEAR:
        why = f"8 bits in place of 32 bring the file to {rounded:.2f}, and of all techniques cost the least accuracy"
        return TECHNIQUES["int8"], why
    if bits and target.share < rounded:
        why = f"8 bits alone end at {rounded:.2f}, so there are zeros besides, which need not be stored"
        return TECHNIQUES["weights+int8"], why
    why = (
        "zeros need not be stored: a file that keeps the others and a bit for each weight is that much smaller (a "
        "dense runtime is not faster for it: for speed ask for macs or latency)"
    )
    if bits:
        why += f". Another way to a small file is --technique int8, which ends at {rounded:.2f}"
    return TECHNIQUES["weights"], why


def _followed(model: nn.Module, inputs: ExampleInputs) -> Candidates:
    try:
        return Candidates(model, inputs, group="filter")
    except GraphError as error:
        raise GraphError(
            f"filters cannot be removed, as the model cannot be followed: {error}. Single weights can be pruned in any "
            "model: --technique weights --target size=..."
        ) from error


def _fits(unit: Unit, technique: Technique) -> bool:
    """N:M needs whole groups along the inputs; tied filters always fit."""
    return technique.pattern is None or (len(unit.shape) > 1 and unit.shape[1] % 4 == 0)


def _only_rounded(plan: Plan, model: nn.Module, inputs: ExampleInputs) -> None:
    cost = Candidates(model, inputs).cost({name: LayerChoice(bits=b) for name, b in plan.bits.items()})
    plan.rehearsed = Rehearsed(model, cost, plan.shapes)
    plan.reached = _share(plan, cost)
    if plan.reached > plan.target.share:
        raise _unreachable(plan, plan.reached)


# -- levels ------------------------------------------------------------------------------------------------------------


def _settle(plan: Plan, model: nn.Module, inputs: ExampleInputs, candidates: Candidates) -> None:
    """Levels for the target's share; a little lower where the copy turns out to be larger than was counted."""
    cost = _cost_of(plan, candidates)
    least, wanted = _least(plan, cost), plan.target.share
    if plan.target.budget == "latency":
        _settle_latency(plan, model, inputs, candidates, least)
        return
    if wanted < least - 1e-9:
        raise _unreachable(plan, least)
    share = wanted
    for _ in range(_TRIES):
        _try(plan, model, inputs, candidates, cost, share)
        plan.reached = _share(plan, plan.rehearsed.cost)
        if plan.reached <= wanted * 1.002:
            return
        share = max(share * min(0.98, wanted / plan.reached), least)
    raise _unreachable(plan, plan.reached)


def _settle_latency(plan: Plan, model: nn.Module, inputs: ExampleInputs, candidates: Candidates, least: float) -> None:
    """Shares of the multiply-accumulates until the copy is as fast as wanted, and not much faster.

    Time is taken for a fixed part and one that goes with the multiply-accumulates: each measurement gives the next
    share to try. Of 0.4 of the multiply-accumulates that take 0.55 of the time a quarter is fixed; for 0.5 of the time
    a third of them may stay.
    """
    cost, wanted = _cost_of(plan, candidates), plan.target.share
    best: tuple[float, dict[str, float], Rehearsed] | None = None
    share, fastest = max(wanted, least), math.inf
    for _ in range(_TRIES):
        _try(plan, model, inputs, candidates, cost, share)
        time = latency_share(plan.rehearsed.model, model, inputs, seconds=_SECONDS)
        logger.info("tried: with %.2f of the multiply-accumulates %.2f of the time remains", share, time)
        fastest = min(fastest, time)
        if time <= wanted and (best is None or time > best[0]):
            best = time, dict(plan.levels), plan.rehearsed
        if 0.95 * wanted <= time <= wanted or (time > wanted and share <= least):
            break
        fixed = min(max((time - share) / (1 - share), 0.0), 0.98 * wanted)
        share = min(max((0.98 * wanted - fixed) / (1 - fixed), least, 0.5 * share), 0.98)
    if best is None:
        raise _unreachable(plan, fastest)
    plan.reached, plan.levels, plan.rehearsed = best


def _try(
    plan: Plan, model: nn.Module, inputs: ExampleInputs, candidates: Candidates, cost: CostOf, share: float
) -> None:
    plan.levels = _levels(plan, cost, share)
    plan.rehearsed = rehearse(model, inputs, _short_text(plan, plan.levels), plan.bits, group=candidates.group)


def _levels(plan: Plan, cost: CostOf, share: float) -> dict[str, float]:
    """Within the advice of the literature if that is possible, else as far as the layers go."""
    for relaxed in (False, True):
        plan.advice = {unit.name: advice_for(unit, plan.technique, relaxed=relaxed) for unit in plan.units}
        plan.relaxed = relaxed
        found = allocate(_layers(plan), cost, share)
        if found is not None:
            return found
    raise _unreachable(plan, least_share(_layers(plan), cost))


def _least(plan: Plan, cost: CostOf) -> float:
    """What remains when all layers go as far as they can, whatever is advised."""
    plan.advice = {unit.name: advice_for(unit, plan.technique, relaxed=True) for unit in plan.units}
    return least_share(_layers(plan), cost)


def _layers(plan: Plan) -> list[Layer]:
    only = (0.5,) if plan.technique.pattern is not None else None
    found = plan.sensitivity
    return [
        Layer(unit.name, {} if found is None else found.damages(unit.name), plan.advice[unit.name].cap, only)
        for unit in plan.units
    ]


def _cost_of(plan: Plan, candidates: Candidates) -> CostOf:
    """What remains of the budget with these levels; of latency the multiply-accumulates stand for it."""
    budget = "size" if plan.target.budget == "size" else "macs"
    whole = candidates.cost({}).of(budget)

    def remains(levels: Mapping[str, float]) -> float:
        names = {**dict.fromkeys(plan.bits, 0.0), **levels}
        choices = {name: LayerChoice(level, plan.bits.get(name, 32)) for name, level in names.items()}
        return candidates.cost(choices).of(budget) / whole

    return remains


def _share(plan: Plan, cost: PredictedCost) -> float:
    budget = "size" if plan.target.budget == "size" else "macs"
    return cost.of(budget) / plan.before.of(budget)


def _short_text(plan: Plan, levels: Mapping[str, float]) -> str:
    """The schedule without its comments and rounding, as early as can be, for the rehearsal."""
    entries = [Entry(name, level, "") for name, level in levels.items()]
    return schedule_text(Sheet(plan.technique, rehearsal_windows(plan.technique), entries))


def _unreachable(plan: Plan, least: float) -> UnreachableTarget:
    target, technique = plan.target, plan.technique
    step = 100 if least >= 0.1 else 1000
    shown = math.ceil(least * step - 1e-9) / step
    message = (
        f"{target} is out of reach with technique {technique.name!r}, which brings this model to "
        f"{two_digits(least)} at best"
    )
    advice = f"ask for {target.budget}={shown:g} or more"
    if shown >= 1:
        nothing = "its time does not depend on its filters" if target.budget == "latency" else "nothing of it can go"
        advice = f"{nothing}; try --target size=0.3"
    other = {"weights": "weights+int8", "2:4": "weights", "filters": "filters+int8", "int8": "weights+int8"}
    if target.budget == "size" and technique.name in other and plan.bits is not None:
        advice += f", or try --technique {other[technique.name]}"
    if target.budget == "latency" and plan.batch == 1:
        advice += (
            ". One sample at a time is mostly overhead: a batch, such as --input-shape 64,..., has more work to save"
        )
    return UnreachableTarget(f"{message}: {advice}", least=least)
