"""Blocks of random networks that work on images of one, two or three dimensions, and on vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def conv(rank):
    return {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank]


def rank_of(spec):
    return len(spec) - 2


class Block(nn.Module):
    """``spec`` -> ``self.out``."""

    @classmethod
    def fits(cls, spec):
        return spec[1] <= 24


class ChannelNorm(nn.Module):
    """LayerNorm over dimension 1."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


def norm(rng, rank, width, easy=False):
    names = ["none", "batch", "batch", "group", "instance", "plain"] + ([] if easy else ["layer"])
    kind = rng.choice([name for name in names if rank or name != "instance"])
    if kind == "group" and width % 2 == 0:
        return nn.GroupNorm(rng.choice([2, width // 2, width]), width)
    if kind == "instance":
        return {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[rank](
            width, affine=rng.random() < 0.7
        )
    if kind == "layer":
        return ChannelNorm(width)
    if kind in ("batch", "plain"):
        return {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[rank](
            width, affine=kind == "batch"
        )
    return nn.Identity()


def activation(rng, width):
    kinds = [
        nn.ReLU,
        lambda: nn.ReLU(inplace=True),
        nn.GELU,
        nn.SiLU,
        nn.Hardswish,
        nn.Sigmoid,
        nn.Softplus,
        nn.Tanh,
        nn.ELU,
    ]
    return rng.choice(
        [*kinds, nn.Identity, lambda: nn.PReLU(width), nn.PReLU, lambda: nn.Dropout(0.1), nn.ReLU6, nn.Hardsigmoid]
    )()


class ConvNorm(Block):
    def __init__(self, spec, rng, width=None, groups=1, easy=False):
        super().__init__()
        rank = rank_of(spec)
        width = width or rng.choice((4, 6, 8, 12))
        self.conv = conv(rank)(
            spec[1], width, rng.choice((1, 3)), padding="same", groups=groups, bias=rng.random() < 0.5
        )
        self.norm, self.act = norm(rng, rank, width, easy), activation(rng, width)
        self.out = ("image", width, *spec[2:])

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))


class GroupedConv(ConvNorm):
    @classmethod
    def fits(cls, spec):
        return super().fits(spec) and (spec[1] % 2 == 0 or spec[1] % 3 == 0)

    def __init__(self, spec, rng):
        groups = rng.choice([g for g in (2, 3, 4) if spec[1] % g == 0])
        super().__init__(spec, rng, width=groups * rng.choice((1, 2, 3)), groups=groups)


class Depthwise(ConvNorm):
    def __init__(self, spec, rng):
        super().__init__(spec, rng, width=spec[1] * rng.choice((1, 1, 2)), groups=spec[1])


class UpConv(Block):
    @classmethod
    def fits(cls, spec):
        return spec[1] <= 24 and all(s <= 16 for s in spec[2:])

    def __init__(self, spec, rng):
        super().__init__()
        kind = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[rank_of(spec)]
        groups = 2 if spec[1] % 2 == 0 and rng.random() < 0.4 else 1
        groups = spec[1] if rng.random() < 0.2 else groups
        width = groups * rng.choice((1, 2, 3)) if groups > 1 else rng.choice((4, 6))
        self.up = kind(spec[1], width, 2, stride=2, groups=groups, bias=rng.random() < 0.5)
        self.act = activation(rng, width)
        self.out = ("image", width, *(2 * s for s in spec[2:]))

    def forward(self, x):
        return self.act(self.up(x))


class NormActivation(Block):
    def __init__(self, spec, rng):
        super().__init__()
        self.norm, self.act, self.out = norm(rng, rank_of(spec), spec[1]), activation(rng, spec[1]), spec

    def forward(self, x):
        return self.act(self.norm(x))


class Residual(Block):
    def __init__(self, spec, rng):
        super().__init__()
        self.a, self.b = ConvNorm(spec, rng), None
        self.b = ConvNorm(self.a.out, rng, width=spec[1])
        self.product, self.out = rng.random() < 0.3, spec

    def forward(self, x):
        y = self.b(self.a(x))
        return x * y if self.product else F.relu(x + y)


class Gated(Block):
    """A gate of one channel for all, or one for each."""

    def __init__(self, spec, rng):
        super().__init__()
        self.gate = ConvNorm(spec, rng, width=rng.choice((1, spec[1])), easy=True)
        self.out = spec

    def forward(self, x):
        return x * torch.sigmoid(self.gate(x))


class SqueezeExcite(Block):
    def __init__(self, spec, rng):
        super().__init__()
        self.a, self.b, self.out, self.linear = nn.Linear(spec[1], 3), nn.Linear(3, spec[1]), spec, rng.random() < 0.5

    def forward(self, x):
        s = torch.sigmoid(self.b(F.silu(self.a(x.flatten(2).mean(-1)))))
        if self.linear:
            return x * s.view(x.shape[0], x.shape[1], *[1] * (x.dim() - 2))
        return x * s.reshape(*s.shape, *[1] * (x.dim() - 2)).expand_as(x)


class Branches(Block):
    def __init__(self, spec, rng):
        super().__init__()
        self.branches = nn.ModuleList([ConvNorm(spec, rng) for _ in range(rng.choice((1, 2)))])
        self.keep = rng.random() < 0.5
        self.out = ("image", sum(b.out[1] for b in self.branches) + self.keep * spec[1], *spec[2:])

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches] + ([x] if self.keep else []), dim=1)


class Even(Block):
    @classmethod
    def fits(cls, spec):
        return spec[1] % 2 == 0 and 4 <= spec[1] <= 24


class Chunked(Even):
    def __init__(self, spec, rng):
        super().__init__()
        half = ("image", spec[1] // 2, *spec[2:])
        self.one, self.how = ConvNorm(half, rng), rng.randrange(3)
        self.out = ("image", self.one.out[1] + spec[1] // 2, *spec[2:])

    def forward(self, x):
        if self.how == 0:
            a, b = x.chunk(2, 1)
        elif self.how == 1:
            a, b = torch.split(x, x.shape[1] // 2, dim=1)
        else:
            a, b = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
        return torch.cat([self.one(b), a], 1)


class SplitByAttribute(Even):
    def __init__(self, spec, rng):
        super().__init__()
        self.first = rng.choice((1, 2, spec[1] // 2))
        self.rest = spec[1] - self.first
        self.one = ConvNorm(("image", self.first, *spec[2:]), rng, width=self.first)
        self.out = spec

    def forward(self, x):
        a, b = x.split([self.first, self.rest], dim=1)
        return torch.cat([self.one(a), b], 1)


class Sliced(Even):
    def __init__(self, spec, rng):
        super().__init__()
        self.count, self.how = rng.choice((2, 3)), rng.randrange(4)
        width = {0: self.count, 1: spec[1] - 1, 2: 2, 3: spec[1]}[self.how]
        self.out = ("image", width, *spec[2:])

    def forward(self, x):
        if self.how == 0:
            return x[:, : self.count]
        if self.how == 1:
            return x[:, 1:]
        return (
            torch.stack([x[:, 0], x[:, -1]], 1)
            if self.how == 2
            else x[..., 1:].flip(1).contiguous().new_tensor(0.0) + x
        )


class Shuffle(Even):
    def __init__(self, spec, rng):
        super().__init__()
        self.groups, self.how, self.out = 2, rng.randrange(3), spec

    def forward(self, x):
        if self.how == 0:
            return F.channel_shuffle(x, self.groups)
        n, c, *rest = x.shape
        c = -1 if self.how == 1 else c // self.groups
        return x.view(n, self.groups, c, *rest).transpose(1, 2).reshape(n, -1, *rest)


class PixelShuffle(Block):
    @classmethod
    def fits(cls, spec):
        return rank_of(spec) == 2 and spec[1] % 4 == 0 and spec[1] > 4

    def __init__(self, spec, rng):
        super().__init__()
        self.back = rng.random() < 0.3
        self.out = spec if self.back else ("image", spec[1] // 4, 2 * spec[2], 2 * spec[3])

    def forward(self, x):
        x = F.pixel_shuffle(x, 2)
        return F.pixel_unshuffle(x, 2) if self.back else x


class Pool(Block):
    @classmethod
    def fits(cls, spec):
        return all(s >= 4 and s % 2 == 0 for s in spec[2:])

    def __init__(self, spec, rng):
        super().__init__()
        rank = rank_of(spec)
        kinds = {1: (nn.MaxPool1d, nn.AvgPool1d), 2: (nn.MaxPool2d, nn.AvgPool2d), 3: (nn.MaxPool3d, nn.AvgPool3d)}
        self.pool, self.up = rng.choice(kinds[rank])(2), rng.random() < 0.3
        self.out = spec if self.up else (*spec[:2], *(s // 2 for s in spec[2:]))

    def forward(self, x):
        return F.interpolate(self.pool(x), scale_factor=2) if self.up else self.pool(x)


class Scaled(Block):
    def __init__(self, spec, rng):
        super().__init__()
        shape = rng.choice([(spec[1], *[1] * rank_of(spec)), (1, spec[1], *[1] * rank_of(spec)), (1,)])
        self.scale, self.out = nn.Parameter(torch.rand(shape) + 0.5), spec
        self.register_buffer("shift", torch.rand(shape) if rng.random() < 0.5 else torch.zeros(1))

    def forward(self, x):
        return x * self.scale + self.shift


class CalledTwice(Block):
    def __init__(self, spec, rng):
        super().__init__()
        self.one, self.out = ConvNorm(spec, rng, width=spec[1]), spec

    def forward(self, x):
        return self.one(self.one(x)) + x
