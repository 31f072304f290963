"""A module to put between layers while writing a model (layer 2)."""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["Print"]

_logger = logging.getLogger(__name__)


class Print(nn.Module):
    """Reports the shape that passes through it, e.g. ``[8, 50, 4, 4]``, and returns its input unchanged.

    ``sink`` receives each line; without one it goes to this module's logger at level INFO. To see it on the screen
    without setting up logging, write ``Print(print)``.
    """

    def __init__(self, sink: Callable[[str], object] | None = None) -> None:
        super().__init__()
        self.sink = sink if sink is not None else _logger.info

    def forward(self, x: Tensor) -> Tensor:
        """``x`` itself."""
        self.sink(str(list(x.shape)))
        return x
