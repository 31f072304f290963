"""The loop of a search over scales: what numeric methods call, and the best of all they tried (layer 2)."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from distiller_ng.errors import ArgumentError, DistillerError
from distiller_ng.quantization.ptq_search_vector import SearchSpace

__all__ = ["EvalFn", "Score", "Search", "minimizer_arguments"]

# The search's own progress, told where the search is.
logger = logging.getLogger("distiller_ng.quantization.ptq_coordinate_search")

EvalFn = Callable[[nn.Module], Any]
#: First steps of Powell's method and of basin hopping, relative to a scale.
_FIRST_STEP, _HOP = 0.25, 0.1


class Score:
    """``eval_fn`` as the search calls it: without gradients, a float, infinity for NaN.

    Raises :class:`ArgumentError` for what is no number.
    """

    def __init__(self, eval_fn: EvalFn) -> None:
        self._eval_fn = eval_fn

    def __call__(self, model: nn.Module) -> float:
        """The score of ``model``."""
        with torch.no_grad():
            result = self._eval_fn(model)
        try:
            value = float(result)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ArgumentError(
                f"eval_fn must return one number, the loss to make small; it returned {type(result).__name__}",
                argument=("eval_fn",),
            ) from error
        return math.inf if math.isnan(value) else value


class _Spent(Exception):
    """The search has used its evaluations."""


@dataclass
class Search:
    """What the numeric method calls; remembers the best of all it tried."""

    space: SearchSpace
    score: Score
    model: nn.Module
    test_fn: Callable[[nn.Module], Mapping[str, float]] | None
    budget: int | None
    best: Any = None
    best_score: float = math.inf
    evaluations: int = 0
    _step: int = 0
    _reported: float = field(default=math.inf)

    def start(self) -> None:
        """Evaluate where the search begins."""
        self.best = self.space.origin
        self.space.set(self.best)
        self.best_score = self.score(self.model)
        self._report("initialized")

    def __call__(self, vector: Any) -> float:
        """The score with the scales of ``vector``."""
        if self.budget is not None and self.evaluations >= self.budget:
            raise _Spent
        self.evaluations += 1
        self.space.set(vector)
        score = self.score(self.model)
        if score < self.best_score:
            self.best_score, self.best = score, vector.copy()
        return score if math.isfinite(score) else 1e30  # brackets cannot be built from infinity

    def after_step(self, *_: Any) -> None:
        """The callback of the numeric method."""
        self._step += 1
        self._report(f"step {self._step}")

    def _report(self, when: str) -> None:
        figures = ""
        if self.test_fn is not None and self.best_score < self._reported:
            self.space.set(self.best)
            with torch.no_grad():
                results = self.test_fn(self.model)
            figures = "".join(f", {name} {value:.4g}" for name, value in dict(results).items())
        self._reported = self.best_score
        logger.info("%s: best loss %.4f (%d evaluations)%s", when, self.best_score, self.evaluations, figures)

    def run(self, arguments: dict[str, Any], hops: int | None, seed: int) -> None:
        """Let scipy minimise; an exhausted budget is no error."""
        from scipy import optimize

        try:
            if hops is None:
                optimize.minimize(self, self.best, callback=self.after_step, **arguments)
            else:
                takes = inspect.signature(optimize.basinhopping).parameters
                seeded = {"rng" if "rng" in takes else "seed": seed}
                optimize.basinhopping(
                    self, self.best, hops, stepsize=_HOP, callback=self.after_step, minimizer_kwargs=arguments, **seeded
                )
        except _Spent:
            self._report(f"stopped after {self.evaluations} evaluations")
        except (TypeError, ValueError) as error:
            if isinstance(error, DistillerError):
                raise
            raise ArgumentError(f"scipy.optimize refused its arguments: {error}", argument=("method",)) from error


def minimizer_arguments(
    method: Any, maxiter: int | None, maxfev: int | None, size: int, given: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The keyword arguments of ``scipy.optimize.minimize``; what ``given`` says comes last."""
    options: dict[str, Any] = {} if maxiter is None else {"maxiter": maxiter}
    if maxfev is not None:
        options["maxfev"] = maxfev
    chosen = (given or {}).get("method", method)
    if isinstance(chosen, str) and chosen.lower() == "powell":
        options["direc"] = _FIRST_STEP * torch.eye(size, dtype=torch.float64).numpy()
    more = dict(given or {})
    options |= dict(more.pop("options", None) or {})
    return {"method": method, **more, "options": options}
