"""Tensor operations as modules, so that they have a name a schedule, a hook or a quantizer can refer to (layer 2).

Models do not need them: operators such as ``+`` and ``torch.cat`` are found by tracing. They exist because Distiller's
models are written with them, and because a named module is where activation statistics and overrides attach.
"""

from distiller_ng.modules.aggregate import Mean, Norm
from distiller_ng.modules.eltwise import EltwiseAdd, EltwiseDiv, EltwiseMult, EltwiseSub
from distiller_ng.modules.grouping import Chunk, Concat, Split, Stack
from distiller_ng.modules.inspection import Print
from distiller_ng.modules.matmul import BatchMatmul, Matmul
from distiller_ng.modules.reshape import Flatten

__all__ = [
    "BatchMatmul",
    "Chunk",
    "Concat",
    "EltwiseAdd",
    "EltwiseDiv",
    "EltwiseMult",
    "EltwiseSub",
    "Flatten",
    "Matmul",
    "Mean",
    "Norm",
    "Print",
    "Split",
    "Stack",
]
