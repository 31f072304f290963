"""Numbers on the command line (layer 5)."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

__all__ = ["above_zero", "fraction", "whole"]


def whole(least: int, most: float = math.inf) -> Callable[[str], int]:
    """A ``type=`` for argparse: a whole number from ``least`` to ``most``; ``whole(1)("0")`` is refused."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} on, got {text}")
        if value > most:
            raise argparse.ArgumentTypeError(f"must be at most {most:,}, got {text}")
        return value

    return read


def above_zero(text: str) -> float:
    """A ``type=`` for argparse: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return value


def fraction(text: str) -> float:
    """A ``type=`` for argparse: a number above 0, at most 1."""
    value = above_zero(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"must be a fraction, at most 1, got {text}")
    return value
