"""A policy with its window and how far it has got (layer 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import HOOKS, Policy
from distiller_ng.core.position import TrainPosition
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import CheckpointError

__all__ = ["ActiveEntries", "Entry"]

ContextFactory = Callable[["Entry", TrainPosition], StepContext]


@dataclass(slots=True, eq=False)
class Entry:
    """One line of a schedule. ``source`` is the object the user added (a legacy policy is wrapped in ``policy``)."""

    policy: Policy
    window: PolicyWindow
    source: Any
    fired: int = 0
    started: bool = False
    ended: bool = False
    last_update: float = -1.0
    #: What the schedule's author called it and wrote about it, for reports.
    name: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def advance(self, position: TrainPosition, context: ContextFactory) -> None:
        """Fire what is due of a fractional window: its start, its periods, and its end, each once and in this order."""
        if self.ended:
            return
        due = self.window.due_count(position)
        if due and (not self.started or (due > self.fired and not self.window.is_over(position))):
            self.started = True
            self.policy.on_update(context(self, position))
        self.fired = max(self.fired, due)
        if self.started and self.window.is_over(position):
            self.end(context(self, position))

    def advance_step(self, position: TrainPosition, context: ContextFactory, *, strict: bool) -> None:
        """Fire what is due of a stepwise window right before an optimizer step.

        A window that is found past its end already (a resumed run) starts and ends at once; ``strict``: it never ends,
        as in SparseML.
        """
        if self.ended:
            return
        is_over = self.window.is_over(position)
        if not self.started:
            if self.window.has_begun(position):
                self.started, self.last_update = True, position.fraction
                self.policy.on_update(context(self, position))
                if is_over and strict:
                    self.ended = True
                elif is_over:
                    self.end(context(self, position))
        elif is_over:
            self.end(context(self, position))
        elif self.window.is_due_after(self.last_update, position):
            self.last_update = position.fraction
            self.policy.on_update(context(self, position))

    def is_open(self, position: TrainPosition) -> bool:
        """Whether the minibatch hooks of a policy with a fractional window are to be called at ``position``."""
        if not self.window.is_stepwise:
            return not self.window.is_fractional or self.window.contains(position)
        if self.ended:
            return self.policy.outlives_window
        return self.started or self.window.has_begun(position)

    def end(self, ctx: StepContext) -> None:
        """Close the window, once."""
        if self.started and not self.ended:
            self.ended = True
            self.policy.on_window_end(ctx)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return {
            "policy": self.policy.describe(),
            "fired": self.fired,
            "started": self.started,
            "ended": self.ended,
            "last_update": self.last_update,
            "state": self.policy.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.fired, self.started, self.ended = int(state["fired"]), bool(state["started"]), bool(state["ended"])
        self.last_update = float(state.get("last_update", -1.0))
        self.policy.load_state_dict(state["state"])


@dataclass(slots=True)
class ActiveEntries:
    """Who listens to which hook in one epoch, so that dispatch costs only what is due."""

    epoch: int
    whole: list[Entry] = field(default_factory=list)
    fractional: list[Entry] = field(default_factory=list)
    stepwise: list[Entry] = field(default_factory=list)
    preceding: list[Entry] = field(default_factory=list)
    listeners: dict[str, list[Entry]] = field(default_factory=dict)

    @classmethod
    def of(cls, entries: Sequence[Entry], epoch: int) -> ActiveEntries:
        """The entries that take part in ``epoch``, in the order they were added."""
        active = cls(epoch)
        for entry in entries:
            if entry.window.is_stepwise:
                if (not entry.ended or entry.policy.outlives_window) and entry.window.first < epoch + 1:
                    active.stepwise.append(entry)
            elif entry.window.is_fractional:
                # One past its end in an earlier epoch may still owe its end action.
                if not entry.ended and entry.window.start < epoch + 1:
                    active.fractional.append(entry)
            elif entry.window.is_active(epoch):
                active.whole.append(entry)
            if entry.policy.observes_preceding_epoch and entry.window.is_active(epoch + 1):
                active.preceding.append(entry)
        taking_part = [*active.whole, *active.fractional, *active.stepwise]
        part = [entry for entry in entries if entry in taking_part]
        active.listeners = {hook: [e for e in part if e.policy.listens_to(hook)] for hook in HOOKS}
        return active

    def listening(self, hook: str, position: TrainPosition) -> list[Entry]:
        """The entries to call for a minibatch hook at ``position``."""
        entries = self.listeners[hook]
        if not self.fractional and not self.stepwise:
            return entries
        return [entry for entry in entries if entry.is_open(position)]


def load_entries(entries: Sequence[Entry], saved: Sequence[Mapping[str, Any]]) -> None:
    """Restore all entries; raises :class:`CheckpointError` when the schedule is another one, before changing any."""
    mine = [entry.policy.describe() for entry in entries]
    theirs = [str(state["policy"]) for state in saved]
    if mine != theirs:
        raise CheckpointError(
            f"the checkpoint belongs to another schedule: it has the policies {theirs}, this one {mine}. Resume with "
            "the schedule file the run was started with"
        )
    for entry, state in zip(entries, saved, strict=True):
        entry.load_state_dict(state)
