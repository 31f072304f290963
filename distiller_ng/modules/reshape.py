"""Change of shape as a module (layer 2)."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Flatten"]


class Flatten(nn.Module):
    """Everything but the batch dimension in one: ``[8, 50, 4, 4]`` becomes ``[8, 800]``.

    A class of its own, and not ``nn.Flatten``, because Distiller's takes no arguments.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[N, ...]`` becomes ``[N, product of the rest]``."""
        return x.flatten(1)
