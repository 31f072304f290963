"""Distiller's ACIQ clippers: analytic clipping of a tensor or of its calibration statistics (layer 2).

Source: R. Banner et al., "Post-training 4-bit quantization of convolution networks for rapid-deployment",
https://arxiv.org/abs/1810.05723. The maths is in ``ops/clipping/aciq_alpha.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeAlias

import torch
from torch import Tensor

from distiller_ng.errors import CalibrationError, listed
from distiller_ng.ops.clipping.aciq_alpha import (
    ALPHA_GAUSS,
    ALPHA_GAUSS_HALF,
    ALPHA_LAPLACE,
    ALPHA_LAPLACE_HALF,
    aciq_alpha,
)
from distiller_ng.quantization.tensor_range import get_tensor_min_max, standard_deviation

__all__ = ["AciqAsymmetricClipper", "AciqClipper", "AciqSymmetricClipper"]

Statistics: TypeAlias = Tensor | Mapping[str, Any]


class AciqClipper:
    """Clipping values of a tensor, or of a mapping of statistics with ``mean``, ``std``, ``b`` and ``avg_min``.

    ``across_dim`` is Distiller's; the means over it equal the means over everything, so only the average of the
    smallest values depends on it. Raises :class:`CalibrationError` when a statistic is missing, :class:`TypeError` for
    anything but a tensor or a mapping.
    """

    class AciqClippingType(Enum):
        """The distribution the values are taken to have."""

        Laplace = 1
        Gauss = 2

    alpha_laplace = ALPHA_LAPLACE
    alpha_laplace_positive = ALPHA_LAPLACE_HALF
    alpha_gauss = ALPHA_GAUSS
    alpha_gauss_positive = ALPHA_GAUSS_HALF

    def __init__(self, num_bits: int, clip_type: AciqClippingType = AciqClippingType.Laplace) -> None:
        self.num_bits = num_bits
        self.clip_type = clip_type

    @staticmethod
    def get_alpha_laplace(
        t: Statistics, across_dim: int | None = None, num_bits: int = 8, half_range: bool = False
    ) -> Tensor:
        """``alpha * b`` with ``b = mean(|t - mean(t)|)``: 9.89 for 8 bits and a mean deviation of 1."""
        values = _tensor_or_none(t)
        deviation = _statistic(t, "b") if values is None else (values - values.mean()).abs().mean()
        return deviation * aciq_alpha(num_bits, "laplace", half_range=half_range)

    @staticmethod
    def get_alpha_gauss(
        t: Statistics, across_dim: int | None = None, num_bits: int = 8, half_range: bool = False
    ) -> Tensor:
        """``alpha * std(t)``: 3.92 for 8 bits and a standard deviation of 1."""
        values = _tensor_or_none(t)
        deviation = _statistic(t, "std") if values is None else standard_deviation(values.reshape(-1))
        return deviation * aciq_alpha(num_bits, "gauss", half_range=half_range)

    def _distance(self, t: Statistics, across_dim: int | None, half_range: bool = False) -> Tensor:
        laplace = self.clip_type == self.AciqClippingType.Laplace
        alpha = self.get_alpha_laplace if laplace else self.get_alpha_gauss
        return alpha(t, across_dim, self.num_bits, half_range=half_range)


class AciqSymmetricClipper(AciqClipper):
    """The range ``-clip .. clip`` with ``clip = |mean| + alpha * deviation``.

    >>> clipper = AciqSymmetricClipper(8, AciqClipper.AciqClippingType.Gauss)
    >>> clipper({"mean": -1.0, "std": 0.5})
    (tensor(-2.9600), tensor(2.9600))
    """

    def __call__(self, t: Statistics, across_dim: int | None = None) -> tuple[Tensor, Tensor]:
        """Lower and upper end."""
        clip = _mean(t).abs() + self._distance(t, across_dim)
        return -clip, clip


class AciqAsymmetricClipper(AciqClipper):
    """The range from ``max(average minimum, mean - alpha * deviation)``, ``2 * alpha * deviation`` wide.

    With ``half_range`` (values that a ReLU follows) ``alpha`` is that of one bit more and the range one ``alpha`` wide.

    >>> clipper = AciqAsymmetricClipper(8, AciqClipper.AciqClippingType.Gauss)
    >>> clipper({"mean": 1.0, "std": 0.5, "avg_min": 0.0}, half_range=True)
    (tensor(0.), tensor(2.1000))
    """

    def __call__(self, t: Statistics, across_dim: int | None = None, half_range: bool = False) -> tuple[Tensor, Tensor]:
        """Lower and upper end."""
        values = _tensor_or_none(t)
        lowest = _statistic(t, "avg_min") if values is None else get_tensor_min_max(values, across_dim)[0].mean()
        distance = self._distance(t, across_dim, half_range)
        low = torch.maximum(lowest, _mean(t) - distance)
        return low, low + (distance if half_range else 2 * distance)


def _mean(t: Statistics) -> Tensor:
    values = _tensor_or_none(t)
    return _statistic(t, "mean") if values is None else values.mean()


def _tensor_or_none(t: Statistics) -> Tensor | None:
    """The values without autograd history, in floating point; None when ``t`` is a mapping of statistics."""
    if isinstance(t, Tensor):
        return t.detach() if t.is_floating_point() else t.detach().float()
    if isinstance(t, Mapping):
        return None
    raise TypeError(f"ACIQ clips a tensor or a mapping of calibration statistics, got {type(t).__name__}")


def _statistic(stats: Any, name: str) -> Tensor:
    if stats.get(name) is None:
        raise CalibrationError(
            f"ACIQ clipping needs the statistic {name!r}, which these calibration statistics do not have (they have "
            f"{listed(stats)}): collect them again, or choose another clipping"
        )
    return torch.as_tensor(float(stats[name]))
