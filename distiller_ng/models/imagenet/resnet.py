"""ResNet, ResNeXt and Wide ResNet for 224 x 224 images (layer 5).

Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun, "Deep Residual Learning for Image Recognition",
https://arxiv.org/abs/1512.03385; Saining Xie et al., "Aggregated Residual Transformations for Deep Neural Networks",
https://arxiv.org/abs/1611.05431; Sergey Zagoruyko, Nikos Komodakis, "Wide Residual Networks",
https://arxiv.org/abs/1605.07146. Module names and weights are torchvision's, so its files of weights load; each block
has a ReLU of its own at every place and a module for the addition, as in Distiller, so that all have names.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from distiller_ng.models._initialization import he_init_
from distiller_ng.models._sizing import ImageSize, LayerSizer, check_sizes
from distiller_ng.models._zoo import Architecture, architecture
from distiller_ng.modules import EltwiseAdd

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "ResNet",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]

_WIDTHS = (64, 128, 256, 512)


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


class BasicBlock(nn.Module):
    """conv1 bn1 relu1 conv2 bn2 [downsample] add relu2: two 3 x 3 convolutions of ``width`` channels.

    ``groups`` and ``group_width`` exist for :class:`Bottleneck` and have no effect here.
    """

    expansion: ClassVar[int] = 1

    def __init__(self, in_channels: int, width: int, stride: int, *, groups: int = 1, group_width: int = 64) -> None:
        super().__init__()
        del groups, group_width
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)
        self.add = EltwiseAdd(inplace=True)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_i, H, W]`` to ``[N, width, H / stride, W / stride]``, rounded up."""
        out: Tensor = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = self.relu2(self.add(out, x if self.downsample is None else self.downsample(x)))
        return out


class Bottleneck(nn.Module):
    """conv1 bn1 relu1 conv2 bn2 relu2 conv3 bn3 [downsample] add relu3: 1 x 1, 3 x 3 and 1 x 1 convolutions.

    The output has ``4 * width`` channels; the inner ones ``width * group_width / 64 * groups``. The stride stands on
    the 3 x 3 convolution, as in torchvision and unlike the paper.
    """

    expansion: ClassVar[int] = 4

    def __init__(self, in_channels: int, width: int, stride: int, *, groups: int = 1, group_width: int = 64) -> None:
        super().__init__()
        inner = int(width * group_width / 64) * groups
        channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(in_channels, channels, stride)
        self.add = EltwiseAdd(inplace=True)
        self.relu3 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_i, H, W]`` to ``[N, 4 * width, H / stride, W / stride]``, rounded up."""
        out: Tensor = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = self.relu3(self.add(out, x if self.downsample is None else self.downsample(x)))
        return out


class ResNet(nn.Module):
    """conv1 bn1 relu maxpool, layer1..4 of ``blocks`` blocks (64, 128, 256, 512 wide), avgpool, fc.

    ``[N, C, H, W]`` becomes logits ``[N, num_classes]``. ResNet-50 is ``ResNet(Bottleneck, (3, 4, 6, 3))`` and has
    25,557,032 parameters. ``input_size`` is only checked: this architecture fits every image size as it is.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: Sequence[int],
        *,
        groups: int = 1,
        group_width: int = 64,
        num_classes: int = 1000,
        in_channels: int = 3,
        input_size: ImageSize = 224,
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels, input_size=input_size)
        sizer = LayerSizer(in_channels, input_size)
        self.conv1 = sizer.conv(64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = sizer.max_pool(3, stride=2, padding=1)
        layers = []
        for width, stride, count in zip(_WIDTHS, (1, 2, 2, 2), blocks, strict=True):
            members: list[nn.Module] = []
            for step in (stride, *[1] * (count - 1)):
                members.append(block(sizer.channels, width, step, groups=groups, group_width=group_width))
                sizer.advance(width * block.expansion, step)
            layers.append(nn.Sequential(*members))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(sizer.channels, num_classes)
        he_init_(self)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.fc(self.avgpool(x).flatten(1))
        return x


def _bottlenecks(name: str, blocks: Sequence[int], *, groups: int = 1, group_width: int = 64) -> Architecture:
    return architecture(name, "imagenet", partial(ResNet, Bottleneck, blocks, groups=groups, group_width=group_width))


resnet18 = architecture("resnet18", "imagenet", partial(ResNet, BasicBlock, (2, 2, 2, 2)))
resnet34 = architecture("resnet34", "imagenet", partial(ResNet, BasicBlock, (3, 4, 6, 3)))
resnet50 = _bottlenecks("resnet50", (3, 4, 6, 3))
resnet101 = _bottlenecks("resnet101", (3, 4, 23, 3))
resnet152 = _bottlenecks("resnet152", (3, 8, 36, 3))
resnext50_32x4d = _bottlenecks("resnext50_32x4d", (3, 4, 6, 3), groups=32, group_width=4)
resnext101_32x8d = _bottlenecks("resnext101_32x8d", (3, 4, 23, 3), groups=32, group_width=8)
wide_resnet50_2 = _bottlenecks("wide_resnet50_2", (3, 4, 6, 3), group_width=128)
wide_resnet101_2 = _bottlenecks("wide_resnet101_2", (3, 4, 23, 3), group_width=128)
