"""A smaller model in one call: what is zero goes, or what is least important, down to a budget (layer 5)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.graph.inputs import ExampleInputs
from distiller_ng.policies.one_shot import prune_structures
from distiller_ng.pruning.importance.base import ImportanceLike
from distiller_ng.reports.size_and_speed import ModelFigures, size_and_speed, size_and_speed_tbl
from distiller_ng.thinning.functions import contract_model

__all__ = ["ThinnedModel", "thin_model"]

#: Steps of the search for the share of MACs that meets a latency; each halves what is still unknown.
_STEPS = 6
_LEAST_MACS = 0.02


@dataclass(frozen=True, slots=True)
class ThinnedModel:
    """The smaller model, and figures of both: ``before`` and ``after``."""

    model: nn.Module
    before: ModelFigures
    after: ModelFigures

    def ratios(self) -> dict[str, float]:
        """What is left of parameters, MACs, file and latency (batch of the first figure), as fractions."""
        old, new = self.before, self.after
        batch = next(iter(old.latency))
        return {
            "parameters": new.parameters / max(old.parameters, 1),
            "macs": new.macs / max(old.macs, 1),
            "file_bytes": new.file_bytes / max(old.file_bytes, 1),
            "latency": new.latency[batch] / old.latency[batch],
        }

    def __str__(self) -> str:
        return size_and_speed_tbl([self.before, self.after])


def thin_model(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    target: Mapping[str, float] | None = None,
    importance: ImportanceLike = "l1",
    round_to: int = 1,
    batch: int = 1,
) -> ThinnedModel:
    """A smaller copy of ``model``; the given one stays as it is.

    Without ``target`` filters and channels that are all zero go, which changes no result. ``target`` says what shall
    remain: ``{"macs": 0.5}``, ``{"params": 0.3}``, ``{"latency": 0.6}`` or several; then the least important channels
    go (see :func:`~distiller_ng.policies.one_shot.prune_structures`), and the model needs training again. Latency is
    measured here, with batches of ``batch``: the largest share of MACs is searched that meets it.

    Raises :class:`ArgumentError` for budgets that cannot be met, :class:`GraphError` for models that cannot be
    followed. Example: ``thin_model(model, as_example_inputs(images), target={"macs": 0.5}).ratios()["macs"]`` is at
    most 0.5.
    """
    wanted = dict(target or {})
    latency = wanted.pop("latency", None)
    small = copy.deepcopy(model)
    if wanted:
        prune_structures(small, example_inputs, target=wanted, importance=importance, round_to=round_to)
    elif latency is None:
        contract_model(small, example_inputs=example_inputs, round_to=round_to)
    if latency is not None:
        small = _to_latency(model, small, example_inputs, latency, importance, round_to, batch)
    before, after = size_and_speed({"before": model, "after": small}, example_inputs, batches=(batch,))
    return ThinnedModel(small, before, after)


def _to_latency(
    model: nn.Module,
    small: nn.Module,
    inputs: ExampleInputs,
    wanted: float,
    importance: ImportanceLike,
    round_to: int,
    batch: int,
) -> nn.Module:
    """The largest cut of ``small`` that takes at most ``wanted`` of the time that ``model`` takes."""
    if not 0 < wanted < 1:
        message = f"latency: the share of the time that remains, between 0 and 1, got {wanted}"
        raise ArgumentError(message, argument=("target", "latency"))
    if _share_of_time(model, small, inputs, batch) <= wanted:
        return small
    low, high, found = _LEAST_MACS, 1.0, None
    fastest = 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        try:
            trial = copy.deepcopy(small)
            prune_structures(trial, inputs, target={"macs": middle}, importance=importance, round_to=round_to)
        except ArgumentError:  # a budget below what can be removed at all
            low = middle
            continue
        share = _share_of_time(model, trial, inputs, batch)
        fastest = min(fastest, share)
        if share <= wanted:
            found, low = trial, middle
        else:
            high = middle
    if found is None:
        raise ArgumentError(
            f"latency {wanted:g} was not reached: with batches of {batch} the smallest model that was tried takes "
            f"{fastest:.2f} of the time. Much of it is overhead: try a larger batch, or another budget (macs)",
            argument=("target", "latency"),
        )
    return found


def _share_of_time(model: nn.Module, small: nn.Module, inputs: ExampleInputs, batch: int) -> float:
    before, after = size_and_speed({"before": model, "after": small}, inputs, batches=(batch,), rounds=15)
    return after.latency[batch] / before.latency[batch]
