"""A small CIFAR network: two 5 x 5 convolutions and three linear layers (layer 5).

Distiller's simplenet_cifar, which is LeNet-5 on colour images: Yann LeCun et al., "Gradient-Based Learning Applied to
Document Recognition", http://yann.lecun.com/exdb/publis/pdf/lecun-01a.pdf.
"""

from __future__ import annotations

from torch import Tensor, nn

from distiller_ng.models._sizing import ImageSize, LayerSizer, check_sizes
from distiller_ng.models._zoo import architecture

__all__ = ["SimplenetCifar", "simplenet_cifar"]


class SimplenetCifar(nn.Module):
    """conv1 relu_conv1 pool1 conv2 relu_conv2 pool2 fc1 relu_fc1 fc2 relu_fc2 fc3.

    ``[N, C, H, W]`` becomes logits ``[N, num_classes]``. On 3 x 32 x 32 images the layers with weights take 352,800,
    240,000, 48,000, 10,080 and 840 MACs.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3, input_size: ImageSize = 32) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels, input_size=input_size)
        sizer = LayerSizer(in_channels, input_size)
        self.conv1 = sizer.conv(6, 5)
        self.relu_conv1 = nn.ReLU()
        self.pool1 = sizer.max_pool(2)
        self.conv2 = sizer.conv(16, 5)
        self.relu_conv2 = nn.ReLU()
        self.pool2 = sizer.max_pool(2)
        self.fc1 = nn.Linear(sizer.features, 120)
        self.relu_fc1 = nn.ReLU()
        self.fc2 = nn.Linear(120, 84)
        self.relu_fc2 = nn.ReLU()
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        x = self.pool1(self.relu_conv1(self.conv1(x)))
        x = self.pool2(self.relu_conv2(self.conv2(x)))
        x = self.relu_fc1(self.fc1(x.flatten(1)))
        x = self.relu_fc2(self.fc2(x))
        x = self.fc3(x)
        return x


simplenet_cifar = architecture("simplenet_cifar", "cifar10", SimplenetCifar)
