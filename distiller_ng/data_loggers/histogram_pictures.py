"""Pictures of activation histograms, with the ranges that clippings chose (layer 2; needs matplotlib)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.files import replacing

__all__ = ["ClipRanges", "draw_histogram", "draw_histograms"]

#: ``{clipping: (low, high)}``, e.g. ``{"AVG": (0.0, 3.1)}``
ClipRanges: TypeAlias = "Mapping[str, tuple[float, float]]"

_COLORS = ("#d1495b", "#00798c", "#edae49", "#66a182", "#8d6a9f", "#2e4057")
_MOST_BARS = 256  # more cannot be told apart


def draw_histograms(
    histograms: Mapping[str, Mapping[str, Any]],
    folder: str | os.PathLike[str],
    *,
    clip_ranges: Mapping[tuple[str, int | str], ClipRanges] | None = None,
    extension: str = ".svg",
) -> list[Path]:
    """One picture a tensor: ``<module>_output.svg`` and ``<module>_input_<index>.svg``; their paths.

    ``histograms`` is what :class:`ActivationHistogramsCollector` collects; ``clip_ranges`` has the lines to draw, keyed
    by ``(module, input index or "output")``. Raises :class:`ArgumentError` when matplotlib is not installed, or does
    not know the format of ``extension``.
    """
    written = []
    for name, entry in histograms.items():
        tensors: list[tuple[int | str, str, Any]] = [
            (at, f"input_{at}", one) for at, one in entry.get("inputs", {}).items()
        ]
        if "output" in entry:
            tensors.append(("output", "output", entry["output"]))
        for which, label, one in tensors:
            path = Path(folder) / f"{name or 'model'}_{label}{extension}"
            ranges = (clip_ranges or {}).get((name, which), {})
            title = f"{name} {label.replace('_', ' ')}"
            written.append(draw_histogram(one["hist"], one["bin_centroids"], path, title=title, clip_ranges=ranges))
    return written


def draw_histogram(
    counts: Tensor,
    centroids: Tensor,
    path: str | os.PathLike[str],
    *,
    title: str = "",
    clip_ranges: ClipRanges | None = None,
) -> Path:
    """One histogram, counts on a logarithmic axis, with two dashed lines for each clipping; the picture's path.

    ``counts`` and ``centroids`` are both ``[bins]``, ascending; neighbouring bins are drawn together where there are
    more than 256. Raises as :func:`draw_histograms`.
    """
    figure_class = _figure_class()
    heights, centres, width = _bars(counts.double(), centroids.double())
    figure = figure_class(figsize=(7.0, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.bar(centres.tolist(), heights.tolist(), width=width, color="#8ab0d1")
    axes.set_yscale("symlog", linthresh=1.0)
    lines = dict(clip_ranges or {})
    for (name, (low, high)), color in zip(lines.items(), itertools.cycle(_COLORS)):
        axes.axvline(low, color=color, linestyle="--", linewidth=1.2, label=f"{name}: {low:.4g} .. {high:.4g}")
        axes.axvline(high, color=color, linestyle="--", linewidth=1.2)
    axes.set(title=title, xlabel="value", ylabel="count")
    if lines:
        axes.legend(fontsize="small")
    target = Path(path)
    form = target.suffix.lstrip(".")
    if form not in figure.canvas.get_supported_filetypes():
        raise ArgumentError(
            f"matplotlib cannot draw {target.suffix!r} files; use .svg, .png or .pdf", argument=("hist_imgs_ext",)
        )
    with replacing(target) as file:
        figure.savefig(file, format=form)
    return target


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure  # without pyplot: no global state, no window
    except ImportError as error:
        raise ArgumentError("drawing histograms needs matplotlib: pip install 'distiller_ng[plots]'") from error
    return Figure


def _bars(counts: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, float]:
    """At most 256 bars: heights, centres and their width."""
    bins = counts.numel()
    step = float(centroids[-1] - centroids[0]) / (bins - 1) if bins > 1 else 1.0
    together = -(-bins // _MOST_BARS)
    if together > 1:
        missing = -bins % together
        counts = counts.new_zeros(bins + missing).index_copy(0, _range(counts), counts)
        heights = counts.reshape(-1, together).sum(dim=1)
        first = float(centroids[0]) + step * (together - 1) / 2
        return heights, first + step * together * _range(heights).double(), step * together
    return counts, centroids, step


def _range(like: Tensor) -> Tensor:
    return like.new_ones(like.numel()).cumsum(0).long() - 1
