"""Blocks of random networks with unusual weights, on images, and those that lead to and work on vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from random_blocks import Block, activation, conv, norm, rank_of
from torch import nn


class Tied(Block):
    def __init__(self, spec, rng):
        super().__init__()
        self.a, self.b = (conv(rank_of(spec))(spec[1], spec[1], 1) for _ in range(2))
        self.b.weight, self.out = self.a.weight, spec

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


class Masked(Block):
    """A weight with a mask buffer and a scale for each filter."""

    def __init__(self, spec, rng):
        super().__init__()
        self.conv, self.out = conv(rank_of(spec))(spec[1], 6, 1), ("image", 6, *spec[2:])
        self.register_buffer("mask", (torch.rand_like(self.conv.weight) > 0.2).float())
        self.scale = nn.Parameter(torch.rand(6, *[1] * (rank_of(spec) + 1)))
        self.call = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[rank_of(spec)]

    def forward(self, x):
        return self.call(x, self.conv.weight * self.mask * self.scale, self.conv.bias)


class FlattenLinear(Block):
    def __init__(self, spec, rng):
        super().__init__()
        self.size = spec[1]
        for s in spec[2:]:
            self.size *= s
        self.how, self.fc, self.out = rng.randrange(4), nn.Linear(self.size, 6), ("vector", 6)

    def forward(self, x):
        if self.how == 0:
            x = torch.flatten(x, 1)
        elif self.how == 1:
            x = x.contiguous().view(x.size(0), -1)
        elif self.how == 2:
            x = x.reshape(-1, self.size)
        else:
            x = x.transpose(1, 2).flatten(1)
        return self.fc(x)


class PooledVector(Block):
    def __init__(self, spec, rng):
        super().__init__()
        self.how, self.out = rng.randrange(3), ("vector", spec[1])

    def forward(self, x):
        if self.how == 0:
            return x.flatten(2).mean(-1)
        return x.amax(tuple(range(2, x.dim()))) if self.how == 1 else x.flatten(2)[:, :, 1]


class ToSequence(Block):
    @classmethod
    def fits(cls, spec):
        return 4 <= spec[1] <= 16

    def __init__(self, spec, rng):
        super().__init__()
        count = 1
        for s in spec[2:]:
            count *= s
        self.out = ("sequence", spec[1], count)

    def forward(self, x):
        return x.flatten(2).transpose(1, 2)


class Dense(Block):
    def __init__(self, spec, rng):
        super().__init__()
        self.fc, self.norm, self.act = (
            nn.Linear(spec[1], 8, bias=rng.random() < 0.7),
            norm(rng, 0, 8) if rng.random() < 0.5 else nn.Identity(),
            activation(rng, 8),
        )
        self.norm = nn.Identity() if isinstance(self.norm, nn.modules.instancenorm._InstanceNorm) else self.norm
        self.out = ("vector", 8)

    def forward(self, x):
        return self.act(self.norm(self.fc(x)))


class DenseResidual(Block):
    def __init__(self, spec, rng):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(spec[1], 5), nn.Linear(5, spec[1]), spec

    def forward(self, x):
        return x + self.b(self.a(x).relu())


class DenseGated(Block):
    def __init__(self, spec, rng):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(spec[1], 12), nn.Linear(6, 6), ("vector", 6)
        self.how = rng.randrange(2)

    def forward(self, x):
        if self.how:
            return self.b(F.glu(self.a(x)))
        a, b = self.a(x).chunk(2, -1)
        return self.b(a * b.tanh())


class DenseConcat(Block):
    def __init__(self, spec, rng):
        super().__init__()
        self.a, self.out, self.how = nn.Linear(spec[1], 4), ("vector", spec[1] + 4), rng.randrange(2)

    def forward(self, x):
        return torch.cat([self.a(x), x], -1) if self.how else torch.hstack([x, self.a(x).relu()])


class ToImage(Block):
    def __init__(self, spec, rng):
        super().__init__()
        self.width, self.fc, self.how = 4, nn.Linear(spec[1], 24), rng.randrange(2)
        self.out = ("image", 4, 2, 3)

    def forward(self, x):
        x = self.fc(x)
        return x.view(-1, self.width, 2, 3) if self.how else x.reshape(x.shape[0], -1, 2, 3)
