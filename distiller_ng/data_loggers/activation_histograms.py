"""Histograms of activations, over ranges that calibration has found (layer 2)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distiller_ng.data_loggers._batch_summary import rows_of
from distiller_ng.data_loggers._watching import input_tensors, output_tensors, refuse_data_parallel
from distiller_ng.data_loggers.activation_stats import ActivationStatsCollector
from distiller_ng.data_loggers.histogram_pictures import draw_histograms
from distiller_ng.data_loggers.quant_stats_file import load_quant_stats
from distiller_ng.errors import ArgumentError
from distiller_ng.ops.files import write_tensors_atomically

__all__ = ["HISTOGRAM_IMAGES", "ActivationHistogramsCollector"]

HISTOGRAM_IMAGES = "histogram_imgs"  # the folder of pictures, beside the file
_OUTPUT = "output"


class ActivationHistogramsCollector(ActivationStatsCollector):
    """Counts the values of every input and output in ``nbins`` equal bins from the calibrated minimum to the maximum.

    ``activation_stats`` is a calibration file or its content, see :func:`load_quant_stats`; modules that it does not
    have are not counted. Values outside the range, which other data may have, count in the first and the last bin.
    :meth:`value`::

        {"conv1": {"inputs": {0: {"hist": Tensor[nbins], "bin_centroids": Tensor[nbins]}},
                   "output": {"hist": ..., "bin_centroids": ...}}}

    A range 0 .. 4 with 2 bins has the centroids 1 and 3; the values 0, 1 and 4 give the counts 2 and 1. :meth:`save`
    writes a ``.pt`` file and, with ``save_hist_imgs``, one picture a tensor into the folder ``histogram_imgs`` beside
    it (``hist_imgs_ext``: a format of matplotlib's, which must be installed).

    Raises :class:`ArgumentError` (a ``ValueError``) for a model that contains DataParallel and fewer than 1 bin, and
    :class:`CalibrationError` for statistics of another model.
    """

    watches_calls: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        activation_stats: str | os.PathLike[str] | Mapping[str, Any],
        classes: Sequence[type[nn.Module]] | None = None,
        nbins: int = 2048,
        save_hist_imgs: bool = False,
        hist_imgs_ext: str = ".svg",
    ) -> None:
        super().__init__(model, "histogram", classes)
        refuse_data_parallel(model)
        if isinstance(nbins, bool) or not isinstance(nbins, int) or nbins < 1:
            raise ArgumentError(f"nbins must be a whole number from 1 on, got {nbins!r}", argument=("nbins",))
        if activation_stats is None:
            raise ArgumentError(
                "activation_stats must be a calibration file or its content: collect_quant_stats(model, test_fn)",
                argument=("activation_stats",),
            )
        self.act_stats = load_quant_stats(activation_stats, model, allow_missing=True)
        self.nbins = nbins
        self.save_imgs = save_hist_imgs
        self.imgs_ext = hist_imgs_ext if hist_imgs_ext.startswith(".") else f".{hist_imgs_ext}"
        self._counts: dict[str, dict[int | str, Tensor]] = {}

    def before(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count the inputs."""
        for position, tensor in input_tensors(args, kwargs):
            self._count(name, position, tensor)

    def after(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Count the output."""
        for tensor in output_tensors(module, output):
            self._count(name, _OUTPUT, tensor)

    def _range(self, name: str, which: int | str) -> tuple[float, float] | None:
        module = self.act_stats.get(name, {})
        entry = module.get(_OUTPUT) if which == _OUTPUT else module.get("inputs", {}).get(which)
        return None if entry is None else _widened(float(entry["min"]), float(entry["max"]))

    def _count(self, name: str, which: int | str, tensor: Tensor) -> None:
        bounds = self._range(name, which)
        if bounds is None:
            return
        low, high = bounds
        values, _ = rows_of(tensor)
        counts = torch.histc(values.clamp(low, high), self.nbins, low, high)
        counts = counts.to(torch.float32 if counts.device.type == "mps" else torch.float64)
        known = self._counts.setdefault(name, {})
        known[which] = counts if which not in known else known[which] + counts

    def value(self) -> dict[str, dict[str, Any]]:
        """The histograms of each module; NaN fits no bin and is not counted."""
        found: dict[str, dict[str, Any]] = {}
        for name, counts in self.in_model_order(dict(self._counts)).items():
            entry: dict[str, Any] = {}
            inputs = {at: self._entry(name, at, counts[at]) for at in sorted(k for k in counts if k != _OUTPUT)}
            if inputs:
                entry["inputs"] = inputs
            if _OUTPUT in counts:
                entry["output"] = self._entry(name, _OUTPUT, counts[_OUTPUT])
            found[name] = entry
        return found

    def _entry(self, name: str, which: int | str, counts: Tensor) -> dict[str, Tensor]:
        bounds = self._range(name, which)
        low, high = bounds if bounds is not None else (0.0, 1.0)
        width = (high - low) / self.nbins
        centroids = low + width * (torch.arange(self.nbins, dtype=torch.float64) + 0.5)
        return {"hist": counts.cpu().float(), "bin_centroids": centroids.float()}

    def reset(self) -> None:
        """Forget what was collected."""
        self._counts.clear()

    def save(self, fname: str | os.PathLike[str]) -> str:
        """Write the histograms, with the ending ``.pt``, and the pictures if they are wanted; the file's name.

        Read it with ``torch.load(path, weights_only=True)``. Raises :class:`ArgumentError` when pictures are wanted and
        matplotlib is not installed.
        """
        name = os.fspath(fname)
        path = Path(name if name.endswith(".pt") else f"{name}.pt")
        histograms = self.value()
        write_tensors_atomically(path, histograms)
        if self.save_imgs:
            draw_histograms(histograms, path.parent / HISTOGRAM_IMAGES, extension=self.imgs_ext)
        return str(path)


def _widened(low: float, high: float) -> tuple[float, float]:
    """A range that is not empty, as ``torch.histc`` needs one."""
    if high > low:
        return low, high
    margin = max(abs(low), 1.0) * 0.5
    return low - margin, high + margin
