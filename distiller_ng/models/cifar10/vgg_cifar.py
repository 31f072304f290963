"""VGG networks for 32 x 32 images, with one linear layer in place of three (layer 5).

Karen Simonyan, Andrew Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition",
https://arxiv.org/abs/1409.1556.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from distiller_ng.models._initialization import he_init_
from distiller_ng.models._sizing import ImageSize, LayerSizer, check_sizes
from distiller_ng.models._vgg_features import vgg_features
from distiller_ng.models._zoo import Architecture, architecture

__all__ = [
    "VGGCifar",
    "vgg11_bn_cifar",
    "vgg11_cifar",
    "vgg13_bn_cifar",
    "vgg13_cifar",
    "vgg16_bn_cifar",
    "vgg16_cifar",
    "vgg19_bn_cifar",
    "vgg19_cifar",
]


class VGGCifar(nn.Module):
    """features.{n} (convolutions, [batch norm,] ReLU, pooling) and classifier, a linear layer.

    ``depth`` is 11, 13, 16 or 19. ``[N, C, H, W]`` becomes logits ``[N, num_classes]``. On 32 x 32 images the last map
    is one pixel, so the classifier reads 512 values.
    """

    def __init__(
        self,
        depth: int = 16,
        *,
        batch_norm: bool = False,
        num_classes: int = 10,
        in_channels: int = 3,
        input_size: ImageSize = 32,
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels, input_size=input_size)
        sizer = LayerSizer(in_channels, input_size)
        self.features = vgg_features(sizer, depth=depth, batch_norm=batch_norm)
        self.classifier = nn.Linear(sizer.features, num_classes)
        he_init_(self)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        x = self.classifier(self.features(x).flatten(1))
        return x


def _vgg(name: str, depth: int, *, batch_norm: bool = False) -> Architecture:
    return architecture(name, "cifar10", partial(VGGCifar, depth, batch_norm=batch_norm))


vgg11_cifar = _vgg("vgg11_cifar", 11)
vgg13_cifar = _vgg("vgg13_cifar", 13)
vgg16_cifar = _vgg("vgg16_cifar", 16)
vgg19_cifar = _vgg("vgg19_cifar", 19)
vgg11_bn_cifar = _vgg("vgg11_bn_cifar", 11, batch_norm=True)
vgg13_bn_cifar = _vgg("vgg13_bn_cifar", 13, batch_norm=True)
vgg16_bn_cifar = _vgg("vgg16_bn_cifar", 16, batch_norm=True)
vgg19_bn_cifar = _vgg("vgg19_bn_cifar", 19, batch_norm=True)
