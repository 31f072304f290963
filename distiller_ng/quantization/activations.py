"""Modules that quantize activations, for quantizers to put into a model (layer 2).

=================================== ============================================ ======================================
module                              range                                        used by
=================================== ============================================ ======================================
ClippedLinearQuantization           fixed, ``0 .. clip_val``                     DoReFa, WRPN
LearnedClippedLinearQuantization    learned, ``0 .. clip_val``                   PACT
FakeLinearQuantization              moving average of minimum and maximum        QuantAwareTrainRangeLinear
LSQActivation                       learned step                                 LSQ
XnorActivation                      the sign                                     XNOR-Net++
=================================== ============================================ ======================================
"""

from distiller_ng.quantization.binary import XnorActivation, XnorScale
from distiller_ng.quantization.clipped_activations import ClippedLinearQuantization, LearnedClippedLinearQuantization
from distiller_ng.quantization.fake_linear import FakeLinearQuantization, FakeQuantizationWrapper
from distiller_ng.quantization.learned_step import LSQActivation

__all__ = [
    "ClippedLinearQuantization",
    "FakeLinearQuantization",
    "FakeQuantizationWrapper",
    "LSQActivation",
    "LearnedClippedLinearQuantization",
    "XnorActivation",
    "XnorScale",
]
