"""Multi-head attention with fewer heads than its width asks for (layer 2).

``nn.MultiheadAttention`` derives everything from ``embed_dim``, so that a head cannot be taken out of it. This module
has the same parameters under the same names and the same forward signature, and reads its sizes from them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ThinnedMultiheadAttention"]


class ThinnedMultiheadAttention(nn.Module):
    """``nn.MultiheadAttention`` after heads were removed; made with :meth:`of`.

    ``head_dim`` is fixed, the number of heads follows from the rows of the projections. Inputs and outputs are those of
    ``nn.MultiheadAttention``: (batch, positions, width) with ``batch_first``, else (positions, batch, width), or two
    dimensions without a batch.
    """

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim = source.embed_dim
        self.head_dim = source.head_dim
        self.dropout = source.dropout
        self.batch_first = source.batch_first
        # TransformerEncoderLayer takes its fused path only for attention whose sizes all follow from one width.
        self._qkv_same_embed_dim = False
        self.in_proj_weight = source.in_proj_weight
        self.q_proj_weight = source.q_proj_weight
        self.k_proj_weight = source.k_proj_weight
        self.v_proj_weight = source.v_proj_weight
        self.in_proj_bias = source.in_proj_bias
        self.out_proj = source.out_proj
        self.training = source.training

    @classmethod
    def of(cls, source: nn.MultiheadAttention) -> ThinnedMultiheadAttention:
        """The same attention, with the same parameter objects, ready to lose heads.

        Raises ``ValueError`` for ``bias_k``, ``bias_v`` and ``add_zero_attn``, which it does not have.
        """
        if source.bias_k is not None or source.bias_v is not None or source.add_zero_attn:
            raise ValueError("attention with add_bias_kv or add_zero_attn cannot lose heads")
        return cls(source)

    @property
    def num_heads(self) -> int:
        """Heads that are left."""
        return int(self.out_proj.weight.shape[1] // self.head_dim)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; returns the output and, with ``need_weights``, the attention weights."""
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._projected(query, key, value)
        mask = self._mask(attn_mask, key_padding_mask, q, k)
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, self.dropout, self.training)
            attended, shown = weights @ v, weights.mean(dim=1) if average_attn_weights else weights
        else:
            dropout = self.dropout if self.training else 0.0
            attended, shown = F.scaled_dot_product_attention(q, k, v, mask, dropout), None
        output = self.out_proj(attended.transpose(1, 2).flatten(2))
        if not batched:
            return output.squeeze(0), None if shown is None else shown.squeeze(0)
        return (output if self.batch_first else output.transpose(0, 1)), shown

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """(batch, heads, positions, head size) of queries, keys and values."""
        if self.in_proj_weight is not None:
            weights = list(self.in_proj_weight.chunk(3))
        else:
            weights = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
        biases = [None, None, None] if self.in_proj_bias is None else list(self.in_proj_bias.chunk(3))
        return [
            F.linear(x, weight, bias).reshape(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        ]

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
        """Both masks as one that is added to the scores: (batch, 1 or heads, queries, keys)."""
        mask = None if attn_mask is None else _additive(attn_mask, q)
        if mask is not None and mask.dim() == 3:
            mask = mask.reshape(q.shape[0], -1, *mask.shape[1:])
            if mask.shape[1] not in (1, self.num_heads):
                raise ValueError(
                    f"the attention mask is for {mask.shape[1]} heads, {self.num_heads} are left: give a mask of shape "
                    "(queries, keys), which is the same for all heads"
                )
        if padding is not None:
            extra = _additive(padding, q)[:, None, None, :]
            mask = extra if mask is None else mask + extra
        return mask

    def extra_repr(self) -> str:
        """Heads and their size."""
        return f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, head_dim={self.head_dim}"


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype is torch.bool:
        return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(mask, float("-inf"))
    return mask.to(like.dtype)
