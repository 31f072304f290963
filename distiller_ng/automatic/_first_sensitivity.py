"""How much each layer tolerates, measured for a first schedule: with the user's evaluation, or without any data."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from distiller_ng.automatic._first_layers import Unit
from distiller_ng.automatic._first_processes import measure_in_processes
from distiller_ng.automatic.candidates import Candidates, LayerChoice
from distiller_ng.errors import ArgumentError
from distiller_ng.graph.inputs import ExampleInputs, flat_tensors
from distiller_ng.graph.trace import evaluating
from distiller_ng.ops.scores import Scores, as_scores, check_whole
from distiller_ng.reports.sensitivity import perform_sensitivity_analysis

__all__ = ["Evaluate", "OutputError", "Sensitivity", "measured_sensitivity"]

logger = logging.getLogger(__name__)

#: ``evaluate(model=model) -> (top1, top5, loss)``, or top1 alone; top1 and top5 in percent.
Evaluate: TypeAlias = Callable[..., Sequence[float]]
_DRAWS = 4  # batches of random inputs, besides the example inputs


@dataclass(frozen=True)
class Sensitivity:
    """What was found: for each unit ``{level: (top1, top5, loss)}``, and the model as it is.

    ``metric``: what damage is the rise of, "loss" or "top1" (the loss never moved), or "output error" (no data).
    """

    scores: Mapping[str, Mapping[float, Scores]]
    whole: Scores
    metric: str
    levels: tuple[float, ...]
    skipped: tuple[float, ...] = ()

    def damages(self, name: str) -> dict[float, float]:
        """``{level: damage}`` of a unit, 0 or more; what is no finite number is the worst damage seen, doubled."""
        raw = {level: self._damage(scores) for level, scores in self.scores.get(name, {}).items()}
        every = [self._damage(scores) for own in self.scores.values() for scores in own.values()]
        worst = max((damage for damage in every if math.isfinite(damage)), default=1.0)
        worst = worst if worst > 0 else 1.0
        return {level: max(d, 0.0) if math.isfinite(d) else 2 * worst for level, d in raw.items()}

    def told(self, name: str) -> str:
        """For a comment, by the measurement nearest to a half: ``losing 50 % of it alone: top-1 98.3 -> 97.2, ...``."""
        own = self.scores.get(name)
        if not own:
            return ""
        level = min(own, key=lambda at: (abs(at - 0.5), at))
        top1, _, loss = own[level]
        alone = f"losing {level * 100:g} % of it alone"
        if self.metric == "output error":
            return f"{alone} moves the outputs by {loss * 100:.1f} %"
        moved = "" if math.isnan(loss) else f", loss {self.whole[2]:.3f} -> {loss:.3f}"
        return f"{alone}: top-1 {self.whole[0]:.1f} -> {top1:.1f}{moved}"

    def _damage(self, scores: Scores) -> float:
        return self.whole[0] - scores[0] if self.metric == "top1" else scores[2] - self.whole[2]


class OutputError:
    """The evaluation without data: how far the outputs are from those of the model as it was.

    ``OutputError(model, inputs)(model=changed)`` gives ``(100 * (1 - e), 100 * (1 - e), e)`` with the relative error
    ``e = |y - y0| / |y0|`` over the example inputs and random ones of the same shapes, mean and spread (whole numbers,
    such as tokens, are drawn from those of the example). Outputs ``[3, 4]`` that become ``[3, 3]``: ``e`` is 0.2.
    """

    def __init__(self, model: nn.Module, inputs: ExampleInputs, *, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.batches = [inputs, *(_drawn(inputs, generator) for _ in range(_DRAWS))]
        self.expected = self._outputs(model)
        self.size = math.sqrt(sum(float(y.square().sum()) for y in self.expected))
        if not 0 < self.size < math.inf:
            raise ArgumentError(
                "the model's outputs on random input are all zero or not finite, so they say nothing about its layers: "
                "give an evaluation (--evaluate, --dataset)",
                argument=("evaluate",),
            )

    def __call__(self, model: nn.Module) -> Scores:
        """Compare."""
        pairs = zip(self._outputs(model), self.expected, strict=True)
        error = math.sqrt(sum(float((y - x).square().sum()) for y, x in pairs)) / self.size
        return 100 * (1 - error), 100 * (1 - error), error

    @torch.no_grad()
    def _outputs(self, model: nn.Module) -> list[Tensor]:
        with evaluating(model):
            found = [y for batch in self.batches for y in flat_tensors(batch.call(model))]
        return [y.detach().double() for y in found if y.is_floating_point()]


def _drawn(inputs: ExampleInputs, generator: torch.Generator) -> ExampleInputs:
    def other(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator).to(tensor)
            spread = tensor.float().std() if tensor.numel() > 1 else torch.tensor(1.0)
            return noise * spread.to(tensor) + tensor.float().mean().to(tensor)
        if tensor.dtype == torch.bool or tensor.numel() < 2:
            return tensor
        order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
        return tensor.flatten()[order].reshape(tensor.shape)

    args, kwargs = tree_map_only(Tensor, other, (inputs.args, dict(inputs.kwargs)))
    return ExampleInputs(args, kwargs)


def measured_sensitivity(
    candidates: Candidates,
    units: Sequence[Unit],
    evaluate: Evaluate | None,
    levels: Sequence[float],
    *,
    seconds: float,
    processes: int = 1,
    seed: int = 0,
) -> Sensitivity:
    """Each unit compressed alone, at each level; as few levels as fit into ``seconds`` (at least one).

    Weights: Distiller's analysis (:func:`~distiller_ng.reports.sensitivity.perform_sensitivity_analysis`). Filters: of
    tied layers all lose theirs together, really removed, as the schedule will do. Which levels: of 0.3, 0.5 and 0.7
    first 0.5, then 0.7, then 0.3.
    """
    test = evaluate or OutputError(candidates.model, candidates.example_inputs, seed=seed)
    began = time.monotonic()
    whole = as_scores(test(model=candidates.model))
    check_whole(whole)
    one = time.monotonic() - began
    fit = max(1, int(seconds * processes / max(one * len(units), 1e-9)))
    wanted = sorted(sorted(set(levels)), key=lambda level: (abs(level - 0.5), -level))
    chosen = tuple(sorted(wanted[:fit]))
    about = one * len(units) * len(chosen) / processes
    what = f"{_counted(len(units), 'layer')} at {_counted(len(chosen), 'level')}"
    logger.info("measuring %s (about %.0f s) ...", what, about)
    scores = _measure(candidates, units, test, chosen, processes)
    metric = "output error" if evaluate is None else _metric(whole, scores)
    return Sensitivity(scores, whole, metric, chosen, tuple(sorted(set(levels) - set(chosen))))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _metric(whole: Scores, scores: Mapping[str, Mapping[float, Scores]]) -> str:
    """The loss, which moves before a decision falls the other way; top-1 where the user's function gives no loss."""
    moved = any(found[2] != whole[2] for own in scores.values() for found in own.values())
    return "loss" if moved and math.isfinite(whole[2]) else "top1"


def _measure(
    candidates: Candidates, units: Sequence[Unit], test: Any, levels: Sequence[float], processes: int
) -> dict[str, dict[float, Scores]]:
    if not units:
        return {}
    if candidates.group == "element":
        names = [unit.name for unit in units]
        return perform_sensitivity_analysis(candidates.model, names, levels, test, "element", processes=processes)
    cells = [(unit.name, level) for unit in units for level in levels]
    choices = [{unit.name: LayerChoice(level)} for unit in units for level in levels]
    if processes > 1:
        found = measure_in_processes(candidates, choices, test, processes)
    else:
        found = [as_scores(test(model=candidates.build(choice))) for choice in choices]
    scores: dict[str, dict[float, Scores]] = {}
    for (name, level), one in zip(cells, found, strict=True):
        scores.setdefault(name, {})[level] = one
    return scores
