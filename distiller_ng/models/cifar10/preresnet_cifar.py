"""Pre-activation ResNets for 32 x 32 images (layer 5).

Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun, "Identity Mappings in Deep Residual Networks",
https://arxiv.org/abs/1603.05027. Shortcuts that change shape average and pad with zero channels; the ``_conv_ds``
variants use a 1 x 1 convolution there.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from distiller_ng.models._initialization import he_init_
from distiller_ng.models._sizing import ImageSize, LayerSizer, check_sizes
from distiller_ng.models._zoo import Architecture, architecture

__all__ = [
    "PreactResNetCifar",
    "preact_resnet20_cifar",
    "preact_resnet20_cifar_conv_ds",
    "preact_resnet32_cifar",
    "preact_resnet32_cifar_conv_ds",
    "preact_resnet44_cifar",
    "preact_resnet44_cifar_conv_ds",
    "preact_resnet56_cifar",
    "preact_resnet56_cifar_conv_ds",
    "preact_resnet110_cifar",
    "preact_resnet110_cifar_conv_ds",
]

_WIDTHS = (16, 32, 64)


class _PreactBlock(nn.Module):
    """Normalisation and ReLU before each of two convolutions; nothing follows the addition.

    ``block_gates`` as in ``resnet_cifar``. A convolution on the shortcut reads the activated input, averaging reads the
    raw one.
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, downsample: nn.Module | None, block_gates: list[bool]
    ) -> None:
        super().__init__()
        self.block_gates = block_gates
        self.pre_bn = nn.BatchNorm2d(in_channels)
        self.pre_relu = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_i, H, W]`` to ``[N, C_o, H / stride, W / stride]``, rounded up."""
        convolves_shortcut = isinstance(self.downsample, nn.Conv2d)
        activated = self.pre_relu(self.pre_bn(x)) if any(self.block_gates) or convolves_shortcut else x
        out: Tensor = activated
        if self.block_gates[0]:
            out = self.relu(self.bn(self.conv1(out)))
        if self.block_gates[1]:
            out = self.conv2(out)
        shortcut = activated if convolves_shortcut else x
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        return out + shortcut


class PreactResNetCifar(nn.Module):
    """conv1, layer1..3 of ``blocks`` pre-activation blocks each (16, 32, 64 channels), final_bn final_relu avgpool fc.

    ``[N, C, H, W]`` becomes logits ``[N, num_classes]``; ``6 * blocks + 2`` layers deep.
    """

    def __init__(
        self,
        blocks: int = 3,
        *,
        conv_downsample: bool = False,
        num_classes: int = 10,
        in_channels: int = 3,
        input_size: ImageSize = 32,
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels, input_size=input_size)
        sizer = LayerSizer(in_channels, input_size)
        self.layer_gates = [[[True, True] for _ in range(blocks)] for _ in _WIDTHS]
        self.conv1 = sizer.conv(_WIDTHS[0], 3, padding=1, bias=False)
        self.layer1 = self._layer(sizer, 0, stride=1, conv_downsample=conv_downsample)
        self.layer2 = self._layer(sizer, 1, stride=2, conv_downsample=conv_downsample)
        self.layer3 = self._layer(sizer, 2, stride=2, conv_downsample=conv_downsample)
        self.final_bn = nn.BatchNorm2d(_WIDTHS[-1])
        self.final_relu = nn.ReLU(inplace=True)
        self.avgpool = sizer.average_all(stride=1)
        self.fc = nn.Linear(sizer.features, num_classes)
        he_init_(self)

    def _layer(self, sizer: LayerSizer, index: int, *, stride: int, conv_downsample: bool) -> nn.Sequential:
        width, blocks = _WIDTHS[index], []
        for position, gates in enumerate(self.layer_gates[index]):
            step = stride if position == 0 else 1
            downsample = _downsample(sizer, width, conv_downsample) if step != 1 else None
            blocks.append(_PreactBlock(sizer.channels, width, step, downsample, gates))
            sizer.advance(width, step)
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = self.avgpool(self.final_relu(self.final_bn(x)))
        x = self.fc(x.flatten(1))
        return x


def _downsample(sizer: LayerSizer, width: int, convolve: bool) -> nn.Module:
    """A shortcut with half the pixels and twice the channels."""
    if convolve:
        return nn.Conv2d(sizer.channels, width, 1, 2, bias=False)
    padding = (width - sizer.channels) // 2
    # Strided convolutions round odd sizes up; so must the average, or the two branches would not add.
    odd = sizer.height % 2 == 1 or sizer.width % 2 == 1
    return nn.Sequential(nn.AvgPool2d(2, ceil_mode=odd), nn.ConstantPad3d((0, 0, 0, 0, padding, padding), 0.0))


def _preact(name: str, blocks: int, *, conv_downsample: bool = False) -> Architecture:
    return architecture(name, "cifar10", partial(PreactResNetCifar, blocks, conv_downsample=conv_downsample))


preact_resnet20_cifar = _preact("preact_resnet20_cifar", 3)
preact_resnet32_cifar = _preact("preact_resnet32_cifar", 5)
preact_resnet44_cifar = _preact("preact_resnet44_cifar", 7)
preact_resnet56_cifar = _preact("preact_resnet56_cifar", 9)
preact_resnet110_cifar = _preact("preact_resnet110_cifar", 18)
preact_resnet20_cifar_conv_ds = _preact("preact_resnet20_cifar_conv_ds", 3, conv_downsample=True)
preact_resnet32_cifar_conv_ds = _preact("preact_resnet32_cifar_conv_ds", 5, conv_downsample=True)
preact_resnet44_cifar_conv_ds = _preact("preact_resnet44_cifar_conv_ds", 7, conv_downsample=True)
preact_resnet56_cifar_conv_ds = _preact("preact_resnet56_cifar_conv_ds", 9, conv_downsample=True)
preact_resnet110_cifar_conv_ds = _preact("preact_resnet110_cifar_conv_ds", 18, conv_downsample=True)
