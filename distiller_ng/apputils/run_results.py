"""What came of a compression run: top-1 before and after, planned and achieved sparsity (layer 5)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distiller_ng.core.resume import capture_rng, restore_rng
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.core.summary import CompressionSummary
from distiller_ng.ops.files import write_text_atomically

__all__ = ["RunResults", "Scores", "first_pruning_epoch", "undisturbed", "unfinished_policies"]


@dataclass(frozen=True, slots=True)
class Scores:
    """Accuracy on the test set: ``top1`` and ``top5`` in percent, ``loss`` the mean criterion, measured at ``epoch``.

    For a model that is no classifier ``top1`` and ``top5`` are NaN.

    ``sparsity`` is the fraction of zeros in the weights that count.
    """

    epoch: int
    top1: float
    top5: float
    loss: float
    sparsity: float


@dataclass(slots=True)
class RunResults:
    """Everything worth keeping of a run; :meth:`save` writes it as JSON.

    ``before`` is measured right before the first epoch that prunes, ``after`` when the run has ended; a loop that
    measures other things has ``metrics_before`` and ``metrics_after`` instead (``{"Top1": 91.2, "F1": 0.8}``).
    ``model_before``, ``model_after``: see :func:`~distiller_ng.apputils.run_facts.model_facts`; ``layers``:
    :func:`~distiller_ng.apputils.run_facts.layer_facts`. ``status``: ``"running"``, ``"finished"`` or why it stopped.
    """

    facts: dict[str, Any]
    before: Scores | None = None
    after: Scores | None = None
    best: dict[str, Any] | None = None
    summary: CompressionSummary | None = None
    seconds: float | None = None
    metrics_before: Mapping[str, float] = field(default_factory=dict)
    metrics_after: Mapping[str, float] = field(default_factory=dict)
    model_before: Mapping[str, Any] = field(default_factory=dict)
    model_after: Mapping[str, Any] = field(default_factory=dict)
    layers: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    status: str = "finished"
    epochs_done: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values: the run's facts, ``top1_before``, ``top1_after``, ``total_sparsity``, ``parameters``, ..."""
        before, after, summary = self.before, self.after, self.summary
        firsts = dict(self.metrics_before) or _metrics(before)
        lasts = dict(self.metrics_after) or _metrics(after)
        sparsity = self.model_after.get("sparsity") if after is None else after.sparsity
        return {
            **self.facts,
            "status": self.status,
            "epochs_done": self.epochs_done,
            "top1_before": self.metrics_before.get("Top1") if before is None else before.top1,
            "top1_after": self.metrics_after.get("Top1") if after is None else after.top1,
            "total_sparsity": sparsity,
            "pruned_sparsity": None if summary is None else summary.total_sparsity,
            "before": None if before is None else asdict(before),
            "after": None if after is None else asdict(after),
            "metrics_before": firsts,
            "metrics_after": lasts,
            "best": self.best,
            "model": {"before": dict(self.model_before), "after": dict(self.model_after)},
            "parameters": [] if summary is None else summary.as_dict()["parameters"],
            "layers": [dict(row) for row in self.layers],
            "warnings": [*self.notes, *(() if summary is None else summary.warnings)],
            "seconds": self.seconds,
        }

    def save(self, path: Path) -> None:
        """Write :meth:`as_dict`."""
        write_text_atomically(path, json.dumps(_finite(self.as_dict()), indent=2, default=str) + "\n")

    def lines(self) -> str:
        """The result in words, e.g. ``Top1 before pruning: 97.500 (dense, epoch 8)``."""
        parts = []
        for scores, when in ((self.before, "before"), (self.after, "after")):
            if scores is not None:
                name, value = ("Loss", scores.loss) if math.isnan(scores.top1) else ("Top1", scores.top1)
                label = f"{name} {when} pruning:" if self.before is not None else f"{name}: "
                width = len(name) + 16 if self.before is not None else 0
                place = f"(test set, after epoch {scores.epoch}, sparsity {scores.sparsity:.2%})"
                parts.append(f"{label:<{width}} {value:.3f}    {place}")
        return "\n".join(parts)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know: the scores before pruning, and the model it began with."""
        before = None if self.before is None else asdict(self.before)
        return {"before": before, "model_before": dict(self.model_before)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        before = state.get("before")
        self.before = None if before is None else Scores(**before)
        self.model_before = dict(state.get("model_before") or {})


def _metrics(scores: Scores | None) -> dict[str, float]:
    """What a model is judged by that has no top-1."""
    return {} if scores is None or not math.isnan(scores.top1) else {"Loss": scores.loss}


def first_pruning_epoch(scheduler: CompressionScheduler) -> int | None:
    """The first epoch in which some policy plans to zero weights; None when none does.

    Example: AGP from epoch 8 on and a group lasso without a plan from epoch 0 on -> 8.
    """
    starts = [
        int(window.start)
        for policy, window in scheduler.schedule
        if policy.planned_sparsity(window, scheduler.parameters)
    ]
    return min(starts, default=None)


def unfinished_policies(scheduler: CompressionScheduler, epochs: int) -> list[str]:
    """A sentence for each pruning policy that a run of ``epochs`` epochs cuts off."""
    cut = []
    for policy, window in scheduler.schedule:
        last = window.last_epoch
        if last is not None and last >= epochs and policy.planned_sparsity(window, scheduler.parameters):
            cut.append(f"{policy.describe()} is scheduled up to epoch {last}; what it plans may not be reached")
    return cut


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put all random generators back afterwards: measuring must not change the training that follows."""
    state = capture_rng()
    try:
        yield
    finally:
        restore_rng(state)


def _finite(value: Any) -> Any:
    """NaN and infinity, which JSON does not have, as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
