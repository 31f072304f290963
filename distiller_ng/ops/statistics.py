"""Statistics of activations: per-channel magnitudes and zeros, and running means (layer 1).

Activations are ``[N, C, ...]``: batch, channel, any spatial dimensions (none for fully connected layers). Every result
has one value for each channel, on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError

__all__ = ["RunningMean", "activation_channels_apoz", "activation_channels_l1", "activation_channels_means"]


def activation_channels_l1(activation: Tensor) -> Tensor:
    """Mean over the batch of each channel's L1 norm: ``[C]``.

    >>> activation_channels_l1(torch.tensor([[[1.0, -2.0]], [[3.0, 0.0]]]))
    tensor([3.])
    """
    return _by_channel(activation).abs().sum(dim=2).mean(dim=0).cpu()


def activation_channels_means(activation: Tensor) -> Tensor:
    """Mean over batch and positions of each channel: ``[C]``."""
    return _by_channel(activation).mean(dim=2).mean(dim=0).cpu()


def activation_channels_apoz(activation: Tensor) -> Tensor:
    """Average percentage of zeros of each channel, ``[C]``, 0 to 100.

    Source: H. Hu et al., "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep
    Architectures", https://arxiv.org/abs/1607.03250. Two of three values zero give 66.7.
    """
    nonzero = (_by_channel(activation) != 0).sum(dim=(0, 2)).double()
    per_channel = activation.numel() / max(activation.shape[1], 1)
    return (100 * (1 - nonzero / per_channel)).to(torch.get_default_dtype()).cpu()


class RunningMean:
    """Mean of values that arrive in pieces, each weighted by how many elements it stands for.

    The sum is kept in float64. A value is a number or a tensor; a tensor's shape is fixed by the first one.

    >>> mean = RunningMean()
    >>> mean.update(1.0, 3)
    >>> mean.update(5.0, 1)
    >>> float(mean.value)
    2.0
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self.count = 0

    def update(self, value: float | Tensor, count: int = 1) -> None:
        """Add a mean over ``count`` elements. Raises :class:`ArgumentError` when its shape differs from the first."""
        new = torch.as_tensor(value, dtype=torch.float64).detach().cpu() * count
        if self._sum is None:
            self._sum = torch.zeros_like(new)
        if new.shape != self._sum.shape:
            raise ArgumentError(f"a mean of shape {tuple(self._sum.shape)} cannot take shape {tuple(new.shape)}")
        self._sum += new
        self.count += count

    @property
    def value(self) -> Tensor:
        """The mean so far in float64; NaN before the first update."""
        if self._sum is None or self.count == 0:
            return torch.tensor(float("nan"), dtype=torch.float64)
        return self._sum / self.count

    def reset(self) -> None:
        """Forget everything."""
        self._sum, self.count = None, 0

    def state_dict(self) -> dict[str, Any]:
        """Sum and count, for resuming."""
        return {"sum": None if self._sum is None else self._sum.clone(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._sum = None if state["sum"] is None else state["sum"].clone()
        self.count = int(state["count"])


def _by_channel(activation: Tensor) -> Tensor:
    """View as ``[N, C, positions]``."""
    if activation.dim() < 2:
        raise ArgumentError(f"activations need a batch and a channel dimension, got shape {tuple(activation.shape)}")
    values = activation.detach()
    return values.unsqueeze(2) if values.dim() == 2 else values.flatten(2)
