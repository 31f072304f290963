"""VGG networks for 224 x 224 images, with torchvision's module names (layer 5).

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

__all__ = ["VGG", "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn"]


class VGG(nn.Module):
    """features.{n}, avgpool to 7 x 7, and classifier with linear layers 0, 3 and 6.

    ``depth`` is 11, 13, 16 or 19. ``[N, C, H, W]`` becomes logits ``[N, num_classes]``. VGG-16 has 138,357,544
    parameters, of which classifier.0 (25,088 -> 4,096) has 102,764,544.
    """

    def __init__(
        self,
        depth: int = 16,
        *,
        batch_norm: bool = False,
        num_classes: int = 1000,
        in_channels: int = 3,
        input_size: ImageSize = 224,
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels, input_size=input_size)
        sizer = LayerSizer(in_channels, input_size)
        self.features = vgg_features(sizer, depth=depth, batch_norm=batch_norm)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, num_classes),
        )
        he_init_(self)
        for module in self.classifier:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        x = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return x


def _vgg(name: str, depth: int, *, batch_norm: bool = False) -> Architecture:
    return architecture(name, "imagenet", partial(VGG, depth, batch_norm=batch_norm))


vgg11 = _vgg("vgg11", 11)
vgg13 = _vgg("vgg13", 13)
vgg16 = _vgg("vgg16", 16)
vgg19 = _vgg("vgg19", 19)
vgg11_bn = _vgg("vgg11_bn", 11, batch_norm=True)
vgg13_bn = _vgg("vgg13_bn", 13, batch_norm=True)
vgg16_bn = _vgg("vgg16_bn", 16, batch_norm=True)
vgg19_bn = _vgg("vgg19_bn", 19, batch_norm=True)
