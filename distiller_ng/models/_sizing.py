"""Layers that follow the size of the feature map, so that one architecture fits images of any size (layer 5).

On the images an architecture was designed for, every layer is the textbook one. On smaller images a convolution gets
the least padding that lets its kernel fit, and pooling stops where the map is smaller than the window; modules keep
their names and weights their shapes, except where a linear layer reads the map.
"""

from __future__ import annotations

from typing import TypeAlias

from torch import nn

from distiller_ng.errors import ArgumentError

__all__ = ["ImageSize", "LayerSizer", "as_pair", "check_sizes"]

ImageSize: TypeAlias = "int | tuple[int, int]"
_Pair = tuple[int, int]


def as_pair(size: ImageSize) -> _Pair:
    """``28`` -> ``(28, 28)``; a pair stays what it is."""
    return (size, size) if isinstance(size, int) else size


def check_sizes(*, num_classes: int, in_channels: int, input_size: ImageSize) -> None:
    """Raises :class:`ArgumentError` unless every number is 1 or more."""
    height, width = as_pair(input_size)
    named = {"num_classes": num_classes, "in_channels": in_channels, "input_size": min(height, width)}
    for key, value in named.items():
        if value < 1:
            raise ArgumentError(f"{key} must be 1 or more, not {value}", argument=(key,))


def _simplest(pair: _Pair) -> int | _Pair:
    """An int for a square: layers then print, and compare, like those of the papers."""
    return pair[0] if pair[0] == pair[1] else pair


class LayerSizer:
    """Builds the layers of a chain in order and knows the feature map after each: ``channels``, ``height``, ``width``.

    Example, an 8 x 8 image: ``sizer = LayerSizer(1, 8)``; ``sizer.conv(20, 5)`` -> ``Conv2d(1, 20, 5)`` and a 4 x 4
    map; ``sizer.max_pool(2)`` -> 2 x 2; ``sizer.conv(50, 5)`` does not fit and becomes ``Conv2d(20, 50, 5, padding=2)``
    with a 2 x 2 map; ``sizer.features`` is then 200.
    """

    def __init__(self, in_channels: int, input_size: ImageSize) -> None:
        self.channels = in_channels
        self.height, self.width = as_pair(input_size)

    @property
    def features(self) -> int:
        """Values in the feature map, what a linear layer behind a flatten reads."""
        return self.channels * self.height * self.width

    def conv(
        self, out_channels: int, kernel: int, *, stride: int = 1, padding: int = 0, groups: int = 1, bias: bool = True
    ) -> nn.Conv2d:
        """A square convolution whose output map has at least one pixel."""
        pads = tuple(max(padding, -(-(kernel - size) // 2)) for size in (self.height, self.width))
        layer = nn.Conv2d(
            self.channels, out_channels, kernel, stride, _simplest((pads[0], pads[1])), groups=groups, bias=bias
        )
        self.channels = out_channels
        self.height, self.width = (
            (size + 2 * pad - kernel) // stride + 1 for size, pad in zip((self.height, self.width), pads, strict=True)
        )
        return layer

    def max_pool(
        self, kernel: int, *, stride: int | None = None, padding: int = 0, ceil_mode: bool = False
    ) -> nn.Module:
        """Max pooling, but not in a direction where the map is smaller than the window; in neither: ``Identity``."""
        step = kernel if stride is None else stride
        fits = tuple(size + 2 * padding >= kernel for size in (self.height, self.width))
        if not any(fits):
            return nn.Identity()
        kernels, steps, pads = (
            tuple(value if fit else neutral for fit in fits)
            for value, neutral in ((kernel, 1), (step, 1), (padding, 0))
        )
        self.height, self.width = (
            _pooled(size, k, s, p, ceil_mode)
            for size, k, s, p in zip((self.height, self.width), kernels, steps, pads, strict=True)
        )
        return nn.MaxPool2d(
            _simplest((kernels[0], kernels[1])),
            _simplest((steps[0], steps[1])),
            _simplest((pads[0], pads[1])),
            ceil_mode=ceil_mode,
        )

    def advance(self, channels: int, stride: int) -> None:
        """Follow a block built elsewhere: 3 x 3 convolutions with padding 1, one of them with ``stride``."""
        self.channels = channels
        self.height, self.width = -(-self.height // stride), -(-self.width // stride)

    def average_all(self, *, stride: int | None = None) -> nn.AvgPool2d:
        """Average pooling over the whole map: one value a channel."""
        layer = nn.AvgPool2d(_simplest((self.height, self.width)), stride)
        self.height = self.width = 1
        return layer


def _pooled(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """Output size of a pooling layer; in ceil mode, by torch's rule, no window starts in the right-hand padding."""
    rest = size + 2 * padding - kernel
    if not ceil_mode:
        return rest // stride + 1
    out = -(-rest // stride) + 1
    return out - 1 if (out - 1) * stride >= size + padding else out
