"""Which epochs were best so far: by accuracy, or by sparsity first (layer 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from distiller_ng.errors import ArgumentError, CheckpointError
from distiller_ng.ops.weights import model_params_stats

__all__ = ["PerformanceRecord", "SparsityAccuracyTracker", "TrainingPerformanceTracker"]

_VERSION = 1


@dataclass(frozen=True, slots=True)
class PerformanceRecord:
    """Scores of one epoch.

    ``sparsity`` is a percentage of zeros (0..100, as Distiller reports it) and ``params_nnz_cnt`` the number of values
    that are not zero, both over the weights that count; ``top1`` and ``top5`` are percentages, NaN for a model that is
    no classifier. ``loss`` decides among those; NaN: not known.
    """

    sparsity: float
    params_nnz_cnt: int
    top1: float
    top5: float
    epoch: int
    loss: float = math.nan


class TrainingPerformanceTracker:
    """Ranks epochs by ``(top1, top5, epoch)``, best first; of equal scores the later epoch is better.

    Epochs without a top-1 are ranked by their loss, the lowest first.

    ``num_best_scores`` (1 or more) is how many :meth:`best_scores` gives at most. Subclasses override :meth:`rank`.
    Example: after top-1 of 90, 92 and 91 in epochs 0, 1, 2 the best two are epochs 1 and 2.
    """

    def __init__(self, num_best_scores: int) -> None:
        if num_best_scores < 1:
            raise ArgumentError(
                f"num_best_scores must be 1 or more, not {num_best_scores}", argument=("num_best_scores",)
            )
        self.max_len = num_best_scores
        self.perf_scores_history: list[PerformanceRecord] = []

    def rank(self, record: PerformanceRecord) -> tuple[float, ...]:
        """The sort key; greater is better."""
        return record.top1, record.top5, -record.loss if math.isnan(record.top1) else 0.0, record.epoch

    def step(
        self, model: nn.Module, epoch: int, *, top1: float, top5: float, loss: float = math.nan
    ) -> PerformanceRecord:
        """Record the scores ``model`` reached in ``epoch`` and return the record."""
        sparsity, _, nonzero = model_params_stats(model)
        record = PerformanceRecord(sparsity, nonzero, float(top1), float(top5), epoch, float(loss))
        self.perf_scores_history.append(record)
        self._sort()
        return record

    def best_scores(self, how_many: int = 1) -> list[PerformanceRecord]:
        """The best epochs so far, best first: ``how_many``, at most ``num_best_scores``; 0 asks for all of those."""
        count = self.max_len if how_many < 1 else min(how_many, self.max_len)
        return self.perf_scores_history[:count]

    def reset(self) -> None:
        """Forget all epochs."""
        self.perf_scores_history.clear()

    def state_dict(self) -> dict[str, Any]:
        """Every record as plain numbers, for a checkpoint."""
        return {"version": _VERSION, "records": [asdict(record) for record in self.perf_scores_history]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`; raises :class:`CheckpointError` when it is not one."""
        if state.get("version") != _VERSION:
            raise CheckpointError(f"tracker state has version {state.get('version')!r}, expected {_VERSION}")
        try:
            records = [PerformanceRecord(**record) for record in state["records"]]
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"tracker state is damaged: {error}") from error
        self.perf_scores_history = records
        self._sort()

    def _sort(self) -> None:
        # NaN compares false with everything and would leave the list half sorted: a diverged epoch ranks last.
        self.perf_scores_history.sort(
            key=lambda record: tuple(-math.inf if math.isnan(part) else part for part in self.rank(record)),
            reverse=True,
        )


class SparsityAccuracyTracker(TrainingPerformanceTracker):
    """Ranks epochs by ``(-params_nnz_cnt, top1, top5, epoch)``: the sparsest model first, accuracy among equals.

    Example: 80 % sparsity at top-1 70 comes before 50 % at top-1 90.
    """

    def rank(self, record: PerformanceRecord) -> tuple[float, ...]:
        """Fewest values that are not zero first, then accuracy."""
        return -record.params_nnz_cnt, *super().rank(record)
