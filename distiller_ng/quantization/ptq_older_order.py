"""Calls of the post-training quantizer as its oldest form took them (layer 2)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

from distiller_ng.errors import ArgumentError

__all__ = ["older_order"]


def older_order(
    overrides: Mapping[str, Any] | None, no_clip_layers: Any, per_channel: Any, stats: Any
) -> tuple[dict[str, Any], bool, Any]:
    """The arguments of a call in the oldest order: ``..., clip_acts, no_clip_layers, per_channel_wts, stats``.

    Warns of the order; raises :class:`ArgumentError` when the types fit neither order.
    """
    layers = [no_clip_layers] if isinstance(no_clip_layers, str) else no_clip_layers
    is_older = (
        isinstance(per_channel, bool)
        and (layers is None or (isinstance(layers, list | tuple) and all(isinstance(one, str) for one in layers)))
        and (stats is None or stats is False or isinstance(stats, str | os.PathLike | Mapping))
    )
    if not is_older:
        raise ArgumentError(
            f"per_channel_wts must be true or false, got {no_clip_layers!r}; pass arguments behind the model by name",
            argument=("per_channel_wts",),
        )
    warnings.warn(
        "this order of arguments (no_clip_layers before per_channel_wts) is deprecated: pass them by name, and layers "
        "without clipping as overrides={'fc': {'clip_acts': 'NONE'}}",
        DeprecationWarning,
        stacklevel=3,
    )
    merged: dict[str, Any] = {}
    for layer in layers or ():
        merged[layer] = {**((overrides or {}).get(layer) or {}), "clip_acts": "NONE"}
    merged.update({key: value for key, value in (overrides or {}).items() if key not in merged})
    return merged, per_channel, stats or None
