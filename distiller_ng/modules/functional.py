"""Modules that stand for functions a model's ``forward`` calls (layer 2).

They hold nothing: the function, its operands and its settings come with each call, so ``x + y`` and ``torch.add(x, y)``
are the same module. Quantizers put them into a model under the names of
:mod:`distiller_ng.graph.functional_calls`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from distiller_ng.modules.eltwise import EltwiseAdd, EltwiseDiv, EltwiseMult, EltwiseSub
from distiller_ng.modules.grouping import Chunk, Concat, Split, Stack
from distiller_ng.modules.matmul import BatchMatmul, Matmul

__all__ = ["FunctionModule", "module_for_call"]

_JOINING = ("cat", "stack", "hstack")


class FunctionModule(nn.Module):
    """A function of torch's as a module: ``FunctionModule("softmax")(x, function=torch.softmax, dim=-1)``.

    ``kind`` is the operation's name. ``combines_tensors`` is False where an operand is a plain number or an integer
    tensor (``x + 1``): only tensors have a grid of their own.
    """

    def __init__(self, kind: str = "") -> None:
        nn.Module.__init__(self)  # not that of the class it also is: the settings come with each call
        self.kind = kind
        self.combines_tensors = True
        self.inplace = False

    def forward(self, *operands: Any, function: Callable[..., Any], **settings: Any) -> Any:
        """``function(*operands, **settings)``; functions that join tensors get the operands as a list."""
        return function(list(operands), **settings) if self.kind in _JOINING else function(*operands, **settings)

    def extra_repr(self) -> str:
        """The operation's name, for the printed model."""
        return self.kind


def _standing_for(kind: type[nn.Module]) -> type[FunctionModule]:
    """A :class:`FunctionModule` that also is a ``kind``, for whoever asks by class what a module does."""
    name = f"Functional{kind.__name__}"
    return type(name, (FunctionModule, kind), {"__module__": __name__, "__doc__": f"A call, treated as {name[10:]}."})


FunctionalEltwiseAdd = _standing_for(EltwiseAdd)
FunctionalEltwiseSub = _standing_for(EltwiseSub)
FunctionalEltwiseMult = _standing_for(EltwiseMult)
FunctionalEltwiseDiv = _standing_for(EltwiseDiv)
FunctionalMatmul = _standing_for(Matmul)
FunctionalBatchMatmul = _standing_for(BatchMatmul)
FunctionalConcat = _standing_for(Concat)
FunctionalStack = _standing_for(Stack)
FunctionalChunk = _standing_for(Chunk)
FunctionalSplit = _standing_for(Split)
FunctionalReLU = _standing_for(nn.ReLU)
FunctionalReLU6 = _standing_for(nn.ReLU6)
FunctionalSigmoid = _standing_for(nn.Sigmoid)
FunctionalTanh = _standing_for(nn.Tanh)

_CLASSES: dict[str, type[FunctionModule]] = {
    "add": FunctionalEltwiseAdd,
    "sub": FunctionalEltwiseSub,
    "mul": FunctionalEltwiseMult,
    "div": FunctionalEltwiseDiv,
    "matmul": FunctionalMatmul,
    "bmm": FunctionalBatchMatmul,
    "cat": FunctionalConcat,
    "stack": FunctionalStack,
    "hstack": FunctionalStack,
    "chunk": FunctionalChunk,
    "split": FunctionalSplit,
    "relu": FunctionalReLU,
    "relu6": FunctionalReLU6,
    "sigmoid": FunctionalSigmoid,
    "tanh": FunctionalTanh,
}


def module_for_call(kind: str) -> FunctionModule:
    """The module that stands for calls of one kind: ``module_for_call("add")`` is an ``EltwiseAdd`` too.

    Kinds are those of :func:`distiller_ng.graph.functional_calls.call_kind`.
    """
    return _CLASSES.get(kind, FunctionModule)(kind)
