"""Tiny models with coupled channels, for the tests of group-aware pruning."""

from __future__ import annotations

import torch
from torch import nn

from distiller_ng.graph.dependency import DependencyGraph


class Residual(nn.Module):
    """Two convolutions whose outputs are added, a third that reads the sum; input [N, 2, 6, 6]."""

    def __init__(self, width=4):
        super().__init__()
        self.a = nn.Conv2d(2, width, 1, bias=True)
        self.bn = nn.BatchNorm2d(width)
        self.b = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.c = nn.Conv2d(width, 6, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        x = self.bn(self.a(x)).relu()
        x = (x + self.b(x)).relu()
        return self.fc(self.c(x).relu().mean(dim=(2, 3)))


class Concat(nn.Module):
    """Two branches side by side, one convolution that reads both; input [N, 2, 6, 6]."""

    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(2, 4, 1)
        self.right = nn.Conv2d(2, 8, 3, padding=1)
        self.after = nn.Conv2d(12, 8, 3, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.cat([self.left(x).relu(), self.right(x).relu()], dim=1)
        return self.fc(self.after(x).relu().mean(dim=(2, 3)))


class Separable(nn.Module):
    """Depthwise and pointwise convolutions, as in MobileNet; input [N, 3, 12, 12]."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(*(self.block(*sizes) for sizes in ((16, 32), (32, 32), (32, 64))))
        self.fc = nn.Linear(64, 5)

    @staticmethod
    def block(before, after):
        depthwise = nn.Conv2d(before, before, 3, padding=1, groups=before, bias=False)
        norms = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        pointwise = nn.Conv2d(before, after, 1, bias=False)
        return nn.Sequential(depthwise, norms[0], nn.ReLU(), pointwise, norms[1], nn.ReLU())

    def forward(self, x):
        return self.fc(self.blocks(self.first(x)).mean(dim=(2, 3)))


def graph_of(model, *shape):
    """The dependency graph of a model for inputs of one shape."""
    return DependencyGraph.trace(model.eval(), torch.zeros(shape))


def filter_mask(weight, *gone, dim=0):
    """A mask of a weight's shape that drops the structures ``gone`` along ``dim``."""
    mask = torch.ones_like(weight)
    return mask.index_fill_(dim, torch.tensor(gone, dtype=torch.long), 0)
