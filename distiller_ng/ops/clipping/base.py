"""The base of clippings: how wide the range is that gets quantized (layer 1).

A clipping gives up exactness of a few large values for finer steps everywhere else. Each works on a tensor (weights,
dynamic activations) and on calibration statistics, which are a mapping with Distiller's names: ``min``, ``max``,
``avg_min``, ``avg_max``, ``mean``, ``std``, ``b`` and, where it was collected, ``histogram``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError, CalibrationError, listed
from distiller_ng.ops.histogram import Histogram
from distiller_ng.ops.linear_quantization import LinearQuantMode, check_axis
from distiller_ng.registry import Registry

__all__ = ["CLIPPINGS", "Clipping", "rows_along", "symmetric_range"]


class Clipping(ABC):
    """One way to choose the range ``low .. high`` of a quantization.

    Subclasses register in :data:`CLIPPINGS` under the name users write (``clip_acts: AVG``).
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]  # the statistics that of_stats reads

    @abstractmethod
    def of_tensor(
        self, values: Tensor, num_bits: int, mode: LinearQuantMode, *, axis: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Lower and upper end for a tensor: scalars, or ``[C]`` with the ``axis`` of the channels."""

    @abstractmethod
    def of_stats(self, stats: Mapping[str, Any], num_bits: int, mode: LinearQuantMode) -> tuple[Tensor, Tensor]:
        """Lower and upper end from calibration statistics, as float32 scalars.

        Raises :class:`CalibrationError` when a statistic it needs is missing.
        """

    def statistic(self, stats: Mapping[str, Any], name: str) -> Tensor:
        """One number of the statistics; raises :class:`CalibrationError` when it is missing."""
        if stats.get(name) is None:
            raise CalibrationError(
                f"{self.name} clipping needs the statistic {name!r}; these have only {listed(stats)}. Collect the "
                "statistics again with this version, or choose another clipping"
            )
        return torch.tensor(float(stats[name]))

    def histogram(self, stats: Mapping[str, Any]) -> Histogram:
        """The histogram in the statistics; raises :class:`CalibrationError` when there is none."""
        found = stats.get("histogram")
        if not isinstance(found, Histogram):
            raise CalibrationError(
                f"{self.name} clipping needs a histogram of the activations, and these statistics have only "
                f"{listed(stats)}: calibrate with a histogram observer, or choose another clipping"
            )
        return found


CLIPPINGS: Registry[Clipping] = Registry("clipping", "distiller_ng.ops.clipping")


def rows_along(values: Tensor, axis: int | None) -> Tensor:
    """``values`` in floating point as ``[C, everything else]``, or ``[1, all]`` without an axis; detached.

    Raises :class:`ArgumentError` for an empty tensor.
    """
    if values.numel() == 0:
        raise ArgumentError(f"an empty tensor (shape {tuple(values.shape)}) has no range to clip")
    data = values.detach()
    data = data if data.dtype in (torch.float32, torch.float64) else data.float()
    axis = check_axis(axis, data.dim())
    return data.reshape(1, -1) if axis is None else data.movedim(axis, 0).reshape(data.shape[axis], -1)


def symmetric_range(low: Tensor, high: Tensor, mode: LinearQuantMode) -> tuple[Tensor, Tensor]:
    """``-m .. m`` with ``m = max(|low|, |high|)`` for symmetric modes; other modes keep the range."""
    if not mode.is_symmetric:
        return low, high
    largest = torch.maximum(low.abs(), high.abs())
    return -largest, largest
