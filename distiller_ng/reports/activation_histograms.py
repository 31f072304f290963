"""What clippings would do to activations: histograms with ranges, as data, as a table, as pictures (layer 4)."""

from __future__ import annotations

import inspect
import math
import os
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distiller_ng.data_loggers.histogram_pictures import draw_histogram
from distiller_ng.data_loggers.quant_stats_file import load_quant_stats
from distiller_ng.errors import CalibrationError
from distiller_ng.ops.clipping import CLIPPINGS, Clipping, clipping_named, quantization_error
from distiller_ng.ops.histogram import Histogram
from distiller_ng.ops.linear_quantization import LinearQuantMode
from distiller_ng.reports.table import Cell, Table

__all__ = [
    "ActivationHistograms",
    "ClipChoice",
    "TensorHistogram",
    "activation_histograms_summary",
    "collected_histograms",
]

_COLUMNS = ("Layer", "Tensor", "Clipping", "Low", "High", "Outside (%)", "SQNR (dB)")
CHOSEN = "chosen"


@dataclass(frozen=True, slots=True)
class ClipChoice:
    """One clipping of one tensor: its range, the fraction of values outside (0..1), and what quantizing leaves.

    ``sqnr`` is ten times the decimal logarithm of the mean square of the values over that of the quantization error;
    infinite without an error.
    """

    clipping: str
    low: float
    high: float
    outside: float
    sqnr: float


@dataclass(frozen=True, slots=True)
class TensorHistogram:
    """The histogram of one tensor (``tensor`` is ``"output"`` or ``"input 0"``) and what clippings would do to it."""

    layer: str
    tensor: str
    histogram: Histogram
    choices: tuple[ClipChoice, ...]


@dataclass(frozen=True, slots=True)
class ActivationHistograms:
    """Histograms of a model's activations with the ranges of clippings; printed, it is a table."""

    tensors: tuple[TensorHistogram, ...]
    num_bits: int
    mode: LinearQuantMode

    def table(self) -> Table:
        """One row a tensor and clipping."""
        rows: list[tuple[Cell, ...]] = [
            (
                one.layer,
                one.tensor,
                c.clipping,
                c.low,
                c.high,
                100 * c.outside,
                c.sqnr if math.isfinite(c.sqnr) else None,
            )
            for one in self.tensors
            for c in one.choices
        ]
        return Table(
            f"Clipping of activations, {self.num_bits} bits, {self.mode.name}", _COLUMNS, tuple(rows), decimals=3
        )

    def __str__(self) -> str:
        return str(self.table())

    def draw(self, folder: str | os.PathLike[str], *, extension: str = ".svg") -> list[Path]:
        """One picture a tensor, ``<layer>_output.svg`` or ``<layer>_input_0.svg``, with the ranges as lines; the paths.

        Raises :class:`ArgumentError` when matplotlib is not installed, and for a format it does not know.
        """
        written = []
        for one in self.tensors:
            path = Path(folder) / f"{one.layer or 'model'}_{one.tensor.replace(' ', '_')}{extension}"
            edges = one.histogram.edges
            ranges = {choice.clipping: (choice.low, choice.high) for choice in one.choices}
            centroids = (edges[:-1] + edges[1:]) / 2
            title = f"{one.layer} {one.tensor}"
            written.append(draw_histogram(one.histogram.counts, centroids, path, title=title, clip_ranges=ranges))
        return written


def activation_histograms_summary(
    histograms: str | os.PathLike[str] | Mapping[str, Any],
    activation_stats: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    clippings: Iterable[str] | None = None,
    num_bits: int = 8,
    mode: str | LinearQuantMode = LinearQuantMode.ASYMMETRIC_UNSIGNED,
    n_stds: float | None = None,
    chosen: Mapping[tuple[str, int | str], tuple[float, float]] | None = None,
) -> ActivationHistograms:
    """Compare clippings on collected histograms.

    ``histograms`` is what :func:`collect_histograms` returns, or its file; ``activation_stats`` likewise of
    :func:`collect_quant_stats`, for the clippings that work on statistics. ``clippings`` are names (``AVG``, ``MSE``,
    ...); by default all that the data suffices for. ``chosen`` adds the range a quantizer has chosen, by
    ``(layer, input index or "output")``. Values 0, 1, ..., 9 with the range 0 .. 4.5 have a fraction of 0.5 outside. ::

        report = activation_histograms_summary("logs/run/acts_histograms.pt", "logs/run/acts_quantization_stats.yaml")
        print(report)
        report.draw("logs/run/clipping")

    Raises :class:`CalibrationError` for what is no file of histograms and when a named clipping needs a statistic that
    is missing, and :class:`ArgumentError` for unknown clippings, modes and wrong bits.
    """
    collected = _read(histograms) if isinstance(histograms, str | os.PathLike) else histograms
    stats = {} if activation_stats is None else load_quant_stats(activation_stats)
    quantization = LinearQuantMode.parse(mode)
    named = None if clippings is None else [clipping_named(name, n_stds=n_stds) for name in clippings]
    found = []
    for layer, which, histogram in _tensors(collected):
        entry = stats.get(layer, {})
        known = (entry.get("output") if which == "output" else entry.get("inputs", {}).get(which)) or _ends(histogram)
        known = {**known, "histogram": histogram}
        wanted = _possible(known, n_stds) if named is None else named
        ranges = {clip.name: _range(clip, known, num_bits, quantization, layer) for clip in wanted}
        if chosen and (layer, which) in chosen:
            ranges[CHOSEN] = chosen[layer, which]
        choices = tuple(_judged(name, histogram, ends, num_bits, quantization) for name, ends in ranges.items())
        found.append(TensorHistogram(layer, "output" if which == "output" else f"input {which}", histogram, choices))
    return ActivationHistograms(tuple(found), num_bits, quantization)


def collected_histograms(path: str | os.PathLike[str]) -> list[tuple[str, int | str, Histogram]]:
    """``(layer, input index or "output", histogram)`` of a file of :func:`collect_histograms`.

    Raises :class:`CalibrationError` for what is no file of histograms.
    """
    return _tensors(_read(path))


def _read(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, AttributeError) as error:
        raise CalibrationError(f"{os.fspath(path)} is no file of histograms: {error}") from error
    if not isinstance(content, Mapping):
        raise CalibrationError(f"{os.fspath(path)} is no file of histograms: it holds a {type(content).__name__}")
    return content


def _tensors(collected: Mapping[str, Any]) -> list[tuple[str, int | str, Histogram]]:
    found: list[tuple[str, int | str, Histogram]] = []
    for layer, entry in collected.items():
        if not isinstance(entry, Mapping):
            raise CalibrationError(f"{layer}: expected the histograms of a module, got {type(entry).__name__}")
        parts = [*entry.get("inputs", {}).items(), *([("output", entry["output"])] if "output" in entry else [])]
        for which, one in parts:
            if not isinstance(one, Mapping) or not {"hist", "bin_centroids"} <= one.keys():
                raise CalibrationError(f"{layer}: a histogram needs 'hist' and 'bin_centroids'")
            found.append((layer, which, _histogram(one["hist"], one["bin_centroids"])))
    return found


def _histogram(counts: Tensor, centroids: Tensor) -> Histogram:
    bins = centroids.numel()
    width = float(centroids[-1] - centroids[0]) / (bins - 1) if bins > 1 else 1.0
    return Histogram(counts, float(centroids[0]) - width / 2, float(centroids[-1]) + width / 2)


def _ends(histogram: Histogram) -> dict[str, float]:
    filled = torch.nonzero(histogram.counts).flatten()
    edges = histogram.edges
    return {"min": float(edges[int(filled[0])]), "max": float(edges[int(filled[-1]) + 1])}


def _possible(known: Mapping[str, Any], n_stds: float | None) -> Sequence[Clipping]:
    """The clippings whose statistics are known, and that need no option which was not given."""
    found = []
    for entry in CLIPPINGS:
        needs_option = "n_stds" in inspect.signature(entry.cls).parameters and n_stds is None
        if not needs_option and all(known.get(need) is not None for need in entry.cls.needs):
            found.append(clipping_named(entry.name, n_stds=n_stds))
    return sorted(found, key=lambda clip: (clip.name != "NONE", clip.name))


def _range(
    clip: Clipping, known: Mapping[str, Any], num_bits: int, mode: LinearQuantMode, layer: str
) -> tuple[float, float]:
    try:
        low, high = clip.of_stats(known, num_bits, mode)
    except CalibrationError as error:
        raise CalibrationError(f"{layer}: {error}") from error
    return float(low), float(high)


def _judged(
    name: str, histogram: Histogram, ends: tuple[float, float], num_bits: int, mode: LinearQuantMode
) -> ClipChoice:
    low, high = ends
    edges, width = histogram.edges, max(histogram.width, 1e-300)
    inside = ((edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)) / width).clamp(0, 1)
    total = histogram.counts.sum()
    centres = (edges[:-1] + edges[1:]) / 2
    power = float((histogram.counts * centres.square()).sum() / total)
    error = quantization_error(histogram, low, high, num_bits, mode)
    sqnr = 10 * math.log10(power / error) if power > 0 and error > 0 else math.inf
    return ClipChoice(name, low, high, float(1 - (histogram.counts * inside).sum() / total), sqnr)
