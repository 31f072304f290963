"""Recurrent layers, attention and operators across channels, as users write them, tiny: each function returns (model, example inputs)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from user_odd import image


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.emb, self.rnn = nn.Embedding(11, 6), kind(6, 8, batch_first=True, **options)
        self.hidden, width = 8, 16 if options.get("bidirectional") else options.get("proj_size", 8)
        self.fc = nn.Linear(width, 11)

    def forward(self, tokens):
        y, _ = self.rnn(self.emb(tokens))
        return self.fc(y)


def lstm():
    return Recurrent(nn.LSTM, num_layers=2), (torch.randint(0, 11, (2, 5)),)


def lstm_bidirectional():
    return Recurrent(nn.LSTM, num_layers=2, bidirectional=True), (torch.randint(0, 11, (2, 5)),)


def gru():
    return Recurrent(nn.GRU), (torch.randint(0, 11, (2, 5)),)


def lstm_projected():
    return Recurrent(nn.LSTM, proj_size=4), (torch.randint(0, 11, (2, 5)),)


class StatefulLSTM(nn.Module):
    """Makes its own first state, of self.hidden units, and returns the last one's features."""

    def __init__(self):
        super().__init__()
        self.hidden, self.rnn, self.fc = 8, nn.LSTM(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        state = (x.new_zeros(1, x.shape[1], self.hidden), torch.zeros(1, x.shape[1], self.hidden))
        y, (h, _) = self.rnn(x, state)
        return self.fc(h[-1] + y[-1])


def lstm_with_state():
    return StatefulLSTM(), (torch.randn(5, 2, 4),)


class CellLoop(nn.Module):
    def __init__(self, kind=nn.LSTMCell):
        super().__init__()
        self.cell, self.fc, self.two = kind(4, 8), nn.Linear(8, 2), kind is nn.LSTMCell

    def forward(self, x):
        h = c = torch.zeros(x.shape[0], self.cell.hidden_size)
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], (h, c) if self.two else h)
            h, c = state if self.two else (state, c)
        return self.fc(h)


def lstm_cell():
    return CellLoop(), (torch.randn(2, 3, 4),)


def gru_cell():
    return CellLoop(nn.GRUCell), (torch.randn(2, 3, 4),)


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.inp, self.attn, self.out = (
            nn.Linear(5, 16),
            nn.MultiheadAttention(16, 4, batch_first=True, **options),
            nn.Linear(16, 3),
        )

    def forward(self, x, mask=None):
        x = self.inp(x)
        y, _ = self.attn(x, x, x, attn_mask=mask, need_weights=False)
        return self.out(x + y)


def multihead():
    return Attention(), (torch.randn(2, 6, 5),)


def multihead_masked():
    return Attention(), (torch.randn(2, 6, 5), torch.triu(torch.ones(6, 6, dtype=torch.bool), 1))


def multihead_bias_kv():
    return Attention(add_bias_kv=True), (torch.randn(2, 6, 5),)


def torch_encoder():
    return nn.Sequential(
        nn.Linear(5, 16),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), 2),
        nn.Linear(16, 3),
    ), (torch.randn(2, 6, 5),)


def torch_transformer():
    model = nn.Transformer(16, 4, 1, 1, 24, batch_first=True)
    return model, (torch.randn(2, 6, 16), torch.randn(2, 5, 16))


class Twice(nn.Module):
    """One module called twice, tied weights, a module under two names."""

    def __init__(self):
        super().__init__()
        self.stem, self.block, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(4, 8)
        self.again, self.a, self.b = self.block, nn.Linear(8, 10), nn.Linear(8, 10)
        self.b.weight = self.a.weight

    def forward(self, x):
        x = self.norm(self.again(torch.relu(self.block(torch.relu(self.stem(x))))))
        x = x.mean((2, 3))
        return self.a(x) + self.b(x * 2)


def twice():
    return Twice(), image()


class Branchy(nn.Module):
    """Control flow that depends on values."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x):
        x = self.conv(x)
        return x.relu() if x.sum() > 0 else x


def data_dependent():
    return Branchy(), image()


class Softmaxed(nn.Module):
    """Softmax, cumulative sums and sorting over channels; a mean over channels."""

    def __init__(self, kind):
        super().__init__()
        self.conv, self.head, self.kind = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8 if kind not in ("mean", "max", "sum") else 1, 2, 1),
            kind,
        )

    def forward(self, x):
        x = self.conv(x)
        if self.kind in ("softmax", "cumsum"):
            return self.head(getattr(x, self.kind)(1))
        x = getattr(x, "amax" if self.kind == "max" else self.kind)(1, keepdim=True)
        return self.head(x)


def cumsum_over_channels():
    return Softmaxed("cumsum"), image()


def softmax_over_channels():
    return Softmaxed("softmax"), image()


def mean_over_channels():
    return Softmaxed("mean"), image()


def sum_over_channels():
    return Softmaxed("sum"), image()


def max_over_channels():
    return Softmaxed("max"), image()


class CBAM(nn.Module):
    """Channel and spatial attention."""

    def __init__(self):
        super().__init__()
        self.conv, self.mlp, self.spatial, self.out = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8)),
            nn.Conv2d(2, 1, 3, padding=1),
            nn.Conv2d(8, 2, 1),
        )

    def forward(self, x):
        x = self.conv(x)
        w = torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3))))
        x = x * w.unsqueeze(2).unsqueeze(3).expand_as(x)
        s = torch.cat([x.sum(1, keepdim=True), torch.max(x, 1, keepdim=True)[0]], 1)
        return self.out(x * torch.sigmoid(self.spatial(s)))


def cbam():
    return CBAM(), image()


class SuperResolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(32, 3, 1)

    def forward(self, x):
        x = F.pixel_shuffle(self.a(x).relu(), 2)
        return self.c(F.pixel_unshuffle(self.b(x).relu(), 2))


def super_resolution():
    return SuperResolution(), image()


class Literal(nn.Module):
    """A size written as a number in forward, which cannot follow."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 48, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).view(-1, 8 * 48))


def literal_view():
    return Literal(), image()
