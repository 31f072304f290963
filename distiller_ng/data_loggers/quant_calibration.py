"""Statistics of activations for post-training quantization (layer 2)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from distiller_ng.data_loggers._batch_summary import BatchSummary, Summarizer
from distiller_ng.data_loggers._inplace import InplaceGuard, disabled_inplace_attributes
from distiller_ng.data_loggers._tensor_statistics import TensorStatistics
from distiller_ng.data_loggers._watching import input_tensors, output_tensors, refuse_data_parallel
from distiller_ng.data_loggers.activation_stats import ActivationStatsCollector
from distiller_ng.data_loggers.quant_stats_file import QuantStats, save_quant_stats
from distiller_ng.errors import CalibrationError, LifecycleError, listed
from distiller_ng.modules.functional import FunctionModule

__all__ = ["QuantCalibrationStatsCollector"]

logger = logging.getLogger(__name__)

_ATTENDED = 3  # query, key, value


@dataclass(slots=True)
class _ModuleStatistics:
    inputs: dict[int, TensorStatistics] = field(default_factory=dict)
    output: TensorStatistics = field(default_factory=TensorStatistics)
    is_function: bool = False

    def tensors(self) -> list[TensorStatistics]:
        return [*self.inputs.values(), self.output]


class QuantCalibrationStatsCollector(ActivationStatsCollector):
    """Range, averages and distribution of every input and output of every module, in one pass over the data.

    Functions that modules with parts call in their ``forward`` count as modules: the first ``x + y`` of ``layer1.0`` is
    ``layer1.0.add``. Where such a function returns infinite values (masked attention scores), it is left out.

    :meth:`value` is what the calibration file holds::

        {"conv1": {"inputs": {0: {"min": -2.1, "max": 2.6, "avg_min": -1.9, "avg_max": 2.4, "mean": 0.0, "std": 1.0,
                                  "b": 0.8, "shape": "(256, 3, 224, 224)", "total_numel": 38535168}},
                   "output": {...}}}

    Minimum and maximum are exact, ``avg_min`` / ``avg_max`` are means over all samples of each sample's extremes,
    ``std`` is the population's. ``b`` is the mean of ``|x - mean|``, estimated in the same pass as
    :class:`TensorStatistics` says (to about 1 %; exact after a second pass, see :meth:`start_second_pass`).
    Statistics are gathered on the tensors' device, without waiting for it in any batch. A tensor that several modules
    read is reduced once. Inputs are looked at before a module runs, so modules that work in place do no harm.

    ``inplace_runtime_check`` refuses them all the same (:class:`~distiller_ng.data_loggers.InplaceError`), and
    ``disable_inplace_attrs`` sets the attributes ``inplace_attr_names`` to False while collecting. ``histograms`` adds
    to every entry of :meth:`value` (never to the file) a ``histogram`` with 2048 bins, of up to 65536 values of each
    batch, for the MSE and KL clippings; it costs about as much as the rest.

    Raises :class:`ArgumentError` (a ``ValueError``) for a model that contains DataParallel, and
    :class:`CalibrationError` naming the module that saw NaN or infinite values, at :meth:`stop`, :meth:`value` and
    :meth:`save`. Example::

        collector = QuantCalibrationStatsCollector(model)
        with collector_context(collector):
            evaluate(model, calibration_loader)
        collector.save("quantization_stats.yaml")
    """

    watches_calls: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        classes: Sequence[type[nn.Module]] | None = None,
        inplace_runtime_check: bool = False,
        disable_inplace_attrs: bool = False,
        inplace_attr_names: Sequence[str] = ("inplace",),
        *,
        histograms: bool = False,
    ) -> None:
        super().__init__(model, "quant_stats", classes)
        refuse_data_parallel(model)
        self.histograms = histograms
        self._summarize = Summarizer(large_samples=histograms)
        self._guard = InplaceGuard() if inplace_runtime_check else None
        self._inplace_names = tuple(inplace_attr_names) if disable_inplace_attrs else ()
        self._statistics: dict[str, _ModuleStatistics] = {}
        self._summaries: Any = WeakTensorKeyDictionary()  # tensor -> (version, reference, summary)
        self._second_pass = False

    # -- watching ---------------------------------------------------------------------------------------------------

    def start(self, modules_list: Iterable[str | nn.Module] | None = None) -> None:
        """As every collector's."""
        super().start(modules_list)
        if self.inner_model().training:
            logger.warning(
                "collecting quantization statistics of a model in training mode: dropout and batch statistics are part "
                "of them. Call model.eval() before"
            )
        if self._inplace_names:
            self._handles.append(disabled_inplace_attributes(self.inner_model(), self._inplace_names))

    def stop(self) -> None:
        """Watch no longer. Raises :class:`CalibrationError` when a module saw NaN or infinite values."""
        was_collecting = self.is_collecting
        self.detach()
        self._summaries = WeakTensorKeyDictionary()
        if was_collecting:
            self.check()

    def check(self) -> None:
        """Raise :class:`CalibrationError` when a module saw NaN or infinite values."""
        places, extremes = [], []
        for name, statistics in self.in_model_order(dict(self._statistics)).items():
            parts = [(f"input {at} of {name!r}", one) for at, one in sorted(statistics.inputs.items())]
            for place, one in [*parts, (f"the output of {name!r}", statistics.output)]:
                found = one.extremes()
                if found is not None:
                    places.append((place, statistics.is_function))
                    extremes.append(found)
        if not extremes:
            return
        both = torch.stack([found.to(extremes[0]) for found in extremes])
        finite, numbers = both.isfinite().all(dim=1).tolist(), (~both.isnan()).all(dim=1).tolist()
        bad = [
            place
            for (place, is_function), is_finite, is_number in zip(places, finite, numbers)
            if not (is_finite or (is_function and is_number))
        ]
        if bad:
            raise CalibrationError(
                f"NaN or infinite values during calibration, in model order first in {listed(bad, limit=5)}: no range "
                "can be derived. Check the weights and the calibration data (normalized? finite?), or leave the module "
                "out with modules_list, then reset() and collect again"
            )

    def before(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record the inputs."""
        tensors = input_tensors(args, kwargs)
        if isinstance(module, nn.MultiheadAttention):  # what follows are masks, whose -inf is meant
            tensors = [(position, tensor) for position, tensor in tensors if position < _ATTENDED]
        is_function = isinstance(module, FunctionModule)
        if self._guard is not None and not is_function:
            self._guard.remember(name, [tensor for _, tensor in tensors])
        inputs = self._of(name, is_function).inputs
        for position, tensor in tensors:
            if position not in inputs:
                inputs[position] = TensorStatistics()
            self._record(inputs[position], tensor)

    def after(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Record the output; the parts of a split count as one tensor."""
        tensors = output_tensors(module, output)
        if self._guard is not None:
            self._guard.check(name, tensors)
        for tensor in tensors:
            self._record(self._of(name).output, tensor)

    def _of(self, name: str, is_function: bool = False) -> _ModuleStatistics:
        if name not in self._statistics:
            self._statistics[name] = _ModuleStatistics(is_function=is_function)
        return self._statistics[name]

    def _record(self, statistics: TensorStatistics, tensor: Tensor) -> None:
        if self._second_pass:
            statistics.add_exact(tensor)
            return
        statistics.add(tensor, self._summary(tensor, statistics.reference))

    def _summary(self, tensor: Tensor, reference: Tensor | None) -> BatchSummary:
        """Of a tensor that was seen already and not written to since: what it was found to be then."""
        if tensor.is_inference():  # such tensors do not tell whether they were written to
            return self._summarize(tensor, reference)
        known = self._summaries.get(tensor)
        if known is not None and known[0] == tensor._version and known[1] is reference:
            return known[2]  # type: ignore[no-any-return]
        summary = self._summarize(tensor, reference)
        self._summaries[tensor] = (tensor._version, reference, summary)
        return summary

    # -- second pass ------------------------------------------------------------------------------------------------

    def start_second_pass(self) -> None:
        """From now on only measure ``b``, exactly, around the means found so far: run the same data again.

        May be called while collecting or before :meth:`start`. Raises :class:`LifecycleError` without a first pass.
        """
        if not self._statistics:
            raise LifecycleError("the second pass needs the means of a first: collect before start_second_pass()")
        for statistics in self._statistics.values():
            for one in statistics.tensors():
                one.begin_exact()
        self._second_pass = True

    def stop_second_pass(self) -> None:
        """End what :meth:`start_second_pass` began."""
        self._second_pass = False

    # -- results ----------------------------------------------------------------------------------------------------

    def value(self) -> QuantStats:
        """The statistics in the file's form; modules that never ran are left out."""
        self.check()
        found: QuantStats = {}
        for name, statistics in self.in_model_order(dict(self._statistics)).items():
            entry: dict[str, Any] = {}
            inputs = {at: self._entry(one) for at, one in sorted(statistics.inputs.items())}
            known = {at: one for at, one in inputs.items() if one is not None}
            output = self._entry(statistics.output)
            if statistics.is_function and output is None:
                continue
            if known:
                entry["inputs"] = known
            if output is not None:
                entry["output"] = output
            if entry:
                found[name] = entry
        return found

    def _entry(self, statistics: TensorStatistics) -> dict[str, Any] | None:
        extremes = statistics.extremes()
        if extremes is not None and not bool(extremes.isfinite().all()):
            return None  # of a function: check() refuses it of a module
        entry: dict[str, Any] | None = statistics.entry()
        if entry is not None and self.histograms:
            entry["histogram"] = statistics.histogram()
        return entry

    def reset(self) -> None:
        """Forget what was collected."""
        self._statistics.clear()
        self._second_pass = False

    def save(self, fname: str | os.PathLike[str]) -> str:
        """Write the calibration file, with the ending ``.yaml``, in one step; its name."""
        return str(save_quant_stats(fname, self.value()))
