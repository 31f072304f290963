"""Linear layers as a product of two smaller ones (layer 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError

__all__ = ["TruncatedSVD", "truncated_svd"]

_HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")


def truncated_svd(W: Tensor, l: int) -> tuple[Tensor, Tensor]:  # noqa: E741 - Distiller's names
    """The best approximation of ``W`` ``[N, M]`` of rank ``l``, as two factors ``[N, l]`` and ``[l, M]``.

    With the singular value decomposition ``W = U S V'`` they are ``U_l`` and ``S_l V_l'``: the ``l`` largest singular
    values. Source: C. Eckart, G. Young, "The approximation of one matrix by another of lower rank",
    https://doi.org/10.1007/BF02288367. ``[[3., 0.], [0., 1.]]`` with ``l`` = 1 becomes ``[[3., 0.], [0., 0.]]``.

    Raises :class:`ArgumentError` unless ``W`` is a matrix of floating-point numbers and ``1 <= l <= min(N, M)``.
    """
    if not isinstance(W, Tensor) or W.dim() != 2 or not W.is_floating_point():
        shape = tuple(W.shape) if isinstance(W, Tensor) else type(W).__name__
        raise ArgumentError(f"truncated_svd needs a matrix of floating-point numbers, got {shape}", argument=("W",))
    if isinstance(l, bool) or not isinstance(l, int) or not 1 <= l <= min(W.shape):
        raise ArgumentError(f"the rank must be a whole number from 1 to {min(W.shape)}, got {l!r}", argument=("l",))
    matrix = W.detach()
    wide = matrix.float() if matrix.element_size() < 4 else matrix  # no decomposition in half precision
    u, s, vh = torch.linalg.svd(wide, full_matrices=False)
    left, right = u[:, :l], s[:l, None] * vh[:l]
    return left.to(W.dtype).contiguous(), right.to(W.dtype).contiguous()


class TruncatedSVD(nn.Module):
    """Replaces a linear layer ``y = x W' + b`` by two, ``y = (x SV') U' + b``, which are cheaper for a small rank.

    ``replaced_gemm`` is the layer that is replaced (its bias goes to the second layer; only its name means no bias),
    ``gemm_weights`` its weight ``[N, M]``, ``preserve_ratio`` the fraction of the N rows that the rank is, in
    (0, 1]; the rank is ``int(preserve_ratio * N)``, at least 1 and at most ``min(N, M)``. The layers are ``fc_sv``
    ``[rank, M]`` and ``fc_u`` ``[N, rank]``: with N = M = 100 and a ratio of 0.2, 4,000 weights in place of 10,000::

        model.fc = TruncatedSVD(model.fc, model.fc.weight, 0.2)

    Raises :class:`ArgumentError` as :func:`truncated_svd`, and for another ratio or a layer with another bias.
    """

    def __init__(self, replaced_gemm: nn.Module | str | None, gemm_weights: Tensor, preserve_ratio: float) -> None:
        super().__init__()
        if (
            isinstance(preserve_ratio, bool)
            or not isinstance(preserve_ratio, int | float)
            or not 0 < preserve_ratio <= 1
        ):
            message = f"preserve_ratio must be above 0 and up to 1, got {preserve_ratio!r}"
            raise ArgumentError(message, argument=("preserve_ratio",))
        if not isinstance(gemm_weights, Tensor) or gemm_weights.dim() != 2:
            raise ArgumentError("gemm_weights must be the weight [N, M] of a linear layer", argument=("gemm_weights",))
        rows, columns = gemm_weights.shape
        self.replaced_gemm = replaced_gemm if isinstance(replaced_gemm, str) else type(replaced_gemm).__name__
        self.preserve_ratio = float(preserve_ratio)
        self.rank = max(1, min(int(preserve_ratio * rows), rows, columns))
        bias = getattr(replaced_gemm, "bias", None)
        if isinstance(bias, Tensor) and bias.shape != (rows,):
            message = f"the bias of replaced_gemm has shape {tuple(bias.shape)}, but gemm_weights has {rows} rows"
            raise ArgumentError(message, argument=("replaced_gemm",))
        left, right = truncated_svd(gemm_weights, self.rank)
        with torch.device("meta"):
            self.fc_sv = nn.Linear(columns, self.rank, bias=False)
            self.fc_u = nn.Linear(self.rank, rows, bias=isinstance(bias, Tensor))
        self.fc_sv.weight, self.fc_u.weight = nn.Parameter(right), nn.Parameter(left)
        if isinstance(bias, Tensor):
            self.fc_u.bias = nn.Parameter(bias.detach().clone())

    @classmethod
    def of_factors(cls, layer: nn.Linear, left: Tensor, right: Tensor) -> TruncatedSVD:
        """What stands for ``layer`` once its weight is ``left`` ``[N, rank]`` times ``right`` ``[rank, M]``.

        The bias stays the same parameter; whether it trains, mode and forward hooks are the layer's.
        """
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.replaced_gemm, made.rank = type(layer).__name__, left.shape[1]
        made.preserve_ratio = left.shape[1] / left.shape[0]
        with torch.device("meta"):
            made.fc_sv = nn.Linear(right.shape[1], made.rank, bias=False)
            made.fc_u = nn.Linear(made.rank, left.shape[0], bias=layer.bias is not None)
        trains = layer.weight.requires_grad
        made.fc_sv.weight, made.fc_u.weight = nn.Parameter(right, trains), nn.Parameter(left, trains)
        made.fc_u.bias = layer.bias
        for hooks in _HOOKS:  # the very dictionaries, so that handles given out before still remove their hook
            made.__dict__[hooks] = layer.__dict__[hooks]
        return made.train(layer.training)

    @property
    def in_features(self) -> int:
        """M, as of the layer that was replaced."""
        return int(self.fc_sv.weight.shape[1])

    @property
    def out_features(self) -> int:
        """N, as of the layer that was replaced."""
        return int(self.fc_u.weight.shape[0])

    @property
    def weight(self) -> Tensor:
        """The product ``[N, M]``, for code that reads the layer's weight instead of calling the layer."""
        return self.fc_u.weight @ self.fc_sv.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias of the second layer; None without one."""
        return self.fc_u.bias

    def forward(self, x: Tensor) -> Tensor:
        """``[..., M]`` to ``[..., N]``."""
        y: Tensor = self.fc_u(self.fc_sv(x))
        return y

    def extra_repr(self) -> str:
        """What was replaced, for the printed model."""
        return f"replaced={self.replaced_gemm}, rank={self.rank}, preserve_ratio={self.preserve_ratio:g}"
