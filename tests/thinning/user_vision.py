"""Vision transformers and mixers as users write them, tiny: each function returns (model, example inputs)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class PackedAttention(nn.Module):
    """timm's: one projection for queries, keys and values."""

    def __init__(self, dim, heads, fused=False, unbind=True):
        super().__init__()
        self.num_heads, self.head_dim, self.scale = heads, dim // heads, (dim // heads) ** -0.5
        self.qkv, self.proj, self.fused, self.unbind = nn.Linear(dim, dim * 3), nn.Linear(dim, dim), fused, unbind

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0) if self.unbind else (qkv[0], qkv[1], qkv[2])
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim, heads, **options):
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = (
            nn.LayerNorm(dim),
            PackedAttention(dim, heads, **options),
            nn.LayerNorm(dim),
            Mlp(dim, 2 * dim),
        )

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.cls_token, self.pos_embed = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 13, 16))
        self.blocks, self.norm, self.head = (
            nn.Sequential(Block(16, 4, **options), Block(16, 4, **options)),
            nn.LayerNorm(16),
            nn.Linear(16, 3),
        )

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


def vit():
    return ViT(), (torch.randn(2, 3, 12, 16),)


def vit_fused():
    return ViT(fused=True, unbind=False), (torch.randn(2, 3, 12, 16),)


class WindowAttention(nn.Module):
    """Swin's: a table of relative position biases, one column a head."""

    def __init__(self, dim, window, heads):
        super().__init__()
        self.dim, self.window_size, self.num_heads, self.scale = dim, window, heads, (dim // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        coords = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        relative = (coords[:, :, None] - coords[:, None, :]).permute(1, 2, 0) + window - 1
        self.register_buffer("relative_position_index", relative[..., 0] * (2 * window - 1) + relative[..., 1])
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        attn = q * self.scale @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(n, n, -1)
        attn = (attn + bias.permute(2, 0, 1).contiguous().unsqueeze(0)).softmax(-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(b, n, c))


class SwinBlock(nn.Module):
    def __init__(self, dim, heads, shift):
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp, self.shift = (
            nn.LayerNorm(dim),
            WindowAttention(dim, 2, heads),
            nn.LayerNorm(dim),
            Mlp(dim, 2 * dim),
            shift,
        )

    def forward(self, x):
        b, h, w, c = x.shape
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        y = y.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 4, c)
        y = self.attn(y).view(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(b, h, w, c)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.mlp(self.norm2(x))


class Swin(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.a, self.b = nn.Conv2d(3, 12, 4, 4), SwinBlock(12, 3, 0), SwinBlock(12, 3, 1)
        self.norm, self.reduction, self.head = nn.LayerNorm(48), nn.Linear(48, 24, bias=False), nn.Linear(24, 3)

    def forward(self, x):
        x = self.b(self.a(self.patch(x).permute(0, 2, 3, 1)))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.head(self.reduction(self.norm(x)).mean((1, 2)))


def swin():
    return Swin(), (torch.randn(2, 3, 16, 16),)


class MixerBlock(nn.Module):
    def __init__(self, dim, positions):
        super().__init__()
        self.norm1, self.tokens, self.norm2, self.channels = (
            nn.LayerNorm(dim),
            Mlp(positions, 10),
            nn.LayerNorm(dim),
            Mlp(dim, 20),
        )

    def forward(self, x):
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.blocks, self.norm, self.head = (
            nn.Conv2d(3, 8, 4, 4),
            nn.Sequential(MixerBlock(8, 12), MixerBlock(8, 12)),
            nn.LayerNorm(8),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.stem(x).flatten(2).transpose(1, 2))).mean(1))


def mixer():
    return Mixer(), (torch.randn(2, 3, 12, 16),)
