"""AlexNet for 224 x 224 images, with torchvision's shapes and module names (layer 5).

Alex Krizhevsky, "One weird trick for parallelizing convolutional neural networks", https://arxiv.org/abs/1404.5997.
"""

from __future__ import annotations

from torch import Tensor, nn

from distiller_ng.models._sizing import ImageSize, LayerSizer, check_sizes
from distiller_ng.models._zoo import architecture

__all__ = ["AlexNet", "alexnet"]


class AlexNet(nn.Module):
    """Convolutions features.{0, 3, 6, 8, 10}, avgpool to 6 x 6, linear layers classifier.{1, 4, 6}.

    ``[N, C, H, W]`` becomes logits ``[N, num_classes]``. 61,100,840 parameters on 3 x 224 x 224 and 1000 classes.
    """

    def __init__(self, *, num_classes: int = 1000, in_channels: int = 3, input_size: ImageSize = 224) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels, input_size=input_size)
        sizer = LayerSizer(in_channels, input_size)
        self.features = nn.Sequential(
            sizer.conv(64, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            sizer.max_pool(3, stride=2),
            sizer.conv(192, 5, padding=2),
            nn.ReLU(inplace=True),
            sizer.max_pool(3, stride=2),
            sizer.conv(384, 3, padding=1),
            nn.ReLU(inplace=True),
            sizer.conv(256, 3, padding=1),
            nn.ReLU(inplace=True),
            sizer.conv(256, 3, padding=1),
            nn.ReLU(inplace=True),
            sizer.max_pool(3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` to logits ``[N, num_classes]``."""
        x = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return x


alexnet = architecture("alexnet", "imagenet", AlexNet)
