"""ResNet-20 without its shortcuts, the baseline of the ResNet paper (layer 5).

Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun, "Deep Residual Learning for Image Recognition", section 4.2,
https://arxiv.org/abs/1512.03385.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from distiller_ng.models._initialization import he_init_
from distiller_ng.models._sizing import ImageSize, LayerSizer, check_sizes
from distiller_ng.models._zoo import architecture

__all__ = ["PlainCifar", "plain20_cifar", "plain20_cifar_nobn"]

_WIDTHS = (16, 32, 64)


class _PlainBlock(nn.Module):
    """conv1 [bn1] relu1 conv2 [bn2] relu2, without a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels) if batch_norm else None
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels) if batch_norm else None
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_i, H, W]`` to ``[N, C_o, H / stride, W / stride]``, rounded up."""
        x = self.conv1(x)
        x = self.relu1(x if self.bn1 is None else self.bn1(x))
        x = self.conv2(x)
        x = self.relu2(x if self.bn2 is None else self.bn2(x))
        return x


class PlainCifar(nn.Module):
    """conv1 [bn1] relu, layer1..3 of ``blocks`` plain blocks each (16, 32 and 64 channels), avgpool, fc.

    ``[N, C, H, W]`` becomes logits ``[N, num_classes]``. With 3 blocks a layer: 19 convolutions.
    """

    def __init__(
        self,
        blocks: int = 3,
        *,
        batch_norm: bool = True,
        num_classes: int = 10,
        in_channels: int = 3,
        input_size: ImageSize = 32,
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels, input_size=input_size)
        sizer = LayerSizer(in_channels, input_size)
        self.conv1 = sizer.conv(_WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0]) if batch_norm else None
        self.relu = nn.ReLU(inplace=True)
        layers = []
        for width, stride in zip(_WIDTHS, (1, 2, 2), strict=True):
            members = []
            for step in (stride, *[1] * (blocks - 1)):
                members.append(_PlainBlock(sizer.channels, width, step, batch_norm=batch_norm))
                sizer.advance(width, step)
            layers.append(nn.Sequential(*members))
        self.layer1, self.layer2, self.layer3 = layers
        self.avgpool = sizer.average_all(stride=1)
        self.fc = nn.Linear(sizer.features, num_classes)
        he_init_(self)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        x = self.conv1(x)
        x = self.relu(x if self.bn1 is None else self.bn1(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.fc(self.avgpool(x).flatten(1))
        return x


plain20_cifar = architecture("plain20_cifar", "cifar10", partial(PlainCifar, 3))
plain20_cifar_nobn = architecture("plain20_cifar_nobn", "cifar10", partial(PlainCifar, 3, batch_norm=False))
