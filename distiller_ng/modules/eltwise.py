"""Element-wise arithmetic as modules (layer 2)."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

__all__ = ["EltwiseAdd", "EltwiseDiv", "EltwiseMult", "EltwiseSub"]


class _Eltwise(nn.Module):
    """Folds its inputs from left to right with one operator; ``inplace`` writes into the first input.

    Inputs are any number (one or more) of tensors that broadcast together; plain numbers are accepted after the first.
    """

    _operator: ClassVar[Callable[[Tensor, Tensor], Tensor]]
    _inplace_operator: ClassVar[Callable[[Tensor, Tensor], Tensor]]

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """The folded result, of the inputs' broadcast shape (the first input's shape and storage when in place)."""
        apply = type(self)._inplace_operator if self.inplace else type(self)._operator
        result = first
        for other in others:
            result = apply(result, other)
        return result

    def extra_repr(self) -> str:
        """``inplace=True`` when it is, for the printed model."""
        return "inplace=True" if self.inplace else ""


class EltwiseAdd(_Eltwise):
    """Sum of its inputs: ``[1.]``, ``[2.]`` and ``[3.]`` give ``[6.]``."""

    _operator = operator.add
    _inplace_operator = operator.iadd


class EltwiseSub(_Eltwise):
    """The first input minus all others: inputs ``[9.]``, ``[2.]``, ``[3.]`` give ``[4.]``."""

    _operator = operator.sub
    _inplace_operator = operator.isub


class EltwiseMult(_Eltwise):
    """Product of its inputs: ``[2.]``, ``[3.]``, ``[4.]`` give ``[24.]``."""

    _operator = operator.mul
    _inplace_operator = operator.imul


class EltwiseDiv(nn.Module):
    """``x / y`` element by element: ``[9.]`` and ``[2.]`` give ``[4.5]``; ``inplace`` writes into ``x``."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The quotient, of the inputs' broadcast shape; ``y`` may be a plain number."""
        return x.div_(y) if self.inplace else x.div(y)

    def extra_repr(self) -> str:
        """``inplace=True`` when it is, for the printed model."""
        return "inplace=True" if self.inplace else ""
