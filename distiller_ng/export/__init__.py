"""Models for real runtimes: ONNX Runtime, OpenVINO, torchao, packed and sparse files (layer 4).

One file an exporter, registered in ``quantization.exporters.EXPORTERS``. All of them start from
:func:`quantized_graph`: the traced model with its weights as integers and every grid written down.
"""

from distiller_ng.export.onnx_runtime import OnnxModule
from distiller_ng.export.openvino_runtime import OpenVinoModule
from distiller_ng.export.qat_conversion import quantize_qat_export
from distiller_ng.export.quantized_graph import QuantizedGraph, quantized_graph
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
    "ExportReport",
    "Exporter",
    "LayerPrecision",
    "OnnxModule",
    "OpenVinoModule",
    "QuantizedGraph",
    "export_issues",
    "export_model",
    "quantize_qat_export",
    "quantized_graph",
]
