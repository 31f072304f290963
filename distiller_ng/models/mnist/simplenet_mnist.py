"""Two small MNIST networks of two 5 x 5 convolutions (layer 5).

Distiller's simplenet_mnist and simplenet_v2_mnist, descendants of LeNet-5: Yann LeCun et al., "Gradient-Based Learning
Applied to Document Recognition", http://yann.lecun.com/exdb/publis/pdf/lecun-01a.pdf.
"""

from __future__ import annotations

from torch import Tensor, nn

from distiller_ng.models._sizing import ImageSize, LayerSizer, check_sizes
from distiller_ng.models._zoo import architecture

__all__ = ["SimplenetMnist", "SimplenetV2Mnist", "simplenet_mnist", "simplenet_v2_mnist"]


class SimplenetMnist(nn.Module):
    """conv1 relu1 pool1 conv2 relu2 pool2 fc1 relu3 fc2: 430,500 weights, of which fc1 (800 -> 500) has 400,000.

    ``[N, C, H, W]`` becomes logits ``[N, num_classes]``. On 28 x 28 images the maps are 24, 12, 8 and 4 pixels wide.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 1, input_size: ImageSize = 28) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels, input_size=input_size)
        sizer = LayerSizer(in_channels, input_size)
        self.conv1 = sizer.conv(20, 5)
        self.relu1 = nn.ReLU()
        self.pool1 = sizer.max_pool(2)
        self.conv2 = sizer.conv(50, 5)
        self.relu2 = nn.ReLU()
        self.pool2 = sizer.max_pool(2)
        self.fc1 = nn.Linear(sizer.features, 500)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(500, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.relu3(self.fc1(x.flatten(1)))
        x = self.fc2(x)
        return x


class SimplenetV2Mnist(nn.Module):
    """conv1 relu1 pool1 conv2 relu2 pool2 avgpool fc: 26,000 weights, because only a 50 -> 10 layer follows the maps.

    ``[N, C, H, W]`` becomes logits ``[N, num_classes]``.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 1, input_size: ImageSize = 28) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels, input_size=input_size)
        sizer = LayerSizer(in_channels, input_size)
        self.conv1 = sizer.conv(20, 5)
        self.relu1 = nn.ReLU()
        self.pool1 = sizer.max_pool(2)
        self.conv2 = sizer.conv(50, 5)
        self.relu2 = nn.ReLU()
        self.pool2 = sizer.max_pool(2)
        self.avgpool = sizer.average_all(stride=1)
        self.fc = nn.Linear(sizer.features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.fc(self.avgpool(x).flatten(1))
        return x


simplenet_mnist = architecture("simplenet_mnist", "mnist", SimplenetMnist)
simplenet_v2_mnist = architecture("simplenet_v2_mnist", "mnist", SimplenetV2Mnist)
