"""What every importance is: one number for each channel of a model, over everything that goes with it (layer 2)."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from torch import nn
from torch.optim import Optimizer

from distiller_ng.core.context import StepContext
from distiller_ng.errors import ArgumentError, CheckpointError, did_you_mean
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.names import ParameterIndex
from distiller_ng.pruning._checks import check_choice
from distiller_ng.pruning._families import Family, Floats, families_of
from distiller_ng.registry import Registry

__all__ = ["IMPORTANCES", "Aggregate", "Importance", "ImportanceLike", "Normalize", "as_importance"]

IMPORTANCES: Registry[Importance] = Registry("importance", "distiller_ng.pruning.importance")

#: How the scores of one channel's tensors (its filter, its norm, its readers' inputs, ...) become one.
Aggregate: TypeAlias = Literal["sum", "mean", "max"]
#: What the scores of a family of channels are divided by, so that families compare.
Normalize: TypeAlias = Literal["mean", "max", "sum", "none"]
_STATISTICS: dict[str, Callable[..., Any]] = {"sum": np.sum, "mean": np.mean, "max": np.max}


class Importance(ABC):
    """Base of all importances: the lowest are pruned first.

    A channel's score is taken over its whole dependency group: each tensor of the group gives one score for its entries
    that belong to the channel, ``aggregate`` (``sum``, ``mean``, ``max``) makes one number of them. ``normalize``
    (``mean``, ``max``, ``sum``, ``none``) divides by that statistic of the scores of the family, the channels of the
    same layers; it changes nothing within a layer, and decides how layers compare under ``scope: global``.

    Subclasses give :meth:`family_scores`. Registering is one line::

        @IMPORTANCES.register("mine")
        class MyImportance(Importance): ...

    Raises :class:`ArgumentError` for other values of the two arguments.
    """

    #: Whether it must see the model train (:meth:`start`) before it can score.
    observes: ClassVar[bool] = False
    default_aggregate: ClassVar[Aggregate] = "sum"
    default_normalize: ClassVar[Normalize] = "mean"

    def __init__(self, *, aggregate: Aggregate | None = None, normalize: Normalize | None = None) -> None:
        self.aggregate: Aggregate = self.default_aggregate if aggregate is None else aggregate
        self.normalize: Normalize = self.default_normalize if normalize is None else normalize
        check_choice("aggregate", self.aggregate, ("sum", "mean", "max"))
        check_choice("normalize", self.normalize, ("mean", "max", "sum", "none"))

    def scores(
        self, graph: DependencyGraph, ctx: StepContext | None = None, *, families: Sequence[Family] | None = None
    ) -> dict[int, float]:
        """``{channel number: score}`` of every removable channel, or of ``families``.

        Weights are read through ``ctx`` (:meth:`StepContext.weight`), without it from the graph's model. Raises
        :class:`CalibrationError` where data is needed that was not seen.
        """
        found: dict[int, float] = {}
        for family in families_of(graph) if families is None else families:
            values = self._normalized(self.family_scores(family, graph, ctx))
            found.update(zip(family.channels.tolist(), values.tolist(), strict=True))
        return found

    def problem_with(self, family: Family, graph: DependencyGraph) -> str | None:
        """Why these channels can have no score, whatever is seen; None where they can."""
        return None

    @abstractmethod
    def family_scores(self, family: Family, graph: DependencyGraph, ctx: StepContext | None) -> Floats:
        """``[channels]``: a score for each channel of a family, before they are normalised."""

    def aggregated(self, scores: Sequence[Floats], size: int) -> Floats:
        """One score for each of ``size`` channels from those of its tensors."""
        if not scores:
            return np.zeros(size)
        return np.asarray(_STATISTICS[self.aggregate](np.stack(scores), axis=0), np.float64)

    def _normalized(self, values: Floats) -> Floats:
        if self.normalize == "none" or not values.size:
            return values
        by = float(_STATISTICS[self.normalize](values))
        return values / by if by > 0 else values

    # -- observing --------------------------------------------------------------------------------------------------

    def start(
        self,
        model: nn.Module,
        graph: Callable[[], DependencyGraph | None],
        optimizer: Optimizer | None = None,
        *,
        by_hand: bool = False,
    ) -> None:
        """Begin to collect (``observes`` only); ``graph`` gives the model's graph as it is then, None: not known.

        ``by_hand``: the user runs the model, perhaps without any optimizer.
        """

    def stop(self) -> None:
        """Stop collecting and remove every hook; what was collected is what the next scores use."""

    # -- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beyond the constructor's arguments: plain values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; raises :class:`CheckpointError` for a state it does not keep."""
        if state:
            raise CheckpointError(f"{type(self).__name__} keeps no state, but the checkpoint holds {sorted(state)}")


#: What users may write: a name, ``{class: taylor, normalize: mean}``, or an object.
ImportanceLike: TypeAlias = str | Mapping[str, Any] | Importance


def as_importance(value: ImportanceLike, *, argument: Sequence[str | int] = ("importance",)) -> Importance:
    """Build the importance that a name or a mapping means; an object passes through.

    ``as_importance({"class": "l2", "aggregate": "max"})`` is ``L2Importance(aggregate="max")``. Raises
    :class:`ArgumentError` (with the path below ``argument``) for an unknown name, argument or value.
    """
    if isinstance(value, Importance):
        return value
    settings = {"class": value} if isinstance(value, str) else value
    if not isinstance(settings, Mapping) or not isinstance(settings.get("class"), str):
        allowed = ", ".join(IMPORTANCES.names())
        message = f"importance is a name or {{class: name, ...}}, got {value!r}; names: {allowed}"
        raise ArgumentError(message, argument=argument)
    below = () if isinstance(value, str) else ("class",)
    try:
        cls: Callable[..., Importance] = IMPORTANCES.get(settings["class"]).cls
    except ArgumentError as error:
        raise ArgumentError(str(error), argument=(*argument, *below)) from None
    given = {key: setting for key, setting in settings.items() if key != "class"}
    known = list(inspect.signature(cls).parameters)
    for key in given:
        if key not in known:
            message = f"importance {settings['class']} has no argument {key!r}. {did_you_mean(str(key), known)}"
            raise ArgumentError(message, argument=(*argument, key))
    try:
        return cls(**given)
    except ArgumentError as error:
        raise ArgumentError(str(error), argument=(*argument, *error.argument)) from None


def parameters_of(graph: DependencyGraph, ctx: StepContext | None) -> ParameterIndex:
    """The parameters scores are taken of: the context's, else those of the graph's model."""
    return ParameterIndex(graph.model) if ctx is None else ctx.parameters
