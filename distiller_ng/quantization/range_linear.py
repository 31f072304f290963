"""Post-training and aware linear quantization under Distiller's module name (re-exports)."""

from distiller_ng.quantization.post_train import PostTrainLinearQuantizer
from distiller_ng.quantization.ptq_settings import (
    ModuleQuantMode,
    NoStatsError,
    QuantSettings,
    TensorQuantMetadata,
    linear_quantize_clamp_with_metadata,
)
from distiller_ng.quantization.qat_range_linear import QuantAwareTrainRangeLinearQuantizer
from distiller_ng.quantization.quant_params import (
    ClipMode,
    get_quant_params_from_stats_dict,
    get_quant_params_from_tensor,
)
from distiller_ng.quantization.range_linear_eltwise import (
    RangeLinearQuantConcatWrapper,
    RangeLinearQuantEltwiseAddWrapper,
    RangeLinearQuantEltwiseMultWrapper,
    RangeLinearQuantMatmulWrapper,
)
from distiller_ng.quantization.range_linear_fake import (
    FPWrapper,
    RangeLinearEmbeddingWrapper,
    RangeLinearFakeQuantWrapper,
)
from distiller_ng.quantization.range_linear_params import RangeLinearQuantParamLayerWrapper
from distiller_ng.quantization.range_linear_wrappers import RangeLinearQuantWrapper

__all__ = [
    "ClipMode",
    "FPWrapper",
    "ModuleQuantMode",
    "NoStatsError",
    "PostTrainLinearQuantizer",
    "QuantAwareTrainRangeLinearQuantizer",
    "QuantSettings",
    "RangeLinearEmbeddingWrapper",
    "RangeLinearFakeQuantWrapper",
    "RangeLinearQuantConcatWrapper",
    "RangeLinearQuantEltwiseAddWrapper",
    "RangeLinearQuantEltwiseMultWrapper",
    "RangeLinearQuantMatmulWrapper",
    "RangeLinearQuantParamLayerWrapper",
    "RangeLinearQuantWrapper",
    "TensorQuantMetadata",
    "get_quant_params_from_stats_dict",
    "get_quant_params_from_tensor",
    "linear_quantize_clamp_with_metadata",
]
