"""Ranges of activations as an observer chooses them (layer 2)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from distiller_ng.data_loggers._watching import input_tensors, output_tensors, refuse_data_parallel
from distiller_ng.data_loggers.activation_stats import ActivationStatsCollector
from distiller_ng.data_loggers.contexts import collector_context
from distiller_ng.data_loggers.observers.base import Observer, ObserverLike, observer_named
from distiller_ng.data_loggers.quant_stats_file import QuantStats, save_quant_stats
from distiller_ng.errors import CalibrationError
from distiller_ng.modules.functional import FunctionModule
from distiller_ng.ops.table import size_to_str

__all__ = ["ObservedRangesCollector", "collect_observed_ranges"]

_OUTPUT = "output"


class ObservedRangesCollector(ActivationStatsCollector):
    """Gives every input and output of every module an observer of its own, and asks it for the range.

    ``observer`` is a name of :data:`~distiller_ng.data_loggers.observers.OBSERVERS`, a class, or an observer of which
    each gets an empty copy; ``observer_args`` go to its constructor. :meth:`value` has the form of calibration
    statistics, so that a quantizer takes it in their place: ``min`` and ``max`` (``avg_min``, ``avg_max`` too) are the
    chosen range::

        {"relu1": {"inputs": {0: {"min": -1.8, "max": 1.9, ...}}, "output": {"min": 0.0, "max": 1.9, ...}}}

    Functions count as modules, as for :class:`QuantCalibrationStatsCollector`; those with infinite values are left out.

    Raises :class:`ArgumentError` for a model that contains DataParallel and for an unknown observer.
    """

    watches_calls: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        observer: ObserverLike = "min_max",
        observer_args: Mapping[str, Any] | None = None,
        classes: Sequence[type[nn.Module]] | None = None,
    ) -> None:
        super().__init__(model, "observed_ranges", classes)
        refuse_data_parallel(model)
        self._blank = observer_named(observer, observer_args)
        self._observers: dict[str, dict[int | str, Observer]] = {}
        self._shapes: dict[Observer, str] = {}
        self._functions: set[str] = set()

    def before(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Show the inputs to their observers."""
        if isinstance(module, FunctionModule):
            self._functions.add(name)
        for position, tensor in input_tensors(args, kwargs):
            self._show(name, position, tensor)

    def after(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Show the output to its observer."""
        for tensor in output_tensors(module, output):
            self._show(name, _OUTPUT, tensor)

    def _show(self, name: str, which: int | str, tensor: Tensor) -> None:
        known = self._observers.setdefault(name, {})
        if which not in known:
            known[which] = observer_named(self._blank)
            self._shapes[known[which]] = size_to_str(tensor.shape)
        known[which].update(tensor)

    def observers(self) -> dict[str, dict[int | str, Observer]]:
        """The observers themselves: ``{module: {input index or "output": observer}}``."""
        return self.in_model_order(dict(self._observers))

    def synchronize(self) -> None:
        """Let the observers of all replicas have seen all data, see :meth:`Observer.synchronize`."""
        for watched in self.observers().values():
            for _, observer in sorted(watched.items(), key=lambda item: str(item[0])):
                observer.synchronize()

    def value(self) -> QuantStats:
        """The ranges; raises :class:`CalibrationError` naming the module that saw NaN or infinite values."""
        found: QuantStats = {}
        for name, watched in self.observers().items():
            places = sorted(watched, key=lambda place: (place == _OUTPUT, 0 if place == _OUTPUT else place))
            known = {at: one for at in places if (one := self._entry(name, at, watched[at])) is not None}
            output = known.pop(_OUTPUT, None)
            entry: dict[str, Any] = {"inputs": known} if known else {}
            if output is not None:
                entry["output"] = output
            if output is not None or name not in self._functions:
                found[name] = entry
        return found

    def _entry(self, name: str, which: int | str, observer: Observer) -> dict[str, Any] | None:
        try:
            low, high = observer.range()
        except CalibrationError as error:
            if name in self._functions:
                return None
            place = "output" if which == _OUTPUT else f"input {which}"
            raise CalibrationError(f"{place} of {name!r}: {error}") from error
        return {"min": low, "max": high, "avg_min": low, "avg_max": high, "shape": self._shapes[observer]}

    def reset(self) -> None:
        """Forget what was collected."""
        self._observers.clear()
        self._shapes.clear()
        self._functions.clear()

    def save(self, fname: str | os.PathLike[str]) -> str:
        """Write the ranges as a calibration file, with the ending ``.yaml``; its name."""
        return str(save_quant_stats(fname, self.value()))


def collect_observed_ranges(
    model: nn.Module,
    test_fn: Callable[..., Any],
    observer: ObserverLike = "min_max",
    *,
    observer_args: Mapping[str, Any] | None = None,
    classes: Sequence[type[nn.Module]] | None = None,
    modules_to_collect: Iterable[str] | None = None,
) -> QuantStats:
    """Ranges of the activations of ``model`` while ``test_fn(model=model)`` runs it, chosen by an observer.

    See :class:`ObservedRangesCollector` for the result::

        ranges = collect_observed_ranges(model, evaluate, "percentile", observer_args={"percentile": 99.9})
    """
    collector = ObservedRangesCollector(model, observer, observer_args, classes)
    with collector_context(collector, modules_to_collect):
        test_fn(model=model)
    return collector.value()
