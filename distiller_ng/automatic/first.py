"""A first schedule for a model of the user's own: measured, shared out, tried, and explained line by line."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from distiller_ng.automatic._first_planning import Plan, make_plan
from distiller_ng.automatic._first_rehearsal import check_text
from distiller_ng.automatic._first_sensitivity import Evaluate
from distiller_ng.automatic._first_target import Target, Technique, UnreachableTarget, two_digits
from distiller_ng.automatic._first_text import schedule_text
from distiller_ng.automatic._first_words import sheet_of
from distiller_ng.automatic.candidates import LayerChoice, PredictedCost
from distiller_ng.errors import ArgumentError
from distiller_ng.graph.inputs import ExampleInputsLike, as_example_inputs
from distiller_ng.graph.trace import evaluating
from distiller_ng.names import unwrap
from distiller_ng.ops.files import write_text_atomically

__all__ = ["FirstSchedule", "UnreachableTarget", "first_schedule"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FirstSchedule:
    """A schedule and what it promises.

    ``text``: commented YAML. ``choices``: what happens to each parameter that is named (the sparsity of tied filters
    stands at the first of them). ``reasons``: why, by parameter. ``before``, ``after``: the model's cost now and what
    is predicted. ``reached``: the share of the target's budget that is predicted to remain. ``metric``: what was
    measured, "loss", "top1" or "output error" (no data). ``str()`` is a short account.
    """

    text: str
    target: Target
    technique: Technique
    choices: Mapping[str, LayerChoice]
    reasons: Mapping[str, str]
    before: PredictedCost
    after: PredictedCost
    reached: float
    epochs: int
    metric: str

    @property
    def promise(self) -> str:
        """``wanted macs=0.50, this schedule is predicted to reach 0.49``."""
        return f"wanted {self.target}, this schedule is predicted to reach {two_digits(self.reached)}"

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the text. Raises :class:`ArgumentError` for a file that is there, unless ``overwrite``."""
        place = Path(path)
        if place.exists() and not overwrite:
            raise ArgumentError(f"{place} is there already: name another file, or overwrite it (--force)")
        write_text_atomically(place, self.text)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        costs = {"before": self.before, "after": self.after}
        return {
            "target": {self.target.budget: self.target.share},
            "reached": self.reached,
            "technique": self.technique.name,
            "epochs": self.epochs,
            "measured": self.metric,
            **{name: {f: getattr(cost, f) for f in PredictedCost.__slots__} for name, cost in costs.items()},
            "choices": {
                name: {"sparsity": choice.sparsity, "bits": choice.bits, "why": self.reasons.get(name, "")}
                for name, choice in self.choices.items()
            },
            "schedule": self.text,
        }

    def __str__(self) -> str:
        return "\n".join([f"{self.technique.name}: {self.technique.what}", self.promise])


def first_schedule(
    model: nn.Module,
    example_inputs: ExampleInputsLike,
    *,
    target: str | Target,
    technique: str | None = None,
    epochs: int = 20,
    evaluate: Evaluate | None = None,
    levels: Sequence[float] = (0.3, 0.5, 0.7),
    seconds: float = 120.0,
    processes: int = 1,
    seed: int = 0,
    model_name: str = "the model",
) -> FirstSchedule:
    """Write a schedule that brings a trained model to ``target``, with the reasons for each line as comments.

    ``target``: ``"size=0.3"``, ``"macs=0.5"`` or ``"latency=0.5"``, the share that remains. ``technique``: one of
    :data:`~distiller_ng.automatic._first_target.TECHNIQUES` ("weights", "2:4", "filters", "int8", "weights+int8",
    "filters+int8"); by default what fits the target: filters for macs and latency, as zeros save a dense runtime no
    work; for size 8 bits where they are enough and close, zeros above, both together below. ``epochs``: how long the
    schedule lasts. ``evaluate(model=model) -> top1`` or ``(top1, top5, loss)`` measures how much each layer tolerates,
    at ``levels``, within about ``seconds``, by ``processes`` at once; without it, the change of the outputs on random
    input does (the comments say so). Each layer's level comes from these measurements
    (:func:`~distiller_ng.automatic._first_allocation.allocate`) within what the literature advises for first, last and
    depthwise layers; tied filters have one level. The model is left as it was.

    The schedule was tried on a copy of the model before it is returned: it loads without a problem, and what it leaves
    was counted there (latency: measured, in PyTorch, on this machine, with the batch of ``example_inputs``). A net of
    10,000 MACs with ``macs=0.5``::

        made = first_schedule(model, (x,), target="macs=0.5", epochs=30, evaluate=accuracy)
        print(made.promise)       # wanted macs=0.50, this schedule is predicted to reach 0.49
        made.save("first.yaml")

    Raises :class:`ArgumentError` for wrong arguments, :class:`UnreachableTarget` (one of them) with what can be
    reached, :class:`GraphError` for filters of a model that cannot be followed.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module, got {type(model).__name__}", argument=("model",))
    bare, inputs = unwrap(model), as_example_inputs(example_inputs)
    with evaluating(bare):
        plan = make_plan(
            bare,
            inputs,
            Target.read(target),
            technique,
            epochs=epochs,
            evaluate=evaluate,
            levels=levels,
            seconds=seconds,
            processes=processes,
            seed=seed,
        )
        sheet = sheet_of(plan, model_name)
        text = schedule_text(sheet)
        check_text(text, bare, inputs)
    return _result(plan, text, {entry.name: entry.comment for entry in sheet.entries})


def _result(plan: Plan, text: str, reasons: Mapping[str, str]) -> FirstSchedule:
    names = [*plan.levels, *(name for name in plan.bits if name not in plan.levels)]
    choices = {name: LayerChoice(plan.levels.get(name, 0.0), plan.bits.get(name, 32)) for name in names}
    return FirstSchedule(
        text,
        plan.target,
        plan.technique,
        choices,
        reasons,
        plan.before,
        plan.rehearsed.cost,
        plan.reached,
        plan.windows.epochs,
        plan.sensitivity.metric if plan.sensitivity is not None else "",
    )
