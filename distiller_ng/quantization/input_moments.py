"""Second moments of what a layer multiplies its weights with, gathered over calibration data (layer 2).

For one output channel with weight ``w`` (``[k]``, flattened) the mean squared change of the output, when the weight
changes by ``d``, is ``d H d`` with ``H = E[x x^T]`` over the patches ``x`` (``[k]``) the channel sees. So ``H`` is all
that reconstruction of a layer's output needs: its size does not grow with the data.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

__all__ = ["InputMoments", "moments_size"]

_CONVOLUTIONS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
_PIECE = 1 << 24  # values of patches that are made at once


class InputMoments:
    """Running ``E[x x^T]`` and ``E[x]`` of a linear layer's or convolution's patches: ``[G, k, k]`` and ``[G, k]``.

    ``G`` groups with ``k`` inputs of one output each. A linear layer that saw ``[[1, 0], [3, 2]]`` has the second
    moment ``[[5, 3], [3, 2]]`` and the mean ``[2, 1]``. Transposed convolutions are not covered (:meth:`supports`).
    """

    def __init__(self) -> None:
        self._second: Tensor | None = None
        self._first: Tensor = torch.zeros(())
        self._count = 0

    @staticmethod
    def supports(layer: nn.Module) -> bool:
        """Whether the layer is a linear layer or a convolution."""
        return isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)

    @torch.no_grad()
    def add(self, layer: nn.Module, x: Tensor) -> None:
        """Add an input of ``layer``, as the layer itself reads it (after padding of its own)."""
        call = _Call()
        with call:
            functional_call(layer, {}, (x.to(layer.weight.dtype),))  # type: ignore[arg-type]
        for piece in call.patches():
            self._accumulate(piece)

    def _accumulate(self, rows: Tensor) -> None:
        """``rows``: ``[G, n, k]``."""
        second, first = rows.transpose(1, 2) @ rows, rows.sum(dim=1)
        if self._second is None:
            self._second, self._first = second, first
        else:
            self._second += second
            self._first += first
        self._count += rows.shape[1]

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added."""
        return self._count == 0

    @property
    def mean(self) -> Tensor:
        """``[G, k]``."""
        return self._first / self._count

    @property
    def second(self) -> Tensor:
        """``[G, k, k]``."""
        return self._first[:, :, None] if self._second is None else self._second / self._count

    @property
    def covariance(self) -> Tensor:
        """``second - mean mean^T``: what is left of the error when the bias makes good for the mean."""
        mean = self.mean
        return self.second - mean[:, :, None] * mean[:, None, :]


def moments_size(layer: nn.Module) -> int:
    """Bytes of the moments of a layer."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    inputs = weight[0].numel()
    return int(getattr(layer, "groups", 1)) * inputs * inputs * 4


class _Call(TorchFunctionMode):
    """Notes what the linear operator inside a layer is called with."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: tuple[Any, ...] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear or func in _CONVOLUTIONS:
            self._seen = (func, args, dict(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def patches(self) -> Any:
        """Pieces ``[G, n, k]`` of what was multiplied."""
        if self._seen is None:
            return
        func, args, kwargs = self._seen
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        x: Tensor = given["input"].detach()
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if func is F.linear:
            yield x.reshape(1, -1, x.shape[-1])
            return
        dims = _CONVOLUTIONS[func]
        x = x[None] if x.dim() == dims + 1 else x
        weight: Tensor = given["weight"]
        x = F.pad(x, _padding(given.get("padding", 0), weight.shape[2:], _several(given.get("dilation", 1), dims)))
        stride, dilation = _several(given.get("stride", 1), dims), _several(given.get("dilation", 1), dims)
        groups = int(given.get("groups", 1))
        each = max(1, _PIECE // max(1, _patch_values(x, weight, stride, groups)))
        for part in torch.split(x, each):
            yield _unfolded(part, weight.shape[2:], stride, dilation, groups)


def _patch_values(x: Tensor, weight: Tensor, stride: tuple[int, ...], groups: int) -> int:
    pixels = 1
    for size, step in zip(x.shape[2:], stride, strict=True):
        pixels *= max(1, size // step)
    return int(pixels * weight[0].numel() * groups)


def _unfolded(x: Tensor, kernel: Any, stride: tuple[int, ...], dilation: tuple[int, ...], groups: int) -> Tensor:
    """``[G, n, k]`` patches of ``x`` ``[N, C, ...]``, in the order of a weight's values."""
    dims = len(stride)
    for at in range(dims):
        reach = (kernel[at] - 1) * dilation[at] + 1
        x = x.unfold(2 + at, reach, stride[at])[..., :: dilation[at]]
    # [N, C, pixels..., kernel...] -> [G, N, pixels..., C / G, kernel...]
    x = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    order = (1, 0, *range(3, 3 + dims), 2, *range(3 + dims, 3 + 2 * dims))
    x = x.permute(order)
    per_patch = x.shape[-dims - 1 :].numel()
    return x.reshape(groups, -1, per_patch)


def _several(value: Any, dims: int) -> tuple[int, ...]:
    return (int(value),) * dims if isinstance(value, int) else tuple(int(one) for one in value)


def _padding(padding: Any, kernel: Any, dilation: tuple[int, ...]) -> list[int]:
    """What ``F.pad`` takes: last dimension first, before and after."""
    dims = len(dilation)
    if padding == "valid":
        return [0, 0] * dims
    pads: list[int] = []
    for at in reversed(range(dims)):
        if padding == "same":
            total = (kernel[at] - 1) * dilation[at]
            pads += [total // 2, total - total // 2]
        else:
            pads += [_several(padding, dims)[at]] * 2
    return pads
