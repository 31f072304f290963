"""Command-line flags of Distiller whose feature does not exist here (yet): refused in one line (layer 5)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, TypeAlias

__all__ = ["add_unavailable_arguments"]

_Feature: TypeAlias = "tuple[str, str, tuple[tuple[str, str | int], ...]]"
# (group, what the message calls the feature, [(flags, number of values)])
_SERIALIZED: _Feature = ("Loading", "layer-wise loading (models are never wrapped here)", (("--load-serialized", 0),))
_EARLY_EXIT: _Feature = (
    "Early exit",
    "early exit",
    (("--earlyexit_lossweights", "*"), ("--earlyexit_thresholds", "*")),
)
_FEATURES = {"application": _SERIALIZED, "example": _EARLY_EXIT}


class _Unavailable(argparse.Action):
    """Ends the program with code 2 and a line that names the flag and the missing feature."""

    def __init__(self, *args: Any, feature: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.feature = feature

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        parser.exit(2, f"error: {option_string}: {self.feature} is not available in this version of distiller_ng\n")


def add_unavailable_arguments(parser: argparse.ArgumentParser, which: str) -> None:
    """Add the flags of ``which``: ``"application"`` or ``"example"``; all default to None."""
    title, feature, flags = _FEATURES[which]
    group = parser.add_argument_group(f"{title} (not available yet)")
    for name, values in flags:
        group.add_argument(
            name, action=_Unavailable, feature=feature, nargs=values, help=f"{feature}: not available yet"
        )
