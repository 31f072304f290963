"""Operations and recurrent layers as modules, with names a schedule, a hook or a quantizer can refer to (layer 2).

Models do not need them: operators such as ``+`` and ``torch.cat`` are found by tracing. They exist because Distiller's
models are written with them, and because a named module is where activation statistics and overrides attach.
"""

from distiller_ng.modules.aggregate import Mean, Norm
from distiller_ng.modules.eltwise import EltwiseAdd, EltwiseDiv, EltwiseMult, EltwiseSub
from distiller_ng.modules.grouping import Chunk, Concat, Split, Stack
from distiller_ng.modules.gru import DistillerGRU, DistillerGRUCell, convert_model_to_distiller_gru
from distiller_ng.modules.inspection import Print
from distiller_ng.modules.matmul import BatchMatmul, Matmul
from distiller_ng.modules.reshape import Flatten
from distiller_ng.modules.rnn import DistillerLSTM, DistillerLSTMCell, convert_model_to_distiller_lstm
from distiller_ng.modules.topology import BranchPoint
from distiller_ng.modules.tsvd import TruncatedSVD, truncated_svd

__all__ = [
    "BatchMatmul",
    "BranchPoint",
    "Chunk",
    "Concat",
    "DistillerGRU",
    "DistillerGRUCell",
    "DistillerLSTM",
    "DistillerLSTMCell",
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
    "TruncatedSVD",
    "convert_model_to_distiller_gru",
    "convert_model_to_distiller_lstm",
    "truncated_svd",
]
