"""MobileNet v1 at four widths (layer 5).

Andrew Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications",
https://arxiv.org/abs/1704.04861.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from distiller_ng.errors import ArgumentError
from distiller_ng.models._sizing import ImageSize, LayerSizer, check_sizes
from distiller_ng.models._zoo import architecture

__all__ = ["MobileNet", "mobilenet", "mobilenet_025", "mobilenet_050", "mobilenet_075"]

_STEM_WIDTH = 32
_MIN_WIDTH = 8
# (channels, stride) of the 13 separable convolutions, table 1 of the paper.
_STAGES = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))


class MobileNet(nn.Module):
    """model.0 (conv, bn, relu), model.1..13 (depthwise conv, bn, relu, pointwise conv, bn, relu), model.14, fc.

    ``width`` scales every number of channels, rounded down, never below 8: 0.25 gives 8, 16, 32, ... 256. ``[N, C, H,
    W]`` becomes logits ``[N, num_classes]``. The first three layers at width 1 on 224 x 224 images take 10,838,016,
    3,612,672 and 25,690,112 MACs. Raises :class:`ArgumentError` for a ``width`` of 0 or less.
    """

    def __init__(
        self, width: float = 1.0, *, num_classes: int = 1000, in_channels: int = 3, input_size: ImageSize = 224
    ) -> None:
        super().__init__()
        if width <= 0:
            raise ArgumentError(f"width must be above 0, not {width}", argument=("width",))
        check_sizes(num_classes=num_classes, in_channels=in_channels, input_size=input_size)
        sizer = LayerSizer(in_channels, input_size)
        blocks: list[nn.Module] = [nn.Sequential(*_conv_bn_relu(sizer, _scaled(_STEM_WIDTH, width), stride=2))]
        for channels, stride in _STAGES:
            depthwise = _conv_bn_relu(sizer, sizer.channels, stride=stride, groups=sizer.channels)
            pointwise = _conv_bn_relu(sizer, _scaled(channels, width), kernel=1)
            blocks.append(nn.Sequential(*depthwise, *pointwise))
        self.model = nn.Sequential(*blocks, sizer.average_all())
        self.fc = nn.Linear(sizer.features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        x = self.fc(self.model(x).flatten(1))
        return x


def _scaled(channels: int, width: float) -> int:
    return max(int(channels * width), _MIN_WIDTH)


def _conv_bn_relu(
    sizer: LayerSizer, channels: int, *, kernel: int = 3, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = sizer.conv(channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


mobilenet = architecture("mobilenet", "imagenet", MobileNet)
mobilenet_025 = architecture("mobilenet_025", "imagenet", partial(MobileNet, 0.25))
mobilenet_050 = architecture("mobilenet_050", "imagenet", partial(MobileNet, 0.5))
mobilenet_075 = architecture("mobilenet_075", "imagenet", partial(MobileNet, 0.75))
