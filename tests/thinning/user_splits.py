"""Architectures that split and slice channels, as users write them, tiny: each function returns (model, example inputs)."""

from __future__ import annotations

import torch
from torch import nn
from user_cnns import Head, conv_bn, image


class C2f(nn.Module):
    """YOLOv8's block: the convolution's output is split by self.c."""

    def __init__(self, c1, c2, n=2, split=False, e=0.5):
        super().__init__()
        self.c = int(c2 * e)
        self.cv1, self.cv2 = conv_bn(c1, 2 * self.c, 1, act=nn.SiLU), conv_bn((2 + n) * self.c, c2, 1, act=nn.SiLU)
        self.m = nn.ModuleList(nn.Sequential(conv_bn(self.c, self.c), conv_bn(self.c, self.c)) for _ in range(n))
        self.by_split = split

    def forward(self, x):
        y = list(self.cv1(x).split((self.c, self.c), 1) if self.by_split else self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


def yolo_chunk():
    return nn.Sequential(conv_bn(3, 8), C2f(8, 8), C2f(8, 12), Head(12)), image()


def yolo_split():
    return nn.Sequential(conv_bn(3, 8), C2f(8, 8, split=True), C2f(8, 12, split=True), Head(12)), image()


class PartialConv(nn.Module):
    def __init__(self, dim, n_div=4, forward="split_cat"):
        super().__init__()
        self.dim_conv3, self.dim_untouched = dim // n_div, dim - dim // n_div
        self.partial_conv3 = nn.Conv2d(self.dim_conv3, self.dim_conv3, 3, 1, 1, bias=False)
        self.kind = forward

    def forward(self, x):
        if self.kind == "slicing":
            x = x.clone()
            x[:, : self.dim_conv3, :, :] = self.partial_conv3(x[:, : self.dim_conv3, :, :])
            return x
        x1, x2 = torch.split(x, [self.dim_conv3, self.dim_untouched], dim=1)
        return torch.cat((self.partial_conv3(x1), x2), 1)


class FasterBlock(nn.Module):
    def __init__(self, dim, kind):
        super().__init__()
        self.spatial_mixing = PartialConv(dim, forward=kind)
        self.mlp = nn.Sequential(conv_bn(dim, 2 * dim, 1), nn.Conv2d(2 * dim, dim, 1, bias=False))

    def forward(self, x):
        return x + self.mlp(self.spatial_mixing(x))


def fasternet():
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), FasterBlock(8, "split_cat"), FasterBlock(8, "split_cat"), Head(8)
    ), image()


def fasternet_slicing():
    return nn.Sequential(nn.Conv2d(3, 8, 4, 4), FasterBlock(8, "slicing"), Head(8)), image()
