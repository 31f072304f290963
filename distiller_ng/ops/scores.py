"""What an evaluation of the user's returns, in one form (layer 1)."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

from distiller_ng.errors import ArgumentError

__all__ = ["Scores", "as_scores", "check_whole", "told"]

#: ``(top1, top5, loss)``, top1 and top5 in percent; NaN for what the evaluation did not say.
Scores: TypeAlias = tuple[float, float, float]


def check_whole(scores: Scores) -> None:
    """Raise :class:`ArgumentError` where top-1 of the model as it is is NaN: nothing can be compared with it."""
    if math.isnan(scores[0]):
        raise ArgumentError("evaluate gives NaN for the model as it is: there is nothing to compare with")


def as_scores(found: Any, argument: str = "evaluate") -> Scores:
    """``93.1`` -> ``(93.1, nan, nan)``; ``(93.1, 99.8, 0.25)`` as it is. Tensors of one element are numbers.

    Raises :class:`ArgumentError` for anything else.
    """
    try:
        if isinstance(found, bool | str | bytes | None):
            raise TypeError
        if isinstance(found, tuple | list):
            top1, top5, loss = (float(one) for one in found)
            return top1, top5, loss
        return float(found), math.nan, math.nan
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(
            f"{argument} must return top-1 in percent, or (top1, top5, loss), like 93.1 or (93.1, 99.8, 0.25); "
            f"got {found!r}",
            argument=(argument,),
        ) from error


def told(scores: Scores) -> str:
    """``top1 93.10, top5 99.80, loss 0.2500``, without what is not known."""
    texts = {"top1": "{:.2f}", "top5": "{:.2f}", "loss": "{:.4f}"}
    parts = [f"{name} {text.format(one)}" for (name, text), one in zip(texts.items(), scores, strict=True)]
    return ", ".join(part for part, one in zip(parts, scores, strict=True) if not math.isnan(one))
