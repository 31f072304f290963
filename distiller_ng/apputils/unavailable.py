"""Command-line flags of Distiller whose feature does not exist here (yet): refused in one line (layer 5)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

__all__ = ["add_unavailable_arguments"]

# (group, what the message calls the feature, [(flags, number of values)])
_SERIALIZED = ("Loading", "layer-wise loading (models are never wrapped here)", (("--load-serialized", 0),))
_EARLY_EXIT = (
    "Early exit",
    "early exit",
    (("--earlyexit_lossweights", "*"), ("--earlyexit_thresholds", "*")),
)
_APPLICATION = (_SERIALIZED,)
_EXAMPLE = (_EARLY_EXIT,)
_FEATURES = {"application": _APPLICATION, "example": _EXAMPLE}


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
    for title, feature, flags in _FEATURES[which]:
        group = parser.add_argument_group(f"{title} (not available yet)")
        for names, values in flags:
            group.add_argument(
                *names.split(), action=_Unavailable, feature=feature, nargs=values, help=f"{feature}: not available yet"
            )
