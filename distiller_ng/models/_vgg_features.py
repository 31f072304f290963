"""The convolutional part that all VGG networks share (layer 5).

Karen Simonyan, Andrew Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", table 1,
https://arxiv.org/abs/1409.1556.
"""

from __future__ import annotations

from torch import nn

from distiller_ng.models._sizing import LayerSizer

__all__ = ["vgg_features"]

# Convolutions in each of the five stages, by the paper's letter: A is VGG-11, B 13, D 16, E 19.
_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_WIDTHS = (64, 128, 256, 512, 512)


def vgg_features(sizer: LayerSizer, *, depth: int, batch_norm: bool) -> nn.Sequential:
    """Five stages of 3 x 3 convolutions, each ending in a 2 x 2 max pooling.

    Modules are numbered: in VGG-11, 0 conv, 1 ReLU, 2 pooling, 3 conv, ...; batch norm takes a number after each conv.
    """
    layers: list[nn.Module] = []
    for width, convolutions in zip(_WIDTHS, _STAGES[depth], strict=True):
        for _ in range(convolutions):
            layers.append(sizer.conv(width, 3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU(inplace=True))
        layers.append(sizer.max_pool(2))
    return nn.Sequential(*layers)
