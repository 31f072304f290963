"""The order of hooks, checked: an impossible order is an error that says the expected one (layer 1)."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any, Literal, TypeAlias

from distiller_ng.errors import LifecycleError

__all__ = ["ORDER", "Lifecycle", "Phase"]

ORDER = (
    "expected order: on_epoch_begin(e); for each minibatch: on_minibatch_begin, forward, before_backward_pass, "
    "backward, before_parameter_optimization, optimizer.step(), on_minibatch_end; then on_epoch_end(e); "
    "after the last epoch: finish()"
)

Phase: TypeAlias = Literal["idle", "epoch", "minibatch"]


class Lifecycle:
    """Where a training loop stands, from the hooks it has called.

    A loop may leave out ``on_minibatch_end`` and ``before_parameter_optimization``; every other gap, a step backwards
    in epochs and a position that cannot exist raise :class:`LifecycleError`.
    """

    def __init__(self) -> None:
        self.phase: Phase = "idle"
        self.epoch = -1
        self.minibatch_id = -1
        self.minibatches_per_epoch = 0
        #: Restored from a checkpoint and not yet confirmed by the loop.
        self.is_restored = False

    @property
    def is_pristine(self) -> bool:
        """Whether no hook was ever called."""
        return self.epoch < 0 and self.phase == "idle"

    def begin_epoch(self, epoch: int) -> bool:
        """Enter ``epoch``; False when a resumed loop announces again the epoch it was saved in."""
        epoch = _whole("epoch", epoch, 0)
        if self.phase != "idle":
            if self.is_restored and epoch == self.epoch:
                return False
            raise LifecycleError(
                f"on_epoch_begin({epoch}) while epoch {self.epoch} is still open: call on_epoch_end({self.epoch}) "
                f"first; {ORDER}"
            )
        if self.is_restored and epoch != self.epoch + 1:
            raise LifecycleError(
                f"on_epoch_begin({epoch}), but the checkpoint was saved after epoch {self.epoch}: continue with epoch "
                f"{self.epoch + 1}, or load it with restore_position=False to start a new schedule on its masks"
            )
        if epoch <= self.epoch:
            raise LifecycleError(f"on_epoch_begin({epoch}) after epoch {self.epoch}: epochs are absolute and only grow")
        self.phase, self.epoch, self.is_restored = "epoch", epoch, False
        self.minibatch_id, self.minibatches_per_epoch = -1, 0
        return True

    def begin_minibatch(self, epoch: int, minibatch_id: int, minibatches_per_epoch: int) -> None:
        """Enter a minibatch of the open epoch."""
        # The usual case first and in one look: this runs cold, between two passes over the whole model.
        if (
            epoch == self.epoch
            and self.phase != "idle"
            and not self.is_restored
            and minibatch_id.__class__ is minibatches_per_epoch.__class__ is int
            and self.minibatch_id <= minibatch_id < minibatches_per_epoch
            and minibatch_id >= 0
            and self.minibatches_per_epoch in (0, minibatches_per_epoch)
        ):
            self.phase, self.minibatch_id, self.minibatches_per_epoch = "minibatch", minibatch_id, minibatches_per_epoch
            return
        self._in_epoch("on_minibatch_begin", epoch)
        minibatches_per_epoch = _whole("minibatches_per_epoch", minibatches_per_epoch, 1)
        minibatch_id = _whole("minibatch_id", minibatch_id, 0)
        if minibatch_id >= minibatches_per_epoch:
            raise LifecycleError(
                f"minibatch_id {minibatch_id} of {minibatches_per_epoch}: it counts from 0, the last is "
                f"{minibatches_per_epoch - 1}"
            )
        if self.is_restored and self.minibatches_per_epoch:
            expected = (self.minibatch_id + 1, self.minibatches_per_epoch)
            if (minibatch_id, minibatches_per_epoch) != expected:
                raise LifecycleError(
                    f"the checkpoint was saved in epoch {epoch} after minibatch {self.minibatch_id} of "
                    f"{self.minibatches_per_epoch}: continue with minibatch {expected[0]} of {expected[1]}, got "
                    f"{minibatch_id} of {minibatches_per_epoch}. Skip what was seen in the same order, or use "
                    f"scheduler.minibatches(loader), which does"
                )
        elif self.minibatches_per_epoch not in (0, minibatches_per_epoch):
            raise LifecycleError(
                f"minibatches_per_epoch was {self.minibatches_per_epoch} in this epoch and is now "
                f"{minibatches_per_epoch}: it is the number of minibatches of the whole epoch"
            )
        elif minibatch_id < self.minibatch_id:
            raise LifecycleError(
                f"minibatch {minibatch_id} after minibatch {self.minibatch_id} of the same epoch; {ORDER}"
            )
        self.is_restored = False
        self.phase, self.minibatch_id, self.minibatches_per_epoch = "minibatch", minibatch_id, minibatches_per_epoch

    def in_minibatch(self, hook: str, epoch: int, minibatch_id: int) -> None:
        """Check that ``hook`` is called inside the open minibatch."""
        if minibatch_id == self.minibatch_id and epoch == self.epoch and self.phase == "minibatch":
            return
        self._in_epoch(hook, epoch)
        raise LifecycleError(
            f"{hook}(epoch={epoch}, minibatch_id={minibatch_id}) without on_minibatch_begin for that minibatch; {ORDER}"
        )

    def end_minibatch(self, epoch: int, minibatch_id: int) -> None:
        """Leave the open minibatch."""
        self.in_minibatch("on_minibatch_end", epoch, minibatch_id)
        self.phase = "epoch"

    def end_epoch(self, epoch: int) -> None:
        """Leave the open epoch."""
        self._in_epoch("on_epoch_end", epoch)
        self.phase, self.is_restored = "idle", False

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "phase": self.phase,
            "epoch": self.epoch,
            "minibatch_id": self.minibatch_id,
            "minibatches_per_epoch": self.minibatches_per_epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; the loop's next hook must continue from there."""
        self.phase = state["phase"]
        self.epoch = int(state["epoch"])
        self.minibatch_id = int(state["minibatch_id"])
        self.minibatches_per_epoch = int(state["minibatches_per_epoch"])
        self.is_restored = not self.is_pristine

    def _in_epoch(self, hook: str, epoch: int) -> None:
        if self.phase == "idle":
            raise LifecycleError(f"{hook}(epoch={epoch}) outside an epoch: call on_epoch_begin({epoch}) first; {ORDER}")
        if epoch != self.epoch:
            raise LifecycleError(f"{hook}(epoch={epoch}) while epoch {self.epoch} is open; {ORDER}")


def _whole(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise LifecycleError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return int(value)
