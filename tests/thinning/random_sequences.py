"""Blocks of random networks that work on sequences: (batch, positions, width)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from random_blocks import Block, activation
from torch import nn


class Project(Block):
    def __init__(self, spec, rng):
        super().__init__()
        width = rng.choice((4, 6, 8))
        self.fc, self.act, self.out = nn.Linear(spec[1], width), activation(rng, 1), ("sequence", width, spec[2])

    def forward(self, x):
        return self.act(self.fc(x))


class Feedforward(Block):
    def __init__(self, spec, rng):
        super().__init__()
        self.norm = nn.LayerNorm(spec[1]) if rng.random() < 0.5 else nn.Identity()
        self.a, self.b, self.how, self.out = nn.Linear(spec[1], 12), nn.Linear(12, spec[1]), rng.randrange(3), spec
        self.gate = nn.Linear(spec[1], 12) if self.how == 1 else None
        if self.how == 2:
            self.b = nn.Linear(6, spec[1])

    def forward(self, x):
        y = self.a(self.norm(x))
        if self.how == 2:
            a, b = y.chunk(2, -1)
            y = a * F.gelu(b)
        else:
            y = F.gelu(y) if self.gate is None else F.silu(y) * self.gate(self.norm(x))
        return x + self.b(y)


class Attention(Block):
    @classmethod
    def fits(cls, spec):
        return spec[1] % 2 == 0

    def __init__(self, spec, rng):
        super().__init__()
        width = spec[1]
        self.heads = 4 if width % 4 == 0 and rng.random() < 0.5 else 2
        self.size = width // self.heads
        self.norm = nn.LayerNorm(width) if rng.random() < 0.5 else nn.Identity()
        self.how, self.out, self.residual = rng.randrange(5), spec, rng.random() < 0.7
        if self.how == 0:
            self.attn = nn.MultiheadAttention(width, self.heads, batch_first=True, bias=rng.random() < 0.5)
        elif self.how == 1:
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        elif self.how == 2:
            self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        elif self.how == 3:
            self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
            self.scale = nn.Parameter(torch.rand(self.heads, 1, 1))
        else:
            self.attn = nn.MultiheadAttention(width, self.heads, kdim=width, vdim=width, batch_first=False)

    def forward(self, x):
        y = self.attend(self.norm(x))
        return x + y if self.residual else y

    def attend(self, x):
        b, n, _ = x.shape
        if self.how == 0:
            return self.attn(x, x, x)[0]
        if self.how == 4:
            x = x.transpose(0, 1)
            return self.attn(x, x.flip(0), x.flip(0), need_weights=False)[0].transpose(0, 1)
        if self.how == 1:
            q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            if self.how == 2:
                q, k, v = (
                    layer(x).view(b, n, self.heads, self.size).transpose(1, 2) for layer in (self.q, self.k, self.v)
                )
                scores = q @ k.mT * self.size**-0.5
            else:
                q = self.q(x).view(b, n, -1, self.size).transpose(1, 2)
                k, v = self.kv(x).view(b, n, 2, -1, self.size).permute(2, 0, 3, 1, 4).unbind(0)
                scores = torch.einsum("bhid,bhjd->bhij", q, k) * self.scale
            y = scores.softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, n, -1))


class Recurrent(Block):
    def __init__(self, spec, rng):
        super().__init__()
        kind = rng.choice((nn.LSTM, nn.GRU, nn.RNN))
        two, layers = rng.random() < 0.3, rng.choice((1, 2))
        self.rnn = kind(spec[1], 5, layers, batch_first=True, bidirectional=two, bias=rng.random() < 0.8)
        self.out = ("sequence", 10 if two else 5, spec[2])

    def forward(self, x):
        return self.rnn(x)[0]


class Positions(Block):
    """A parameter for each position, a token in front."""

    def __init__(self, spec, rng):
        super().__init__()
        self.token, self.pos = (
            nn.Parameter(torch.randn(1, 1, spec[1])),
            nn.Parameter(torch.randn(1, spec[2] + 1, spec[1])),
        )
        self.out = ("sequence", spec[1], spec[2] + 1)

    def forward(self, x):
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos


class Mixing(Block):
    def __init__(self, spec, rng):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(spec[2], 6), nn.Linear(6, spec[2]), spec

    def forward(self, x):
        return x + self.b(F.gelu(self.a(x.transpose(1, 2)))).transpose(1, 2)


class Convolved(Block):
    def __init__(self, spec, rng):
        super().__init__()
        self.conv, self.out = nn.Conv1d(spec[1], 6, 3, padding=1), ("sequence", 6, spec[2])

    def forward(self, x):
        return self.conv(x.permute(0, 2, 1)).permute(0, 2, 1).relu()


class RMSNorm(Block):
    def __init__(self, spec, rng):
        super().__init__()
        self.weight, self.out = nn.Parameter(torch.ones(spec[1])), spec

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


class Summary(Block):
    def __init__(self, spec, rng):
        super().__init__()
        self.how, self.out = rng.randrange(3), ("vector", spec[1])

    def forward(self, x):
        return x.mean(1) if self.how == 0 else x[:, 0] if self.how == 1 else x.amax(1)


SEQUENCE_BLOCKS = (
    Project,
    Feedforward,
    Attention,
    Attention,
    Recurrent,
    Positions,
    Mixing,
    Convolved,
    RMSNorm,
    Summary,
)
