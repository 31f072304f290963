"""Binary activations and the learned scale of binary layers: XNOR-Net++ (layer 2).

Source: A. Bulat, G. Tzimiropoulos, "XNOR-Net++: Improved Binary Neural Networks", BMVC 2019,
https://arxiv.org/abs/1909.13863. A layer computes ``(sign(x) * sign(W)) . gamma`` with scales ``gamma`` learned by
backpropagation, instead of the means of magnitudes of XNOR-Net.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError
from distiller_ng.quantization.ste import sign_ste

__all__ = ["XnorActivation", "XnorScale"]


class XnorActivation(nn.Module):
    """``sign(x)``: 1 from 0 on, else -1; the gradient passes where ``|x| <= clip``.

    For ``[-2, -0.1, 0, 3]`` the output is ``[-1, -1, 1, 1]`` and the gradient passes at the two in the middle. Put it
    before a binary layer, after the batch normalization; after a ReLU nothing is negative and nothing is left to learn.

    Raises :class:`ArgumentError` for a clip that is not positive.
    """

    def __init__(self, *, clip: float = 1.0) -> None:
        super().__init__()
        if not clip > 0:
            raise ArgumentError(f"clip must be more than 0, got {clip!r}", argument=("clip",))
        self.clip = float(clip)

    def forward(self, input: Tensor) -> Tensor:
        """-1 and 1, same shape and dtype."""
        return sign_ste(input, self.clip)

    def extra_repr(self) -> str:
        """The clip of the gradient."""
        return f"clip={self.clip:g}"


class XnorScale(nn.Module):
    """The learned scale of a binary layer's output ``[N, C_o, *spatial]`` (``[N, ..., C_o]`` with ``channel_axis=-1``).

    ``gamma = alpha x beta_1 x beta_2 ...``: a rank-1 product of ``alpha`` ``[C_o]`` and, where ``spatial`` gives the
    output size, one factor for each spatial dimension (the paper's case 4). Without ``spatial`` it is ``alpha`` alone
    (case 1), which fits any input size. ``alpha`` starts at ``start`` (the mean magnitude of each filter is XNOR-Net's
    choice), the others at 1.

    ``XnorScale(64, (8, 8))`` has 64 + 8 + 8 parameters.

    Raises :class:`ArgumentError` when sizes are not positive or ``start`` has another shape.
    """

    def __init__(
        self,
        channels: int,
        spatial: Sequence[int] = (),
        *,
        start: Tensor | None = None,
        channel_axis: int = 1,
    ) -> None:
        super().__init__()
        sizes = [channels, *spatial]
        if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
            raise ArgumentError(f"channels and spatial sizes must be whole numbers from 1 on, got {sizes}")
        if start is not None and start.shape != (channels,):
            raise ArgumentError(f"start must have shape ({channels},), got {tuple(start.shape)}", argument=("start",))
        self.channel_axis = channel_axis
        alpha = torch.ones(channels) if start is None else start.detach().clone()
        self.alpha = nn.Parameter(alpha)
        self.beta = nn.ParameterList(nn.Parameter(torch.ones(size)) for size in spatial)

    def forward(self, output: Tensor) -> Tensor:
        """``output * gamma``, in the dtype of ``output``."""
        axis = self.channel_axis % output.dim()
        scaled = output * _along(self.alpha, output, axis)
        for position, factor in enumerate(self.beta):
            scaled = scaled * _along(factor, output, axis + 1 + position)
        return scaled

    def extra_repr(self) -> str:
        """Sizes of the factors."""
        return f"channels={self.alpha.numel()}, spatial={tuple(factor.numel() for factor in self.beta)}"


def _along(factor: Tensor, output: Tensor, axis: int) -> Tensor:
    shape = [1] * output.dim()
    shape[axis] = -1
    return factor.to(output.dtype).reshape(shape)
