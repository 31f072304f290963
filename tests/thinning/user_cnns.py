"""Convolutional architectures as users write them, tiny: each function returns (model, example inputs)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

IMAGE = (2, 3, 12, 16)


def image(*shape):
    """Example inputs of a shape."""
    return (torch.randn(shape or IMAGE),)


def conv_bn(i, o, k=3, s=1, groups=1, act=nn.ReLU):
    """Convolution, norm, activation."""
    return nn.Sequential(
        nn.Conv2d(i, o, k, s, k // 2, groups=groups, bias=False),
        nn.BatchNorm2d(o),
        act(inplace=True) if act is nn.ReLU else act(),
    )


class Head(nn.Module):
    """Global pooling and a classifier."""

    def __init__(self, width, classes=3):
        super().__init__()
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of an image."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, x):
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)


def convnext():
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 4),
        LayerNorm2d(8),
        ConvNeXtBlock(8),
        ConvNeXtBlock(8),
        LayerNorm2d(8),
        nn.Conv2d(8, 12, 2, 2),
        ConvNeXtBlock(12),
        Head(12),
    ), image()


class SqueezeExcite(nn.Module):
    def __init__(self, width, reduced, act=F.silu, gate=torch.sigmoid):
        super().__init__()
        self.reduce, self.expand, self.act, self.gate = (
            nn.Conv2d(width, reduced, 1),
            nn.Conv2d(reduced, width, 1),
            act,
            gate,
        )

    def forward(self, x):
        s = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.expand(self.act(self.reduce(s))))


class InvertedResidual(nn.Module):
    def __init__(self, i, o, hidden, k=3, s=1, se=False, act=nn.ReLU6):
        super().__init__()
        self.use_res = s == 1 and i == o
        layers = [conv_bn(i, hidden, 1, act=act), conv_bn(hidden, hidden, k, s, groups=hidden, act=act)]
        layers += [SqueezeExcite(hidden, max(2, hidden // 4))] if se else []
        self.conv = nn.Sequential(*layers, nn.Conv2d(hidden, o, 1, bias=False), nn.BatchNorm2d(o))

    def forward(self, x):
        return x + self.conv(x) if self.use_res else self.conv(x)


def mobilenet_v2():
    return nn.Sequential(
        conv_bn(3, 8, 3, 2),
        InvertedResidual(8, 8, 16),
        InvertedResidual(8, 12, 16, s=2),
        InvertedResidual(12, 12, 24),
        conv_bn(12, 20, 1),
        Head(20),
    ), image()


def mobilenet_v3():
    return nn.Sequential(
        conv_bn(3, 8, 3, 2, act=nn.Hardswish),
        InvertedResidual(8, 8, 16, 5, se=True, act=nn.Hardswish),
        InvertedResidual(8, 12, 24, se=True),
        Head(12),
    ), image()


def efficientnet():
    return nn.Sequential(
        conv_bn(3, 8, 3, 2, act=nn.SiLU),
        InvertedResidual(8, 8, 16, se=True, act=nn.SiLU),
        InvertedResidual(8, 8, 24, 5, se=True, act=nn.SiLU),
        Head(8),
    ), image()


def channel_shuffle(x, groups):
    """As in torchvision."""
    n, c, h, w = x.size()
    x = x.view(n, groups, c // groups, h, w)
    return torch.transpose(x, 1, 2).contiguous().view(n, c, h, w)


class ShuffleUnit(nn.Module):
    def __init__(self, width):
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            conv_bn(half, half, 1),
            nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            conv_bn(half, half, 1),
        )

    def forward(self, x):
        a, b = x.chunk(2, dim=1)
        return channel_shuffle(torch.cat((a, self.branch(b)), 1), 2)


def shufflenet():
    return nn.Sequential(conv_bn(3, 8), ShuffleUnit(8), ShuffleUnit(8), conv_bn(8, 12, 1), Head(12)), image()


class ShuffleNetV1Unit(nn.Module):
    def __init__(self, width, groups):
        super().__init__()
        self.groups = groups
        self.a, self.b, self.c = (
            conv_bn(width, width, 1, groups=groups),
            conv_bn(width, width, groups=width),
            nn.Conv2d(width, width, 1, groups=groups),
        )

    def forward(self, x):
        return F.relu(x + self.c(self.b(channel_shuffle(self.a(x), self.groups))))


def shufflenet_v1():
    return nn.Sequential(conv_bn(3, 12), ShuffleNetV1Unit(12, 3), nn.ChannelShuffle(3), Head(12)), image()


class DenseLayer(nn.Module):
    def __init__(self, i, growth):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(i), nn.Conv2d(i, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y)))], 1)


def densenet():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1),
        DenseLayer(8, 4),
        DenseLayer(12, 4),
        DenseLayer(16, 4),
        nn.BatchNorm2d(20),
        nn.ReLU(),
        nn.Conv2d(20, 10, 1),
        nn.AvgPool2d(2),
        DenseLayer(10, 4),
        Head(14),
    ), image()


class Inception(nn.Module):
    def __init__(self, i):
        super().__init__()
        self.a, self.b = conv_bn(i, 6, 1), nn.Sequential(conv_bn(i, 4, 1), conv_bn(4, 8))
        self.c, self.pool, self.d = conv_bn(i, 5, 5), nn.MaxPool2d(3, 1, 1), conv_bn(i, 3, 1)

    def forward(self, x):
        return torch.cat([self.a(x), self.b(x), self.c(x), self.d(self.pool(x))], dim=1)


def inception():
    return nn.Sequential(conv_bn(3, 8), Inception(8), Inception(22), Head(22)), image()


class UNet(nn.Module):
    def __init__(self, resize=False):
        super().__init__()
        self.d1, self.d2, self.d3 = conv_bn(3, 8), conv_bn(8, 12), conv_bn(12, 16)
        self.up2, self.up1 = nn.ConvTranspose2d(16, 12, 2, 2), nn.ConvTranspose2d(12, 8, 2, 2)
        self.u2, self.u1, self.out = conv_bn(24, 12), conv_bn(16, 8), nn.Conv2d(8, 2, 1)
        self.resize = resize

    def forward(self, x):
        a = self.d1(x)
        b = self.d2(F.max_pool2d(a, 2))
        c = self.d3(F.max_pool2d(b, 2))
        y = self.u2(torch.cat([self.up2(c), b], 1))
        y = self.up1(y)
        y = F.interpolate(y, size=a.shape[2:], mode="bilinear") if self.resize else y
        return self.out(self.u1(torch.cat([y, a], 1)))


def unet():
    return UNet(), image()


def unet_resize():
    return UNet(True), image()


class Bottleneck(nn.Module):
    def __init__(self, width, inner, groups):
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(width, inner, 1),
            conv_bn(inner, inner, groups=groups),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x):
        return F.relu(x + self.body(x), inplace=True)


def resnext():
    return nn.Sequential(conv_bn(3, 8), Bottleneck(8, 16, 4), Bottleneck(8, 16, 4), Head(8)), image()
