"""A scheduler loaded without its schedule: it restores the run once the schedule is read again (layer 3)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import CheckpointError, listed

__all__ = ["LoadedScheduler"]

logger = logging.getLogger(__name__)

_ADVICE = (
    "The masks are kept, the policies begin afresh. To continue the saved run exactly, load the schedule it was "
    "started with, or use apputils.resume_checkpoint"
)


class LoadedScheduler(CompressionScheduler):
    """What ``load_checkpoint`` returns where it is given no scheduler: the saved masks, and no policies yet.

    ``_saved`` is the whole scheduler state of the file: policies' statistics, position, random generators. Reading a
    schedule into this scheduler (``file_config(model, optimizer, filename, scheduler, start_epoch - 1)``) restores it,
    once, when the schedule is the saved one; see :meth:`restore_saved`. ``_saved`` is None where nothing is owed.

    Example: a file saved after epoch 3 gives an empty :attr:`schedule`; after ``file_config`` with the run's own
    schedule, ``resume_point.epoch`` is 4 and every pruner goes on with the statistics it had.
    """

    def __init__(self, model: nn.Module, saved: Mapping[str, Any] | None = None) -> None:
        super().__init__(model)
        self._saved = saved if saved is not None and saved.get("policies") else None

    def restore_saved(self, *, first: int, resumed_epoch: int | None = None) -> bool:
        """Restore the saved run after a schedule's policies were added; whether it was restored.

        ``first`` is the number of policies there were before, ``resumed_epoch`` the last epoch of the run as the caller
        sees it. Only masks are kept, with a warning that says why, when the schedule is another one, policies were
        added or hooks called before, masks were changed since, or ``resumed_epoch`` is not the saved epoch. Raises
        :class:`CheckpointError` for a damaged state.
        """
        saved, self._saved = self._saved, None
        if saved is None:
            return False
        try:
            reason = self._obstacle(saved, first, resumed_epoch)
            if reason is None:
                self.load_state_dict(saved)
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"scheduler state is damaged: {type(error).__name__}: {error}") from error
        if reason is not None:
            logger.warning("the checkpoint's schedule state is not restored: %s. %s", reason, _ADVICE)
        return reason is None

    def _obstacle(self, saved: Mapping[str, Any], first: int, resumed_epoch: int | None) -> str | None:
        epoch = int(saved["lifecycle"]["epoch"])
        if first:
            return f"the scheduler already had {first} {'policy' if first == 1 else 'policies'} before the schedule's"
        if not self._lifecycle.is_pristine:
            return f"training went on to epoch {self._lifecycle.epoch} before the schedule was loaded"
        if resumed_epoch is not None and resumed_epoch != epoch:
            return f"it was saved in epoch {epoch}, but resumed_epoch is {resumed_epoch}"
        mine = [policy.describe() for policy, _ in self.schedule]
        theirs = [str(state["policy"]) for state in saved["policies"]]
        if mine != theirs:
            return f"this schedule is another one: {_difference(theirs, mine)}"
        changed = [name for name, mask in saved["masks_dict"].items() if not _same(mask, self.masks[name].mask)]
        return f"masks were changed since it was loaded ({listed(changed, limit=5)})" if changed else None


def _difference(saved: Sequence[str], given: Sequence[str]) -> str:
    only_saved, only_given = Counter(saved) - Counter(given), Counter(given) - Counter(saved)
    parts = [
        f"{text} {listed(list(found.elements()), limit=5)}"
        for text, found in (("it lacks", only_saved), ("it adds", only_given))
        if found
    ]
    return "; ".join(parts) or f"its policies have another order, the saved one is {listed(saved, limit=10)}"


def _same(saved: Tensor | None, present: Tensor | None) -> bool:
    if saved is None or present is None:
        return saved is present
    return torch.equal(saved.cpu().to(present.dtype), present.cpu())
