"""Buffers that stay in float32 when their model is converted to half precision (layer 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PreciseBuffers"]


class PreciseBuffers(nn.Module):
    """A module whose floating point buffers ``model.half()`` and ``model.bfloat16()`` leave in float32.

    In bfloat16 a decay of 0.999 is 1, and a step of 1/255 is off by 0.4 %. Device and float64 are followed.
    """

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if isinstance(old, Tensor) and isinstance(new, Tensor) and new.dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = old.to(device=new.device, dtype=torch.float32)
        return self
