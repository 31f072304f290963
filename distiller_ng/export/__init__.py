"""Models for real runtimes: ONNX Runtime, OpenVINO, torchao, packed and sparse files (layer 4).

One file an exporter, registered in ``quantization.exporters.EXPORTERS``. All of them start from
:func:`quantized_graph`: the traced model with its weights as integers and every grid written down.
"""

from distiller_ng.export.benchmarking import BenchmarkResult, BenchmarkRow, benchmark_model
from distiller_ng.export.dynamic import quantize_dynamic
from distiller_ng.export.low_precision import PrecisionReport, convert_precision
from distiller_ng.export.onnx_runtime import OnnxModule
from distiller_ng.export.openvino_runtime import OpenVinoModule
from distiller_ng.export.packed import PackedReport, save_packed
from distiller_ng.export.packed_loading import load_packed
from distiller_ng.export.qat_conversion import quantize_qat_export
from distiller_ng.export.quantized_graph import QuantizedGraph, quantized_graph
from distiller_ng.export.sparse import save_sparse
from distiller_ng.export.sparse_linear import SparseLinearReport, dense_linear_, sparse_linear_
from distiller_ng.export.torchao_runtime import TorchaoModule, load_torchao
from distiller_ng.quantization.exporters import (
    EXPORTERS,
    Agreement,
    Exporter,
    ExportReport,
    LayerPrecision,
    export_issues,
    export_model,
)

__all__ = [
    "EXPORTERS",
    "Agreement",
    "BenchmarkResult",
    "BenchmarkRow",
    "ExportReport",
    "Exporter",
    "LayerPrecision",
    "OnnxModule",
    "OpenVinoModule",
    "PackedReport",
    "PrecisionReport",
    "QuantizedGraph",
    "SparseLinearReport",
    "TorchaoModule",
    "benchmark_model",
    "convert_precision",
    "dense_linear_",
    "export_issues",
    "export_model",
    "load_packed",
    "load_torchao",
    "quantize_dynamic",
    "quantize_qat_export",
    "quantized_graph",
    "save_packed",
    "save_sparse",
    "sparse_linear_",
]
