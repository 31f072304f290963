"""Networks for the structural benchmarks: one of each kind of connection."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_ng.models import create_model


def conv(inputs: int, outputs: int, size: int = 3, **more: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False, **more), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class DenseNet(nn.Module):
    """Three blocks of six layers, each of which reads all before it."""

    def __init__(self, growth: int = 12) -> None:
        super().__init__()
        width = 24
        self.stem = conv(3, width)
        self.blocks, self.transitions = nn.ModuleList(), nn.ModuleList()
        for _ in range(3):
            layers = nn.ModuleList()
            for _ in range(6):
                layers.append(nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, growth, 3, padding=1)))
                width += growth
            self.blocks.append(layers)
            self.transitions.append(conv(width, width // 2, 1))
            width //= 2
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layers, transition in zip(self.blocks, self.transitions, strict=True):
            for layer in layers:
                x = torch.cat([x, layer(x)], 1)
            x = F.avg_pool2d(transition(x), 2)
        return self.fc(x.mean((2, 3)))


class Inception(nn.Module):
    """Four modules of four branches that are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 32)
        self.branches = nn.ModuleList()
        width = 32
        for _ in range(4):
            self.branches.append(
                nn.ModuleList(
                    [
                        conv(width, 32, 1),
                        nn.Sequential(conv(width, 24, 1), conv(24, 48, 3)),
                        nn.Sequential(conv(width, 8, 1), conv(8, 16, 5)),
                        nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(width, 16, 1)),
                    ]
                )
            )
            width = 112
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branches in self.branches:
            x = torch.cat([branch(x) for branch in branches], 1)
        return self.fc(x.mean((2, 3)))


class UNet(nn.Module):
    """Transposed convolutions and concatenated shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = conv(3, 24), conv(24, 48)
        self.middle = conv(48, 96)
        self.up2 = nn.ConvTranspose2d(96, 48, 2, stride=2)
        self.join2 = conv(96, 48)
        self.up1 = nn.ConvTranspose2d(48, 24, 2, stride=2)
        self.join1 = conv(48, 24)
        self.head = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        x = self.middle(F.max_pool2d(second, 2))
        x = self.join2(torch.cat([self.up2(x), second], 1))
        return self.head(self.join1(torch.cat([self.up1(x), first], 1)))


class Block(nn.Module):
    """Pre-norm attention written with a packed projection, as most vision transformers are."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, count, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, -1))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Six blocks of width 192 on patches of 4 x 4."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 192, 4, stride=4)
        self.cls, self.position = nn.Parameter(torch.zeros(1, 1, 192)), nn.Parameter(torch.randn(1, 65, 192) * 0.02)
        self.blocks = nn.Sequential(*(Block(192, 6) for _ in range(6)))
        self.norm, self.head = nn.LayerNorm(192), nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class Recurrent(nn.Module):
    """Embedding, two bidirectional LSTM layers, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(500, 64)
        self.lstm = nn.LSTM(64, 96, 2, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(self.embed(x))[0].mean(1))


def images(batch: int, size: int = 32) -> Tensor:
    return torch.randn(batch, 3, size, size)


def words(batch: int) -> Tensor:
    return torch.randint(0, 500, (batch, 24))


NETWORKS = {
    "resnet20": (lambda: create_model(False, "cifar10", "resnet20_cifar"), images),
    "resnet56": (lambda: create_model(False, "cifar10", "resnet56_cifar"), images),
    "mobilenet_v1": (lambda: create_model(False, "imagenet", "mobilenet"), lambda batch: images(batch, 224)),
    "vgg16": (lambda: create_model(False, "cifar10", "vgg16_cifar"), images),
    "densenet": (DenseNet, images),
    "inception": (Inception, images),
    "unet": (UNet, images),
    "vit": (ViT, images),
    "lstm": (Recurrent, words),
}
