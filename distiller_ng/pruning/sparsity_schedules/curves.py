"""How fast a sparsity goes from its first value to its last (layer 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

from distiller_ng.errors import ArgumentError, did_you_mean

__all__ = ["Curve", "check_curve", "interpolate"]

Curve: TypeAlias = Literal["linear", "cubic", "inverse_cubic"]

_CURVES: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {
        "linear": lambda x: x,
        "cubic": lambda x: 1.0 - (1.0 - x) ** 3,
        "inverse_cubic": lambda x: 1.0 - (1.0 - x) ** (1.0 / 3.0),
    }
)


def check_curve(value: Any, argument: str = "inter_func") -> Curve:
    """``value`` if it names a curve; raises :class:`ArgumentError` at ``argument`` otherwise."""
    if not isinstance(value, str) or value not in _CURVES:
        allowed = ", ".join(get_args(Curve))
        message = f"{argument} is one of {allowed}; got {value!r}. {did_you_mean(str(value), _CURVES)}"
        raise ArgumentError(message, argument=(argument,))
    known: Curve = value  # type: ignore[assignment]
    return known


def interpolate(first: float, last: float, progress: float, curve: Curve) -> float:
    """The value at ``progress`` 0..1 between ``first`` and ``last``, exactly those at both ends and beyond.

    ``cubic`` (M. Zhu and S. Gupta, https://arxiv.org/abs/1710.01878) prunes much at first, ``inverse_cubic`` at last.

    >>> [round(interpolate(0.05, 0.85, 0.25, name), 4) for name in ("linear", "cubic", "inverse_cubic")]
    [0.25, 0.5125, 0.1231]
    """
    if progress <= 0:
        return first
    if progress >= 1:
        return last
    return first + _CURVES[curve](progress) * (last - first)
