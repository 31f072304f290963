"""A clipping from its name and the options users write beside it (layer 1)."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

from distiller_ng.errors import ArgumentError, ScheduleWarning
from distiller_ng.ops.clipping.base import CLIPPINGS, Clipping

__all__ = ["clipping_named"]


def clipping_named(name: str, *, n_stds: float | None = None, half_range: bool = False) -> Clipping:
    """The clipping ``name`` (any case) with ``clip_n_stds`` and ``clip_half_range``, each used where it applies.

    >>> clipping_named("n_std", n_stds=2).name
    'N_STD'

    Raises :class:`ArgumentError` for an unknown name and for ``N_STD`` without ``n_stds``; warns when ``half_range``
    has no effect.
    """
    if not isinstance(name, str):
        raise ArgumentError(f"a clipping is named by text such as NONE or AVG, got {name!r}", argument=("clip_acts",))
    cls = CLIPPINGS.get(name.upper()).cls
    parameters = inspect.signature(cls).parameters
    options: dict[str, Any] = {}
    if "n_stds" in parameters:
        options["n_stds"] = n_stds
    if "half_range" in parameters:
        options["half_range"] = half_range
    elif half_range:
        message = f"clip_half_range has no effect with {name.upper()} clipping: it belongs to GAUSS and LAPLACE"
        warnings.warn(message, ScheduleWarning, stacklevel=2)
    return cls(**options)
