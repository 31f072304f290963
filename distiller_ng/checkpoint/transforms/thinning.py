"""Making a checkpoint's model smaller again: channels it had lost, layers that became low-rank products (layer 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import nn

from distiller_ng.checkpoint.record import TRANSFORMS, RecordEntry, StructuralTransform
from distiller_ng.errors import CheckpointError, DistillerError, listed
from distiller_ng.graph.changes import changes_of, set_changes
from distiller_ng.modules.low_rank import replay_low_rank
from distiller_ng.thinning.apply import replay

__all__ = ["Thinning"]

#: What makes a recorded step again, by its kind.
_REPLAYS: Mapping[str, Callable[[nn.Module, Mapping[str, Any]], None]] = {
    "thinning": replay,
    "low_rank": replay_low_rank,
}


@TRANSFORMS.register("thinning")
class Thinning(StructuralTransform):
    """Replays every thinning step of a model, in order.

    ``config`` is ``{"steps": [...]}``, each step as it was recorded: by :mod:`distiller_ng.thinning.apply` the removed
    entries of every tensor and the integers that followed, by :mod:`distiller_ng.modules.low_rank` the sizes of layers
    that became products (since version 2). A model that went through the first steps already takes the rest, so
    loading a checkpoint again changes nothing.
    """

    version: ClassVar[int] = 2
    stage: ClassVar[int] = 0

    def apply(self, model: nn.Module, config: Mapping[str, Any], metadata: Mapping[str, Any]) -> nn.Module:
        """Thin ``model`` in place; raises :class:`CheckpointError` for one that was thinned otherwise."""
        steps = _steps(config)
        done = changes_of(model)
        if [_essence(step) for step in done] != [_essence(step) for step in steps[: len(done)]]:
            raise CheckpointError(
                f"the model was thinned otherwise than the checkpoint's ({len(done)} steps, the checkpoint has "
                f"{len(steps)}): load into a fresh model"
            )
        try:
            for step in steps[len(done) :]:
                _REPLAYS[step["transform"]](model, step["config"])
        except DistillerError as error:
            raise CheckpointError(f"the model cannot be thinned as the checkpoint's was: {error}") from error
        set_changes(model, steps)
        return model

    @classmethod
    def found_in(cls, model: nn.Module) -> RecordEntry | None:
        """The steps a model went through; None for one that was never thinned."""
        steps = changes_of(model)
        version = 1 if all(step["transform"] == "thinning" for step in steps) else 2
        return RecordEntry("thinning", {"steps": steps}, version) if steps else None


def _steps(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    steps = config.get("steps")
    whole = isinstance(steps, list) and all(
        isinstance(step, Mapping) and "transform" in step and isinstance(step.get("config"), Mapping) for step in steps
    )
    if not isinstance(steps, list) or not whole:
        raise CheckpointError("the checkpoint's list of thinning steps is damaged")
    unknown = {str(step["transform"]) for step in steps} - set(_REPLAYS)
    if unknown:
        message = f"the checkpoint's model was made smaller by {listed(unknown)}, which this installation does not know"
        raise CheckpointError(message)
    return [dict(step) for step in steps]


def _essence(step: Mapping[str, Any]) -> tuple[Any, Any]:
    return step["transform"], step["config"]
