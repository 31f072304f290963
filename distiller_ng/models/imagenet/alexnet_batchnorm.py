"""AlexNet with batch normalisation, as low-precision training uses it (layer 5).

Shuchang Zhou et al., "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth Gradients",
https://arxiv.org/abs/1606.06160; the layers are those of Distiller's alexnet_bn.
"""

from __future__ import annotations

from torch import Tensor, nn

from distiller_ng.models._initialization import he_init_
from distiller_ng.models._sizing import ImageSize, LayerSizer, check_sizes
from distiller_ng.models._zoo import architecture

__all__ = ["AlexNetBN", "alexnet_bn"]

# A running statistic that is 90 % the last batch, and a larger epsilon: the values the published results were got with.
_MOMENTUM = 0.9
_EPSILON = 1e-4


def _norm2d(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPSILON, momentum=_MOMENTUM)


def _norm1d(features: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(features, eps=_EPSILON, momentum=_MOMENTUM)


class AlexNetBN(nn.Module):
    """Convolutions features.{0, 2, 6, 10, 13} and linear layers classifier.{0, 3, 6}.

    Batch norm follows every one of them but the first and the last, before pooling and ReLU; features.{2, 10, 13} have
    two groups. ``[N, C, H, W]`` becomes logits ``[N, num_classes]``; maps of 224 x 224 images: 54, 27, 14, 6 pixels.
    """

    def __init__(self, *, num_classes: int = 1000, in_channels: int = 3, input_size: ImageSize = 224) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels, input_size=input_size)
        sizer = LayerSizer(in_channels, input_size)
        self.features = nn.Sequential(
            sizer.conv(96, 12, stride=4),
            nn.ReLU(inplace=True),
            sizer.conv(256, 5, padding=2, groups=2, bias=False),
            _norm2d(256),
            sizer.max_pool(3, stride=2, ceil_mode=True),
            nn.ReLU(inplace=True),
            sizer.conv(384, 3, padding=1, bias=False),
            _norm2d(384),
            sizer.max_pool(3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            sizer.conv(384, 3, padding=1, groups=2, bias=False),
            _norm2d(384),
            nn.ReLU(inplace=True),
            sizer.conv(256, 3, padding=1, groups=2, bias=False),
            _norm2d(256),
            sizer.max_pool(3, stride=2),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Sequential(
            nn.Linear(sizer.features, 4096, bias=False),
            _norm1d(4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, 4096, bias=False),
            _norm1d(4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )
        he_init_(self, fan="fan_in")

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        x = self.classifier(self.features(x).flatten(1))
        return x


alexnet_bn = architecture("alexnet_bn", "imagenet", AlexNetBN)
