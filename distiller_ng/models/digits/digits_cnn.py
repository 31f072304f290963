"""A small network for the 8 x 8 digits, with enough redundancy to prune 90 % of it (layer 5)."""

from __future__ import annotations

from torch import Tensor, nn

from distiller_ng.models._sizing import ImageSize, LayerSizer, check_sizes
from distiller_ng.models._zoo import architecture

__all__ = ["DigitsCnn", "digits_cnn"]


class DigitsCnn(nn.Module):
    """conv1 bn1 relu1 conv2 bn2 relu2 pool conv3 bn3 relu3 fc: 65,824 weights on 1 x 8 x 8 images and 10 classes.

    ``[N, C, H, W]`` becomes logits ``[N, num_classes]``. Convolutions are 3 x 3 with padding 1, without bias, and give
    32, 64 and 64 channels; the pooled map is 4 x 4.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 1, input_size: ImageSize = 8) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels, input_size=input_size)
        sizer = LayerSizer(in_channels, input_size)
        self.conv1 = sizer.conv(32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.relu1 = nn.ReLU()
        self.conv2 = sizer.conv(64, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.relu2 = nn.ReLU()
        self.pool = sizer.max_pool(2)
        self.conv3 = sizer.conv(64, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(64)
        self.relu3 = nn.ReLU()
        self.fc = nn.Linear(sizer.features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.pool(self.relu2(self.bn2(self.conv2(x))))
        x = self.relu3(self.bn3(self.conv3(x)))
        x = self.fc(x.flatten(1))
        return x


digits_cnn = architecture("digits_cnn", "digits", DigitsCnn)
