"""Random networks out of everything the dependency graph follows.

A network is a list of numbers: each picks one of the blocks that fit what the blocks before it made, an image
``("image", channels, sizes...)``, a sequence ``("sequence", width, positions)`` or a vector ``("vector", width)``.
"""

from __future__ import annotations

import random

import random_blocks as blocks
import random_layers as layers
import torch
from random_sequences import SEQUENCE_BLOCKS
from torch import nn

IMAGE_BLOCKS = (
    *(blocks.ConvNorm, blocks.ConvNorm, blocks.GroupedConv, blocks.Depthwise, blocks.UpConv, blocks.Residual),
    *(blocks.SqueezeExcite, blocks.Branches, blocks.Chunked, blocks.SplitByAttribute, blocks.Sliced, blocks.Shuffle),
    *(blocks.PixelShuffle, blocks.Pool, blocks.Scaled, blocks.CalledTwice, layers.Tied, layers.FlattenLinear),
    *(layers.PooledVector, layers.ToSequence, blocks.NormActivation, blocks.Gated, layers.Masked),
)
VECTOR_BLOCKS = (layers.Dense, layers.DenseResidual, layers.DenseGated, layers.DenseConcat, layers.ToImage)


class RandomNet(nn.Module):
    """The blocks ``picks`` select, and a last layer for each thing there is to return."""

    def __init__(self, start: str, picks: list[int], seed: int) -> None:
        super().__init__()
        rng = random.Random(seed)
        self.kind = start
        if start == "tokens":
            width = rng.choice((4, 6, 8))
            self.stem, spec = nn.Embedding(9, width), ("sequence", width, 5)
            self.example = torch.randint(0, 9, (2, 5))
        elif start == "vector":
            self.stem, spec = nn.Linear(5, 8), ("vector", 8)
            self.example = torch.randn(3, 5)
        else:
            rank = int(start[0])
            sizes = {1: (12,), 2: (8, 6), 3: (4, 6, 4)}[rank]
            self.stem, spec = blocks.conv(rank)(3, 8, 3, padding=1, bias=rng.random() < 0.5), ("image", 8, *sizes)
            self.example = torch.randn(2, 3, *sizes)
        self.blocks = nn.ModuleList()
        for pick in picks:
            choices = [b for b in self.choices(spec) if b.fits(spec)]
            if not choices:  # pooled down to a single place
                break
            block = choices[pick % len(choices)](spec, rng)
            spec = block.out
            self.blocks.append(block)
        self.head = nn.Identity() if spec[0] == "image" else nn.Linear(spec[1], 3)
        if spec[0] == "image":
            self.head = blocks.conv(len(spec) - 2)(spec[1], 3, 1)
        self.extra = rng.random() < 0.2

    @staticmethod
    def choices(spec):
        return {"image": IMAGE_BLOCKS, "sequence": SEQUENCE_BLOCKS, "vector": VECTOR_BLOCKS}[spec[0]]

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        y = self.head(x)
        return {"out": y, "mean": y.mean()} if self.extra else y
