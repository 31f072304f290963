"""ResNets for 32 x 32 images (layer 5).

Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun, "Deep Residual Learning for Image Recognition", section 4.2,
https://arxiv.org/abs/1512.03385, with Distiller's choice of a 1 x 1 convolution on shortcuts that change shape.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from distiller_ng.early_exit import EarlyExitMgr
from distiller_ng.models._initialization import he_init_
from distiller_ng.models._sizing import ImageSize, LayerSizer, as_pair, check_sizes
from distiller_ng.models._zoo import architecture
from distiller_ng.modules import EltwiseAdd

__all__ = [
    "ResNetCifar",
    "ResNetCifarEarlyExit",
    "resnet20_cifar",
    "resnet20_cifar_earlyexit",
    "resnet32_cifar",
    "resnet32_cifar_earlyexit",
    "resnet44_cifar",
    "resnet44_cifar_earlyexit",
    "resnet56_cifar",
    "resnet56_cifar_earlyexit",
    "resnet110_cifar",
    "resnet110_cifar_earlyexit",
    "resnet1202_cifar_earlyexit",
]

_WIDTHS = (16, 32, 64)


class _BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut.

    ``block_gates`` holds two flags, one a convolution; setting one to False, in place, skips that convolution with its
    normalisation, which is how whole layers are removed after training with 4D group lasso.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, block_gates: list[bool]) -> None:
        super().__init__()
        self.block_gates = block_gates
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        # Not in place: a block whose convolutions are skipped hands its own input to relu2.
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.residual_eltwiseadd = EltwiseAdd()

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_i, H, W]`` to ``[N, C_o, H / stride, W / stride]``, rounded up."""
        out = x
        if self.block_gates[0]:
            out = self.relu1(self.bn1(self.conv1(out)))
        if self.block_gates[1]:
            out = self.bn2(self.conv2(out))
        # After the convolutions: per-layer reports list layers in the order they run, as Distiller's do.
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu2(self.residual_eltwiseadd(shortcut, out))
        return x


class ResNetCifar(nn.Module):
    """conv1 bn1 relu, layer1..3 of ``blocks`` basic blocks each (16, 32 and 64 channels), avgpool, fc.

    A network of ``6 * blocks + 2`` layers: ResNet-20 has 3 blocks a layer. ``[N, C, H, W]`` becomes logits
    ``[N, num_classes]``. ResNet-20 on 3 x 32 x 32 images: 270,896 convolution and linear weights, 40,813,184 MACs.
    ``layer_gates[layer][block]`` are the blocks' gates.
    """

    def __init__(
        self, blocks: int = 3, *, num_classes: int = 10, in_channels: int = 3, input_size: ImageSize = 32
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels, input_size=input_size)
        sizer = LayerSizer(in_channels, input_size)
        self.layer_gates = [[[True, True] for _ in range(blocks)] for _ in _WIDTHS]
        self.conv1 = sizer.conv(_WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._layer(sizer, 0, stride=1)
        self.layer2 = self._layer(sizer, 1, stride=2)
        self.layer3 = self._layer(sizer, 2, stride=2)
        self.avgpool = sizer.average_all(stride=1)
        self.fc = nn.Linear(sizer.features, num_classes)
        he_init_(self)

    def _layer(self, sizer: LayerSizer, index: int, stride: int) -> nn.Sequential:
        width, blocks = _WIDTHS[index], []
        for position, gates in enumerate(self.layer_gates[index]):
            step = stride if position == 0 else 1
            blocks.append(_BasicBlock(sizer.channels, width, step, gates))
            sizer.advance(width, step)
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = self.fc(self.avgpool(x).flatten(1))
        return x


class ResNetCifarEarlyExit(ResNetCifar):
    """A :class:`ResNetCifar` with an exit behind the third block of layer1: ``[N, C, H, W]`` to a list of logits.

    The list holds the exit's logits and the network's, each ``[N, num_classes]``. The exit averages 3 x 3 patches of
    the feature map and classifies them with one linear layer, which has 16,010 parameters for 32 x 32 images and 10
    classes. Names are Distiller's: ``layer1.2.relu2.branch_net.2.weight``.
    """

    def __init__(
        self, blocks: int = 3, *, num_classes: int = 10, in_channels: int = 3, input_size: ImageSize = 32
    ) -> None:
        super().__init__(blocks, num_classes=num_classes, in_channels=in_channels, input_size=input_size)
        height, width = as_pair(input_size)
        window = min(3, height, width)
        features = _WIDTHS[0] * (height // window) * (width // window)
        branch = nn.Sequential(nn.AvgPool2d(window), nn.Flatten(), nn.Linear(features, num_classes))
        self.ee_mgr = EarlyExitMgr()
        self.ee_mgr.attach_exits(self, [("layer1.2.relu2", branch)])

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """``[N, C, H, W]`` to the exit's logits and the network's, each ``[N, num_classes]``."""
        self.ee_mgr.delete_exits_outputs(self)
        final = super().forward(x)
        return [*self.ee_mgr.get_exits_outputs(self), final]


resnet20_cifar = architecture("resnet20_cifar", "cifar10", partial(ResNetCifar, 3))
resnet32_cifar = architecture("resnet32_cifar", "cifar10", partial(ResNetCifar, 5))
resnet44_cifar = architecture("resnet44_cifar", "cifar10", partial(ResNetCifar, 7))
resnet56_cifar = architecture("resnet56_cifar", "cifar10", partial(ResNetCifar, 9))
resnet110_cifar = architecture("resnet110_cifar", "cifar10", partial(ResNetCifar, 18))
resnet20_cifar_earlyexit = architecture("resnet20_cifar_earlyexit", "cifar10", partial(ResNetCifarEarlyExit, 3))
resnet32_cifar_earlyexit = architecture("resnet32_cifar_earlyexit", "cifar10", partial(ResNetCifarEarlyExit, 5))
resnet44_cifar_earlyexit = architecture("resnet44_cifar_earlyexit", "cifar10", partial(ResNetCifarEarlyExit, 7))
resnet56_cifar_earlyexit = architecture("resnet56_cifar_earlyexit", "cifar10", partial(ResNetCifarEarlyExit, 9))
resnet110_cifar_earlyexit = architecture("resnet110_cifar_earlyexit", "cifar10", partial(ResNetCifarEarlyExit, 18))
resnet1202_cifar_earlyexit = architecture("resnet1202_cifar_earlyexit", "cifar10", partial(ResNetCifarEarlyExit, 200))
