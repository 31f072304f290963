"""Which rank a linear layer needs, and making recorded replacements again on a fresh model (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, GraphError
from distiller_ng.graph.changes import record_change
from distiller_ng.modules.tsvd import TruncatedSVD
from distiller_ng.names import canonical_name, unwrap

__all__ = ["RankRule", "balanced_factors", "places_of", "put_in_place", "record_low_rank", "replay_low_rank"]


class RankRule:
    """The rank of a matrix ``[N, M]`` by exactly one of three rules.

    ``preserve_ratio``: ``int(preserve_ratio * N)``. ``energy``: the smallest rank whose singular values ``s`` keep
    ``sum(s[:rank]^2) >= energy * sum(s^2)``. ``rank``: that number. At least 1 and at most ``min(N, M)``. Singular
    values 3, 2 and 1 have the energies 9, 4 and 1 of 14: ``energy=0.9`` takes two of them (13 / 14 = 0.93).

    Raises :class:`ArgumentError` for none or several of them, and for values out of range.
    """

    def __init__(
        self, *, preserve_ratio: float | None = None, energy: float | None = None, rank: int | None = None
    ) -> None:
        given = {"preserve_ratio": preserve_ratio, "energy": energy, "rank": rank}
        named = [name for name, value in given.items() if value is not None]
        if len(named) != 1:
            message = f"give exactly one of preserve_ratio, energy and rank, got {' and '.join(named) or 'none'}"
            raise ArgumentError(message, argument=tuple(named[:1]))
        for name in ("preserve_ratio", "energy"):
            value = given[name]
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (is_number and 0 < value <= 1):
                raise ArgumentError(f"{name} must be above 0 and up to 1, got {value!r}", argument=(name,))
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
            raise ArgumentError(f"rank is a whole number from 1, got {rank!r}", argument=("rank",))
        self.preserve_ratio, self.energy, self.rank = preserve_ratio, energy, rank

    def of(self, rows: int, singular_values: Tensor) -> int:
        """The rank for ``N`` rows and all singular values, largest first, ``[min(N, M)]``."""
        most = len(singular_values)
        if self.rank is not None:
            return min(self.rank, most)
        if self.preserve_ratio is not None:
            return max(1, min(int(self.preserve_ratio * rows), most))
        energies = singular_values.double().square().cumsum(0)
        wanted = float(self.energy or 0.0) * float(energies[-1]) * (1 - 1e-12)  # 1.0 is reached in spite of rounding
        return max(1, min(int((energies < wanted).sum()) + 1, most))

    def __str__(self) -> str:
        given = {"preserve_ratio": self.preserve_ratio, "energy": self.energy, "rank": self.rank}
        return ", ".join(f"{name} {value:g}" for name, value in given.items() if value is not None)


def balanced_factors(weight: Tensor, rule: RankRule) -> tuple[Tensor, Tensor, float]:
    """``left`` ``[N, rank]`` and ``right`` ``[rank, M]`` with the best product, and the energy (0..1) it keeps.

    Both get the square root of the singular values, ``U sqrt(S)`` and ``sqrt(S) V'``: they train at the same pace then,
    and weight decay presses both alike. ``[[4., 0.], [0., 1.]]`` at rank 1: ``[[2.], [0.]]``, ``[[2., 0.]]``, 16 / 17.
    """
    matrix = weight.detach()
    wide = matrix.float() if matrix.element_size() < 4 else matrix  # no decomposition in half precision
    u, s, vh = torch.linalg.svd(wide, full_matrices=False)
    rank = rule.of(weight.shape[0], s)
    energies = s.double().square()
    kept = float(energies[:rank].sum() / energies.sum()) if float(energies.sum()) > 0 else 1.0
    root = s[:rank].sqrt()
    left, right = u[:, :rank] * root, root[:, None] * vh[:rank]
    return left.to(weight.dtype).contiguous(), right.to(weight.dtype).contiguous(), kept


def places_of(model: nn.Module, layer: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every module that holds ``layer``, and under which name: a shared layer has several places."""
    return [(holder, name) for holder in model.modules() for name, child in holder._modules.items() if child is layer]


def put_in_place(model: nn.Module, layer: nn.Module, other: nn.Module) -> None:
    """Let ``other`` stand wherever ``layer`` does."""
    for holder, name in places_of(model, layer):
        holder._modules[name] = other


def record_low_rank(model: nn.Module, layers: Mapping[str, tuple[int, int, int]]) -> None:
    """Remember ``{layer: (N, M, rank)}`` with the model, so that a checkpoint can make it again."""
    config = {"layers": {name: list(sizes) for name, sizes in layers.items()}}
    record_change(model, "low_rank", config, {})


def replay_low_rank(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Replace the recorded layers of a fresh model; what the factors hold comes with the checkpoint's weights.

    Raises :class:`GraphError` where a layer is missing or of another size; then nothing was changed.
    """
    inner = unwrap(model)
    modules = {canonical_name(name): module for name, module in inner.named_modules()}
    found: dict[str, tuple[nn.Linear, int]] = {}
    for name, (rows, columns, rank) in config["layers"].items():
        layer = modules.get(name)
        if not isinstance(layer, nn.Linear) or tuple(layer.weight.shape) != (rows, columns):
            here = "none" if layer is None else f"{type(layer).__name__} {_size_of(layer)}"
            raise GraphError(f"the saved model had replaced a Linear [{rows}, {columns}] at {name!r}, here is {here}")
        found[name] = (layer, rank)
    for layer, rank in found.values():
        rows, columns = layer.weight.shape
        left, right = layer.weight.new_zeros(rows, rank), layer.weight.new_zeros(rank, columns)
        put_in_place(inner, layer, TruncatedSVD.of_factors(layer, left.detach(), right.detach()))


def _size_of(module: nn.Module) -> str:
    weight = getattr(module, "weight", None)
    return str(list(weight.shape)) if isinstance(weight, Tensor) else ""
