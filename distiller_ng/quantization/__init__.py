"""Quantization: aware and post-training, under Distiller's names (layer 2)."""

from distiller_ng.quantization._plan import PlanRow, QuantPlan
from distiller_ng.quantization._weights import ParamToQuantize, QuantizedLayer
from distiller_ng.quantization.activations import (
    ClippedLinearQuantization,
    FakeLinearQuantization,
    FakeQuantizationWrapper,
    LearnedClippedLinearQuantization,
    LSQActivation,
    XnorActivation,
    XnorScale,
)
from distiller_ng.quantization.base import QUANTIZERS, Quantizer
from distiller_ng.quantization.dorefa import DorefaQuantizer
from distiller_ng.quantization.lsq import LSQQuantizer
from distiller_ng.quantization.ncf import NCFQuantAwareTrainQuantizer
from distiller_ng.quantization.pact import PACTQuantizer
from distiller_ng.quantization.post_train import PostTrainLinearQuantizer
from distiller_ng.quantization.ptq_arguments import add_post_train_quant_args
from distiller_ng.quantization.ptq_settings import ModuleQuantMode, TensorQuantMetadata
from distiller_ng.quantization.pytorch_quant_conversion import (
    distiller_qparams_to_pytorch,
    distiller_quantized_tensor_to_pytorch,
)
from distiller_ng.quantization.q_utils import (
    FP_BKP_PREFIX,
    AciqAsymmetricClipper,
    AciqClipper,
    AciqSymmetricClipper,
    LinearQuantizeSTE,
    LinearQuantMode,
    QBits,
    approx_scale_as_mult_and_shift,
    asymmetric_linear_quantization_params,
    clamp,
    get_quantized_range,
    get_scale_approximation_mult,
    get_scale_approximation_params,
    get_scale_approximation_shift_bits,
    get_tensor_avg_max_abs,
    get_tensor_avg_min_max,
    get_tensor_max_abs,
    get_tensor_mean_n_stds_max_abs,
    get_tensor_mean_n_stds_min_max,
    get_tensor_min_max,
    is_linear_quant_mode_asymmetric,
    is_linear_quant_mode_symmetric,
    linear_dequantize,
    linear_quantize,
    linear_quantize_clamp,
    symmetric_linear_quantization_params,
)
from distiller_ng.quantization.qat_range_linear import QuantAwareTrainRangeLinearQuantizer
from distiller_ng.quantization.quant_params import (
    ClipMode,
    get_quant_params_from_stats_dict,
    get_quant_params_from_tensor,
)
from distiller_ng.quantization.range_linear import (
    FPWrapper,
    RangeLinearEmbeddingWrapper,
    RangeLinearFakeQuantWrapper,
    RangeLinearQuantConcatWrapper,
    RangeLinearQuantEltwiseAddWrapper,
    RangeLinearQuantEltwiseMultWrapper,
    RangeLinearQuantMatmulWrapper,
    RangeLinearQuantParamLayerWrapper,
    RangeLinearQuantWrapper,
)
from distiller_ng.quantization.sim_bn_fold import SimulatedFoldedBatchNorm
from distiller_ng.quantization.wrpn import WRPNQuantizer
from distiller_ng.quantization.xnor import XNORQuantizer

__all__ = [
    "FP_BKP_PREFIX",
    "QUANTIZERS",
    "AciqAsymmetricClipper",
    "AciqClipper",
    "AciqSymmetricClipper",
    "ClipMode",
    "ClippedLinearQuantization",
    "DorefaQuantizer",
    "FPWrapper",
    "FakeLinearQuantization",
    "FakeQuantizationWrapper",
    "LSQActivation",
    "LSQQuantizer",
    "LearnedClippedLinearQuantization",
    "LinearQuantMode",
    "LinearQuantizeSTE",
    "ModuleQuantMode",
    "NCFQuantAwareTrainQuantizer",
    "PACTQuantizer",
    "ParamToQuantize",
    "PlanRow",
    "PostTrainLinearQuantizer",
    "QBits",
    "QuantAwareTrainRangeLinearQuantizer",
    "QuantPlan",
    "QuantizedLayer",
    "Quantizer",
    "RangeLinearEmbeddingWrapper",
    "RangeLinearFakeQuantWrapper",
    "RangeLinearQuantConcatWrapper",
    "RangeLinearQuantEltwiseAddWrapper",
    "RangeLinearQuantEltwiseMultWrapper",
    "RangeLinearQuantMatmulWrapper",
    "RangeLinearQuantParamLayerWrapper",
    "RangeLinearQuantWrapper",
    "SimulatedFoldedBatchNorm",
    "TensorQuantMetadata",
    "WRPNQuantizer",
    "XNORQuantizer",
    "XnorActivation",
    "XnorScale",
    "add_post_train_quant_args",
    "approx_scale_as_mult_and_shift",
    "asymmetric_linear_quantization_params",
    "clamp",
    "distiller_qparams_to_pytorch",
    "distiller_quantized_tensor_to_pytorch",
    "get_quant_params_from_stats_dict",
    "get_quant_params_from_tensor",
    "get_quantized_range",
    "get_scale_approximation_mult",
    "get_scale_approximation_params",
    "get_scale_approximation_shift_bits",
    "get_tensor_avg_max_abs",
    "get_tensor_avg_min_max",
    "get_tensor_max_abs",
    "get_tensor_mean_n_stds_max_abs",
    "get_tensor_mean_n_stds_min_max",
    "get_tensor_min_max",
    "is_linear_quant_mode_asymmetric",
    "is_linear_quant_mode_symmetric",
    "linear_dequantize",
    "linear_quantize",
    "linear_quantize_clamp",
    "symmetric_linear_quantization_params",
]
