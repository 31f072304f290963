"""The inverse of the empirical Fisher matrix by blocks, from gradients (layer 1).

``F = damp * I + (1 / m) * sum g g^T`` over ``m`` gradients, of which only square blocks along the diagonal count. What
is asked of its inverse: its diagonal, small blocks along the diagonal, and products with vectors. Two forms keep
memory small: :class:`GramFisher` for ``m >= block`` and :class:`WoodburyFisher` for ``m < block``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError

__all__ = ["GramFisher", "InverseFisher", "WoodburyFisher", "inverse_fisher"]

#: Problems of up to so many stored values are computed in float64.
_SMALL = 1 << 20
_PIECE = 1 << 18  # values worked on at once; bounds temporary memory
_TOLERANCE = 1e-3  # how far below its least value rounding may move a pivot


class InverseFisher(ABC):
    """Takes gradients one by one (:meth:`add`), then answers about the inverse (after :meth:`invert`).

    ``size`` parameters in blocks of ``block``; the last block is filled up with parameters of gradient zero.
    """

    def __init__(
        self, size: int, block: int, count: int, damp: float, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        if size < 1 or block < 1 or count < 1 or not damp > 0:
            raise ArgumentError(
                f"size, block and count are at least 1 and damp is above 0; got {size}, {block}, {count}, {damp}"
            )
        self.size, self.block, self.count, self.damp, self.dtype = size, min(block, size), count, damp, dtype
        self.blocks = -(-size // self.block)
        self.device = torch.device(device)
        #: 1 and 0 ``[size]``: gradients count as 0 where this is 0. None: everywhere as they are.
        self.keep: Tensor | None = None
        self._added = 0

    @abstractmethod
    def add(self, gradient: Tensor) -> None:
        """One more gradient, of ``size`` values in any shape and floating point type; at most ``count`` of them."""

    @abstractmethod
    def invert(self) -> None:
        """No more gradients come. With fewer than ``count`` of them, ``m`` is how many came."""

    @abstractmethod
    def diagonal(self) -> Tensor:
        """``[size]``: the diagonal of the inverse."""

    @abstractmethod
    def multiply(self, vector: Tensor) -> Tensor:
        """``[size]``: the inverse times a vector ``[size]``."""

    @abstractmethod
    def groups(self, width: int) -> Tensor:
        """``[size / width, width, width]``: blocks along the diagonal of the inverse; ``width`` divides ``block``."""

    def _filled(self, vector: Tensor) -> Tensor:
        """``[blocks, block]``, with zeros at its end."""
        missing = self.blocks * self.block - self.size
        flat = vector.reshape(-1).to(device=self.device, dtype=self.dtype)
        return (torch.nn.functional.pad(flat, (0, missing)) if missing else flat).view(self.blocks, self.block)

    def _put(self, gradient: Tensor, place: Tensor, part: slice = slice(None)) -> None:
        """Copy into memory of ours, zeros where the gradient does not count."""
        place.copy_(gradient)
        if self.keep is not None:
            place.mul_(self.keep[part].view(place.shape))

    def _count_one(self, gradient: Tensor) -> None:
        if gradient.numel() != self.size or self._added == self.count:
            raise ArgumentError(
                f"expected at most {self.count} gradients of {self.size} values, got number {self._added + 1} of "
                f"{gradient.numel()}"
            )
        self._added += 1


def inverse_fisher(
    size: int,
    count: int,
    *,
    damp: float,
    block_size: int | None,
    pages: int = 1,
    device: torch.device | str = "cpu",
) -> InverseFisher:
    """The form that takes least memory for ``count`` gradients of ``size`` parameters; one block if it has no size.

    At most ``1.25 * size * min(block, count)`` values besides pieces of a few megabytes: float32, float64 where that
    is no more than a million.

    >>> fisher = inverse_fisher(2, 1, damp=1.0, block_size=2)
    >>> fisher.add(torch.tensor([1.0, 1.0]))
    >>> fisher.invert()
    >>> fisher.diagonal()  # of the inverse of [[2, 1], [1, 2]]
    tensor([0.6667, 0.6667], dtype=torch.float64)
    """
    block = size if block_size is None else min(block_size, size)
    dtype = torch.float64 if size * min(block, count) <= _SMALL else torch.float32
    if count >= block:
        return GramFisher(size, block, count, damp, dtype, device)
    return WoodburyFisher(size, block, count, damp, dtype, device, pages=pages)


class GramFisher(InverseFisher):
    """Keeps ``sum g g^T`` by block, added up a chunk of gradients at a time, and then its inverse in the same place.

    Memory: ``size * block`` values and a quarter of that for the chunk. A block that rounding has left without a
    Cholesky factor (gradients nearly dependent, large against ``damp``) is inverted by its eigenvalues in float64, none
    of them below ``damp``.
    """

    def __init__(
        self, size: int, block: int, count: int, damp: float, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(size, block, count, damp, dtype, device)
        shape = (max(1, self.block // 4), self.blocks, self.block)
        self._chunk = torch.zeros(shape, dtype=dtype, device=device)
        self._waiting = 0
        self._is_blank = True  # the matrix is written by the first sum, at no cost for zeros
        self._matrix = torch.empty(self.blocks, self.block, self.block, dtype=dtype, device=device)

    def add(self, gradient: Tensor) -> None:
        """Into the chunk; a full one is added to the sum."""
        self._count_one(gradient)
        self._put(gradient.reshape(-1), self._chunk[self._waiting].view(-1)[: self.size])
        self._waiting += 1
        if self._waiting == len(self._chunk):
            self._flush()

    def invert(self) -> None:
        """Cholesky inverses, a piece of blocks at a time."""
        self._flush()
        self._chunk = self._chunk[:0].clone()
        if self._is_blank:
            self._matrix.zero_()
        if self.block == 1:
            self._matrix.div_(max(self._added, 1)).add_(self.damp).reciprocal_()
            return
        step = max(1, _PIECE // self.block**2)
        for start in range(0, self.blocks, step):
            piece = self._matrix[start : start + step]
            piece.div_(max(self._added, 1)).diagonal(dim1=1, dim2=2).add_(self.damp)
            self._invert_(piece)

    def diagonal(self) -> Tensor:
        """Read off."""
        return self._matrix.diagonal(dim1=1, dim2=2).reshape(-1)[: self.size].clone()

    def multiply(self, vector: Tensor) -> Tensor:
        """Block by block."""
        columns = self._filled(vector)
        if self.block == 1:
            return (self._matrix.view(-1) * columns.view(-1))[: self.size]
        return torch.bmm(self._matrix, columns.unsqueeze(2)).reshape(-1)[: self.size]

    def groups(self, width: int) -> Tensor:
        """Read off."""
        inner = self._matrix.view(self.blocks, self.block // width, width, self.block // width, width)
        found = inner.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
        return found.reshape(-1, width, width)[: -(-self.size // width)].clone()

    def _flush(self) -> None:
        if not self._waiting:
            return
        chunk, self._waiting = self._chunk[: self._waiting], 0
        first, self._is_blank = self._is_blank, False
        if self.block == 1:
            squares = chunk.squeeze(2).square().sum(dim=0)
            self._matrix.view(-1).copy_(squares if first else squares.add_(self._matrix.view(-1)))
        elif first:
            torch.bmm(chunk.permute(1, 2, 0), chunk.permute(1, 0, 2), out=self._matrix)
        else:
            self._matrix.baddbmm_(chunk.permute(1, 2, 0), chunk.permute(1, 0, 2))

    def _invert_(self, piece: Tensor) -> None:
        factors, wrong = _factors(piece, self.damp)
        inverse = torch.cholesky_inverse(factors)
        if bool(wrong.any()):
            values, vectors = torch.linalg.eigh(piece[wrong].double())
            values.clamp_(min=self.damp)
            inverse[wrong] = torch.matmul(vectors / values.unsqueeze(1), vectors.mT).to(inverse.dtype)
        piece.copy_(inverse)


class WoodburyFisher(InverseFisher):
    """Keeps the gradients, and then ``C = L^-1 G`` in their place, where ``L L^T = m damp I + G G^T`` by block.

    By the Woodbury identity ``F^-1 = (I - C^T C) / damp``. Memory: ``size * count`` values. Work goes in pieces: whole
    blocks, or ``pages`` (and as many more as keep pieces small) parts of the columns of a block.

    Source: E. Frantar, E. Kurtic and D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order
    Information", https://arxiv.org/abs/2107.03356, whose recursion over gradients computes the same.
    """

    def __init__(
        self,
        size: int,
        block: int,
        count: int,
        damp: float,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        pages: int = 1,
    ) -> None:
        super().__init__(size, block, count, damp, dtype, device)
        self._rows = torch.zeros(self.blocks, count, self.block, dtype=dtype, device=device)
        self._squares = torch.zeros(
            self.blocks, 1, self.block, dtype=dtype, device=device
        )  # of C, summed over its rows
        self._width = max(1, min(-(-self.block // pages), _PIECE // count))

    def add(self, gradient: Tensor) -> None:
        """One more row of every block."""
        self._count_one(gradient)
        flat, even = gradient.reshape(-1), self.size // self.block * self.block
        whole = slice(0, even)
        self._put(flat[whole].view(-1, self.block), self._rows[: even // self.block, self._added - 1], whole)
        if even < self.size:
            rest = slice(even, self.size)
            self._put(flat[rest], self._rows[-1, self._added - 1, : self.size - even], rest)

    def invert(self) -> None:
        """From ``G`` to ``C``, a piece of blocks at a time."""
        step = max(1, _PIECE // (self.count * self._width))
        for start in range(0, self.blocks, step):
            self._whiten_(self._rows[start : start + step], self._squares[start : start + step])

    def diagonal(self) -> Tensor:
        """``(1 - sum C^2) / damp``."""
        return ((1 - self._squares) / self.damp).reshape(-1)[: self.size]

    def multiply(self, vector: Tensor) -> Tensor:
        """``(v - C^T C v) / damp``."""
        columns = self._filled(vector)
        # One product after the other: batched ones with a vector take five times as long.
        made = torch.stack([rows.T @ (rows @ column) for rows, column in zip(self._rows, columns, strict=True)])
        return ((columns - made) / self.damp).reshape(-1)[: self.size]

    def groups(self, width: int) -> Tensor:
        """``(I - C_Q^T C_Q) / damp``, a piece at a time."""
        eye = torch.eye(width, dtype=self.dtype, device=self._rows.device)
        found = []
        for block in self._rows:
            parts = block.view(self.count, -1, width).permute(1, 0, 2)
            found.append((eye - torch.bmm(parts.mT, parts)) / self.damp)
        return torch.cat(found)[: -(-self.size // width)]

    def _columns(self, rows: Tensor) -> list[Tensor]:
        return list(torch.split(rows, self._width, dim=2))

    def _whiten_(self, rows: Tensor, squares: Tensor, dtype: torch.dtype | None = None) -> None:
        """In ``dtype``; blocks where that one's rounding shows, in float64."""
        shift = max(self._added, 1) * self.damp
        dtype = self.dtype if dtype is None else dtype
        gram = torch.zeros(len(rows), self.count, self.count, dtype=dtype, device=rows.device)
        for piece in self._columns(rows):
            wide = piece.to(dtype)
            gram.baddbmm_(wide, wide.mT)
        gram.diagonal(dim1=1, dim2=2).add_(shift)
        factors, wrong = _factors(gram, shift)
        if dtype == torch.float64 or not bool(wrong.any()):
            # The inverse of the small factor and a product take half the time of solving for all the columns.
            eye = torch.eye(self.count, dtype=dtype, device=rows.device).expand_as(factors)
            inverse = torch.linalg.solve_triangular(factors, eye, upper=False)
            for piece, sums in zip(self._columns(rows), self._columns(squares), strict=True):
                whitened = torch.bmm(inverse, piece.to(dtype))
                piece.copy_(whitened)
                sums.copy_(whitened.square_().sum(dim=1, keepdim=True))  # while it is in the cache
            return
        for index in range(len(rows)):
            one = slice(index, index + 1)
            self._whiten_(rows[one], squares[one], torch.float64 if bool(wrong[index]) else dtype)


def _factors(matrices: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Lower Cholesky factors, and which are wrong: no pivot of a matrix not below ``least * I`` is below that."""
    factors, failed = torch.linalg.cholesky_ex(matrices)
    pivots = factors.diagonal(dim1=1, dim2=2).square().amin(dim=1)
    return factors, (failed != 0) | ~(pivots >= (1 - _TOLERANCE) * least)
