"""ResNet-50 with early exits, for 224 x 224 images (layer 5)."""

from __future__ import annotations

from torch import Tensor, nn

from distiller_ng.early_exit import EarlyExitMgr
from distiller_ng.models._sizing import ImageSize, LayerSizer
from distiller_ng.models._zoo import architecture
from distiller_ng.models.imagenet.resnet import Bottleneck, ResNet

__all__ = ["ResNetEarlyExit", "resnet50_earlyexit"]

#: (where, channels there, channels of the exit's convolution, reduction of the image's size so far).
_EXITS = (("layer1.2.relu3", 256, 10, 4), ("layer2.3.relu3", 512, 12, 8))


class ResNetEarlyExit(ResNet):
    """ResNet-50 with exits behind layer1 and layer2: ``[N, C, H, W]`` to the logits of each exit, the network's last.

    An exit is a 7 x 7 convolution of stride 2, max pooling and one linear layer: 1,960 and 588 features for 224 x 224
    images. Names are Distiller's: ``layer1.2.relu3.branch_net.0.weight``.
    """

    def __init__(self, *, num_classes: int = 1000, in_channels: int = 3, input_size: ImageSize = 224) -> None:
        super().__init__(
            Bottleneck, (3, 4, 6, 3), num_classes=num_classes, in_channels=in_channels, input_size=input_size
        )
        self.ee_mgr = EarlyExitMgr()
        exits = []
        for name, channels, filters, reduction in _EXITS:
            sizer = _map_after(reduction, channels, input_size)
            conv = sizer.conv(filters, 7, stride=2, padding=3)
            pool = sizer.max_pool(3, stride=2, padding=1)
            exits.append((name, nn.Sequential(conv, pool, nn.Flatten(), nn.Linear(sizer.features, num_classes))))
        self.ee_mgr.attach_exits(self, exits)

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """``[N, C, H, W]`` to the logits of both exits and the network's, each ``[N, num_classes]``."""
        self.ee_mgr.delete_exits_outputs(self)
        final = super().forward(x)
        return [*self.ee_mgr.get_exits_outputs(self), final]


def _map_after(reduction: int, channels: int, input_size: ImageSize) -> LayerSizer:
    """The feature map behind conv1, maxpool and, for a reduction of 8, layer2."""
    sizer = LayerSizer(3, input_size)
    sizer.conv(64, 7, stride=2, padding=3)
    sizer.max_pool(3, stride=2, padding=1)
    sizer.advance(channels, reduction // 4)
    return sizer


resnet50_earlyexit = architecture("resnet50_earlyexit", "imagenet", ResNetEarlyExit)
