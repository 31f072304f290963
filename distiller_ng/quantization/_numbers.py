"""Checks of numbers that several quantizers take (layer 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from distiller_ng.errors import ArgumentError

__all__ = ["number_above", "number_from"]


def number_from(name: str, value: Any, least: float, *, below: Sequence[str] = ()) -> float:
    """``value`` as a finite number from ``least`` on; raises :class:`ArgumentError` at ``(*below, name)``."""
    if not _is_finite(value) or value < least:
        raise ArgumentError(f"{name} must be a number from {least:g}, got {value!r}", argument=(*below, name))
    return float(value)


def number_above(name: str, value: Any, bound: float, *, below: Sequence[str] = ()) -> float:
    """``value`` as a finite number above ``bound``; raises :class:`ArgumentError` at ``(*below, name)``."""
    if not _is_finite(value) or value <= bound:
        raise ArgumentError(f"{name} must be a number above {bound:g}, got {value!r}", argument=(*below, name))
    return float(value)


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
