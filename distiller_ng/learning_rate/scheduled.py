"""A scheduler as a schedule defines it: absolute values for the user's optimizer, which it never moves by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from distiller_ng.errors import ArgumentError, CheckpointError, LifecycleError, did_you_mean
from distiller_ng.learning_rate.base import LRDriver, Unit, write_group_value
from distiller_ng.learning_rate.definition import resolve
from distiller_ng.learning_rate.table import LRTable, ShadowOptimizer, explained, probe

__all__ = ["ScheduledLR"]

_PLATEAU_STATE = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")


class ScheduledLR(LRDriver):
    """One entry of ``lr_schedulers``: a scheduler class with its arguments, not yet tied to an optimizer.

    The base learning rate of a group is its ``initial_lr``, or its learning rate when the driver is bound, which also
    records it there (torch's convention). Values belong to absolute epochs, or with ``unit: step`` to absolute
    optimizer steps: ``ExponentialLR`` with gamma 0.9 has ``base * 0.9 ** 25`` at epoch 25 whatever happened before.
    ``ReduceLROnPlateau`` has no values: it waits for metrics and reduces what it finds.

    ``class_name`` and ``kwargs`` are checked at once; raises :class:`ArgumentError`. Example::

        lr_schedulers:
          pruning_lr:
            class: ExponentialLR
            gamma: 0.9
          warm_then_cosine:
            class: SequentialLR
            unit: step
            schedulers:
              - {class: LinearLR, start_factor: 0.1, total_iters: 500}
              - {class: CosineAnnealingLR, T_max: 9500}
            milestones: [500]

    >>> lr = ScheduledLR("pruning_lr", "ExponentialLR", {"gamma": 0.5})
    >>> lr.bind(torch.optim.SGD(model.parameters(), lr=0.8))
    >>> lr.values(3)
    [{'lr': 0.1}]
    """

    def __init__(
        self, name: str, class_name: str, kwargs: Mapping[str, Any] | None = None, *, unit: Unit = "epoch"
    ) -> None:
        if unit not in ("epoch", "step"):
            raise ArgumentError(
                f"unknown unit {unit!r}. {did_you_mean(str(unit), ('epoch', 'step'))}", argument=("unit",)
            )
        self.definition = resolve(class_name, kwargs or {})
        probe(self.definition)
        self.name = name
        self.class_name = class_name
        self.unit = unit
        if unit == "step" and self.metric is not None:
            raise ArgumentError(
                f"{class_name} acts on validation results, once an epoch: remove unit: step", argument=("unit",)
            )
        self._optimizer: Optimizer | None = None
        self._bases: list[float] = []
        self._restored = 0  # how many of the bases a checkpoint gave: those win over the optimizer's initial_lr
        self._plateau: dict[str, Any] = {}
        self._table: LRTable | None = None
        self._table_key: tuple[Any, ...] = ()

    @classmethod
    def from_definition(cls, name: str, definition: Mapping[str, Any]) -> ScheduledLR:
        """From a mapping as schedules hold it: ``{"class": "StepLR", "step_size": 30}``, optionally with ``unit``."""
        given = dict(definition)
        class_name, unit = given.pop("class", None), given.pop("unit", "epoch")
        if not isinstance(class_name, str):
            raise ArgumentError(f"lr_scheduler {name!r} needs a class, got {class_name!r}", argument=("class",))
        return cls(name, class_name, given, unit=unit)

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer of the last :meth:`bind`."""
        return self._optimizer

    @property
    def metric(self) -> str | None:
        """``mode`` of ReduceLROnPlateau; None for the other classes."""
        if not issubclass(self.definition.cls, ReduceLROnPlateau):
            return None
        return str(self.definition.kwargs.get("mode", "min"))

    def bind(self, optimizer: Optimizer) -> None:
        """Record the base learning rate of every group (in the group as ``initial_lr``); moves no learning rate.

        Call it again after groups were added. Raises :class:`ArgumentError` for an optimizer the class cannot drive,
        e.g. ``cycle_momentum`` without momentum.
        """
        bases: list[float] = []
        for position, group in enumerate(optimizer.param_groups):
            known = self._bases[position] if position < len(self._bases) else None
            if position < self._restored and known is not None:
                bases.append(known)
                group.setdefault("initial_lr", known)
                continue
            bases.append(float(group.setdefault("initial_lr", float(group["lr"]) if known is None else known)))
        self._optimizer, self._bases = optimizer, bases
        key = (id(optimizer), tuple(bases))
        if key == self._table_key:
            return
        if self.metric is None:
            self._table = LRTable(self.definition, lambda: ShadowOptimizer.of(optimizer, bases))
        else:
            self._plateau_on(optimizer)
        self._table_key = key

    def values(self, epoch: int) -> list[dict[str, Any]]:
        """What each group of the bound optimizer has at the absolute ``epoch`` (``unit: step``: optimizer step).

        ``[{"lr": 0.05}]``, with ``momentum`` or ``betas`` where the class drives them. Raises :class:`LifecycleError`
        before :meth:`bind` and for ReduceLROnPlateau.
        """
        if self._table is None:
            reason = "needs metrics and has no values known ahead" if self.metric else "has no optimizer yet: bind it"
            raise LifecycleError(f"lr_scheduler {self.name!r} ({self.class_name}) {reason}")
        return self._table.values(epoch)

    def begin_(self, optimizer: Optimizer) -> None:
        """Set what the class wants at epoch 0 where that is not the base: the low start of a warm-up or cycle."""
        self.bind(optimizer)
        if self.metric is not None:
            return
        for group, base, values in zip(optimizer.param_groups, self._bases, self.values(0), strict=True):
            for key, value in values.items():
                if key != "lr" or not math.isclose(value, base):
                    write_group_value(group, key, value)

    def set_(self, optimizer: Optimizer, epoch: int) -> None:
        """Set the values of ``epoch`` in the groups; nothing but what the class drives is written."""
        self.bind(optimizer)
        for group, values in zip(optimizer.param_groups, self.values(epoch), strict=True):
            for key, value in values.items():
                write_group_value(group, key, value)

    def observe_(self, optimizer: Optimizer, value: float, epoch: int) -> None:
        """ReduceLROnPlateau: take the result after ``epoch`` and reduce the groups' present learning rates if due."""
        self.bind(optimizer)
        scheduler = self._plateau_on(optimizer)
        vars(scheduler).update(self._plateau)
        scheduler.last_epoch = epoch
        scheduler.step(value)
        self._plateau = {key: getattr(scheduler, key) for key in _PLATEAU_STATE}
        for group, mirrored in zip(optimizer.param_groups, scheduler.optimizer.param_groups, strict=True):
            if float(group["lr"]) != mirrored["lr"]:
                write_group_value(group, "lr", mirrored["lr"])

    def _plateau_on(self, optimizer: Optimizer) -> ReduceLROnPlateau:
        """A fresh ReduceLROnPlateau on a shadow with the present learning rates."""
        shadow = ShadowOptimizer.of(optimizer, [float(group["lr"]) for group in optimizer.param_groups])
        with explained(self.definition):
            return cast(ReduceLROnPlateau, self.definition.build(shadow))

    def _state(self) -> dict[str, Any]:
        return {"base_lrs": list(self._bases), "plateau": dict(self._plateau)}

    def _load(self, state: Mapping[str, Any]) -> None:
        if set(state) != {"base_lrs", "plateau"}:
            raise CheckpointError(f"lr_scheduler {self.name!r} expects base_lrs and plateau, got {sorted(state)}")
        self._bases = [float(base) for base in state["base_lrs"]]
        self._restored = len(self._bases)
        self._plateau = dict(state["plateau"])
        self._table, self._table_key = None, ()
        if self._optimizer is not None:
            self.bind(self._optimizer)
