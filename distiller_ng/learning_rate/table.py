"""The values of a scheduler class at any absolute epoch, computed beside the user's optimizer (layer 2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from distiller_ng.errors import ArgumentError
from distiller_ng.learning_rate.definition import LRDefinition

__all__ = ["LRTable", "ShadowOptimizer", "explained", "last_step", "probe"]

_NOT_COPIED = ("params", "initial_lr")
_PER_GROUP = ("max_lr", "base_lr", "min_lr", "max_momentum", "base_momentum", "lr_lambda")


class _Group(dict[str, Any]):
    """A parameter group that remembers which settings a scheduler assigned."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self.assigned: set[str] = set()

    def __setitem__(self, key: str, value: Any) -> None:
        self.assigned.add(key)
        super().__setitem__(key, value)


class ShadowOptimizer(Optimizer):
    """An optimizer of nothing: it carries copies of group settings for a scheduler to work on."""

    def __init__(self, groups: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]) -> None:
        given = [{**group, "params": [torch.zeros(0)]} for group in groups]
        super().__init__(given, dict(defaults))
        self.param_groups = [_Group(group) for group in self.param_groups]

    @classmethod
    def of(cls, optimizer: Optimizer, rates: Sequence[float]) -> ShadowOptimizer:
        """A shadow of ``optimizer`` whose groups start at ``rates``; their other plain settings are copied."""
        groups = []
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            # Without "initial_lr", as on a fresh optimizer: CyclicLR would start from it instead of its base_lr.
            plain = {k: v for k, v in group.items() if k not in _NOT_COPIED and not isinstance(v, Tensor)}
            groups.append({**plain, "lr": rate})
        return cls(groups, {k: v for k, v in optimizer.defaults.items() if not isinstance(v, Tensor)})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing to do; schedulers want to see it called before their own step."""


class LRTable:
    """``values(epoch)``: what a scheduler sets in each group at an absolute epoch, 0-based.

    Classes with a closed form (``_get_closed_form_lr``, torch's convention) are asked for it, so a value does not
    depend on the way it was reached; the others are stepped from 0 on a shadow optimizer, and again only to go back.
    ``OneCycleLR`` keeps the value of its last step from then on (torch extrapolates one step further, then raises).
    """

    def __init__(self, definition: LRDefinition, shadow: Callable[[], ShadowOptimizer]) -> None:
        self._definition = definition
        self._new_shadow = shadow
        self._restart()

    def values(self, epoch: int) -> list[dict[str, Any]]:
        """``{"lr": ...}`` for each group, with ``momentum`` or ``betas`` where the class drives them.

        >>> exponential = resolve("ExponentialLR", {"gamma": 0.5})
        >>> LRTable(exponential, lambda: ShadowOptimizer([{"lr": 0.8}], {})).values(3)
        [{'lr': 0.1}]

        Raises :class:`ArgumentError` for a negative epoch and for whatever the class cannot compute.
        """
        if epoch < 0:
            raise ArgumentError(f"epochs and steps count from 0, got {epoch}")
        closed_form = getattr(self._scheduler, "_get_closed_form_lr", None)
        with explained(self._definition):
            if closed_form is not None:
                self._scheduler.last_epoch = epoch
                return [{"lr": rate} for rate in closed_form()]
            self._replay(epoch)
        return [{key: group[key] for key in keys} for group, keys in zip(self._shadow.param_groups, self._driven())]

    def _replay(self, epoch: int) -> None:
        end = last_step(self._scheduler)
        target = epoch if end is None else min(epoch, end)
        if target < self._position:
            self._restart()
        while self._position < target:
            self._shadow.step()
            self._scheduler.step()
            self._position += 1

    def _restart(self) -> None:
        self._shadow = self._new_shadow()
        self._own = [set(group) - set(_NOT_COPIED) for group in self._shadow.param_groups]
        with explained(self._definition):
            self._scheduler: LRScheduler = self._definition.build(self._shadow)
        self._position = 0

    def _driven(self) -> Iterator[list[str]]:
        """For each group: what the class assigns among the settings the group had, its own bookkeeping left out."""
        for group, own in zip(self._shadow.param_groups, self._own, strict=True):
            assigned: set[str] = getattr(group, "assigned", set())
            yield sorted((assigned & own) | {"lr"})


def last_step(scheduler: LRScheduler) -> int | None:
    """The last step ``OneCycleLR`` has a value for (``total_steps - 1``); None for classes without an end."""
    total = getattr(scheduler, "total_steps", None)
    return None if total is None else int(total) - 1


def probe(definition: LRDefinition) -> None:
    """Try a definition before there is an optimizer; raises :class:`ArgumentError` for values its class refuses."""
    lengths = [len(v) for k, v in definition.kwargs.items() if k in _PER_GROUP and isinstance(v, list | tuple)]
    groups = [{"lr": 0.1, "momentum": 0.9} for _ in range(max(lengths, default=1))]

    def shadow() -> ShadowOptimizer:
        return ShadowOptimizer(groups, {"momentum": 0.9})

    if issubclass(definition.cls, ReduceLROnPlateau):
        with explained(definition):
            definition.build(shadow())
        return
    table = LRTable(definition, shadow)
    for epoch in (0, 1):
        table.values(epoch)


@contextmanager
def explained(definition: LRDefinition) -> Iterator[None]:
    """What a scheduler class raises about its arguments, as an error of ours that names the class."""
    try:
        yield
    except ArgumentError:
        raise
    except ZeroDivisionError:
        zeros = [key for key, value in definition.kwargs.items() if value == 0 and not isinstance(value, bool)]
        reason = f"{' and '.join(zeros)} must be above 0" if zeros else "division by zero"
        raise ArgumentError(f"{definition.cls.__name__}: {reason}", argument=tuple(zeros[:1])) from None
    except (ValueError, TypeError, ArithmeticError, KeyError) as error:
        raise ArgumentError(
            f"{definition.cls.__name__}: {error}", argument=_mentioned(definition, str(error))
        ) from error


def _mentioned(definition: LRDefinition, message: str) -> tuple[str, ...]:
    found = [key for key in definition.kwargs if key.lower() in message.lower()]
    return (max(found, key=len),) if found else ()
