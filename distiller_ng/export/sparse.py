"""Pruned models in files that shrink with their sparsity (layer 4)."""

from __future__ import annotations

import os

from torch import nn

from distiller_ng.export.packed import PackedReport, write_contents
from distiller_ng.export.packed_contents import contents_of

__all__ = ["save_sparse"]


def save_sparse(model: nn.Module, path: str | os.PathLike[str]) -> PackedReport:
    """Write the model with each pruned tensor as a bit mask and its nonzero values; ``load_packed`` reads it.

    A float32 tensor of sparsity 0.9 takes 0.13 of its size, at 0.5 it takes 0.53; a tensor that would not become
    smaller is stored as it is. float16, bfloat16 and integer tensors work alike (int8 pays from sparsity 0.125 on).
    The values are exact; only the sign of a zero is not kept. Thinning is recorded: loading cuts the same channels out
    of the model's own source code. The file is safetensors: loading it runs no code, every tensor has a checksum.

    Limits: this saves space on disk. In memory the loaded weights are dense (``load_packed(..., keep_packed=True)``
    keeps them as stored, and pays with time); time is saved by thinning, or by ``sparse_linear_`` at 90 % and more.
    Example::

        print(save_sparse(model, "pruned.safetensors"))
        model = load_packed(lambda: create_model(False, "cifar10", "resnet20_cifar"), "pruned.safetensors")

    Raises :class:`ExportError` for tensors that cannot be stored, :class:`ArgumentError` without safetensors.
    """
    return write_contents(contents_of(model), path, coded=False, kind="sparse")
