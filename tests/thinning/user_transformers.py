# ruff: noqa: RUF005 - written as users write them
"""Attention and sequence models as users write them, tiny: each function returns (model, example inputs)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(dim) + 0.5), 1e-6

    def forward(self, x):
        return self.weight * (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x)


class SwiGLU(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.w1, self.w2, self.w3 = (
            nn.Linear(dim, hidden, bias=False),
            nn.Linear(hidden, dim, bias=False),
            nn.Linear(dim, hidden, bias=False),
        )

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


def rotary(x):
    """Rotary positions by halves."""
    t = torch.arange(x.shape[-2], device=x.device).float()[:, None] / 10 ** (torch.arange(x.shape[-1] // 2).float() / 4)
    emb = torch.cat((t, t), -1)
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return x * emb.cos() + torch.cat((-x2, x1), -1) * emb.sin()


class LlamaAttention(nn.Module):
    def __init__(self, dim, heads, kv_heads):
        super().__init__()
        self.num_heads, self.num_key_value_heads, self.head_dim = heads, kv_heads, dim // heads
        self.num_key_value_groups = heads // kv_heads
        self.q_proj = nn.Linear(dim, heads * self.head_dim, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(dim, kv_heads * self.head_dim, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(heads * self.head_dim, dim, bias=False)

    def forward(self, x):
        b, n, _ = x.size()
        q = self.q_proj(x).view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(b, n, self.num_key_value_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(b, n, self.num_key_value_heads, self.head_dim).transpose(1, 2)
        q, k = rotary(q), rotary(k)
        k, v = (
            t[:, :, None]
            .expand(b, t.shape[1], self.num_key_value_groups, n, self.head_dim)
            .reshape(b, -1, n, self.head_dim)
            for t in (k, v)
        )
        w = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(self.head_dim) + torch.full((n, n), -1e4).triu(1), -1)
        return self.o_proj((w @ v).transpose(1, 2).contiguous().reshape(b, n, -1))


class LlamaBlock(nn.Module):
    def __init__(self, dim, heads, kv_heads):
        super().__init__()
        self.a, self.b, self.attn, self.mlp = (
            RMSNorm(dim),
            RMSNorm(dim),
            LlamaAttention(dim, heads, kv_heads),
            SwiGLU(dim, 20),
        )

    def forward(self, x):
        x = x + self.attn(self.a(x))
        return x + self.mlp(self.b(x))


class Llama(nn.Module):
    def __init__(self, heads=4, kv_heads=2, tied=True):
        super().__init__()
        self.embed, self.layers = nn.Embedding(11, 16), nn.ModuleList(LlamaBlock(16, heads, kv_heads) for _ in range(2))
        self.norm, self.lm_head = RMSNorm(16), nn.Linear(16, 11, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


def tokens(high=11, *shape):
    return (torch.randint(0, high, shape or (2, 6)),)


def llama():
    return Llama(), tokens()


def llama_mha():
    return Llama(4, 4, tied=False), tokens()


class BertSelfAttention(nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.num_attention_heads, self.attention_head_size = heads, hidden // heads
        self.all_head_size = self.num_attention_heads * self.attention_head_size
        self.query, self.key, self.value = (nn.Linear(hidden, self.all_head_size) for _ in range(3))
        self.dropout = nn.Dropout(0.1)

    def transpose_for_scores(self, x):
        return x.view(x.size()[:-1] + (self.num_attention_heads, self.attention_head_size)).permute(0, 2, 1, 3)

    def forward(self, x, mask=None):
        q, k, v = (self.transpose_for_scores(layer(x)) for layer in (self.query, self.key, self.value))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(self.attention_head_size)
        scores = scores if mask is None else scores + mask
        context = torch.matmul(self.dropout(F.softmax(scores, dim=-1)), v).permute(0, 2, 1, 3).contiguous()
        return context.view(context.size()[:-2] + (self.all_head_size,))


class BertLayer(nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.attention, self.dense, self.norm1 = (
            BertSelfAttention(hidden, heads),
            nn.Linear(hidden, hidden),
            nn.LayerNorm(hidden),
        )
        self.intermediate, self.output, self.norm2 = (
            nn.Linear(hidden, 4 * hidden),
            nn.Linear(4 * hidden, hidden),
            nn.LayerNorm(hidden),
        )

    def forward(self, x, mask):
        x = self.norm1(self.dense(self.attention(x, mask)) + x)
        return self.norm2(self.output(F.gelu(self.intermediate(x))) + x)


class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        self.word, self.position, self.kind = nn.Embedding(11, 16), nn.Embedding(8, 16), nn.Embedding(2, 16)
        self.norm, self.layers, self.pooler, self.head = (
            nn.LayerNorm(16),
            nn.ModuleList(BertLayer(16, 4) for _ in range(2)),
            nn.Linear(16, 16),
            nn.Linear(16, 2),
        )
        self.register_buffer("position_ids", torch.arange(8).expand((1, -1)))

    def forward(self, input_ids, attention_mask=None, labels=None):
        n = input_ids.size(1)
        x = self.norm(
            self.word(input_ids) + self.position(self.position_ids[:, :n]) + self.kind(torch.zeros_like(input_ids))
        )
        mask = None if attention_mask is None else (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -1e4
        for layer in self.layers:
            x = layer(x, mask)
        return {"logits": self.head(torch.tanh(self.pooler(x[:, 0]))), "hidden": x}


def bert():
    ids = tokens()[0]
    return Bert(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
