"""ONNX files in 16-bit floating point (layer 4)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from distiller_ng.errors import ArgumentError, ExportError, did_you_mean, listed
from distiller_ng.export.low_precision import convert_precision
from distiller_ng.export.onnx_runtime import OnnxModule
from distiller_ng.export.verification import compare
from distiller_ng.graph.inputs import ExampleInputsLike, as_example_inputs
from distiller_ng.ops.files import replacing
from distiller_ng.ops.optional import require
from distiller_ng.quantization.exporters import EXPORTERS, Exporter, ExportReport, PathLike, export_model

__all__ = ["Float16OnnxExporter"]

#: What stays in 32 bits in ONNX files, as modules of these kinds do: sums and exponentials over many values.
_SENSITIVE_OPERATORS = (
    *("LayerNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"),
    *("Softmax", "LogSoftmax", "ReduceSum", "ReduceMean", "ReduceLogSumExp", "CumSum", "Range", "TopK", "Pow"),
)


@EXPORTERS.register("onnx_fp16")
class Float16OnnxExporter(Exporter):
    """ONNX with float16 weights and operators; inputs and outputs stay float32, norms and softmax too.

    ``export_model(model, "onnx_fp16", images, "net.fp16.onnx")``. Half the size. On processors ONNX Runtime computes
    most of it in float32 between casts, so it is not faster there; GPUs and NPUs are. Options: ``tolerance`` (0.05),
    ``verify``, ``threads``. Raises :class:`ExportError` for weights beyond 65504, by name, and more noise than
    ``tolerance``, and :class:`ArgumentError` for a quantized model.
    """

    suffix = ".onnx"
    packages = ("onnx", "onnxscript", "onnxruntime")
    extra = "onnx"

    def issues(self, model: nn.Module, example_inputs: ExampleInputsLike, **options: Any) -> list[str]:
        """Weights that float16 cannot hold, one sentence for the first; nothing else stands in the way."""
        try:
            convert_precision(model, "fp16")
        except ExportError as error:
            return [str(error)]
        return []

    def export(
        self, model: nn.Module, example_inputs: ExampleInputsLike, path: PathLike | None = None, **options: Any
    ) -> ExportReport:
        """Write the file and compare it, as it runs, with the model."""
        known = ("tolerance", "verify", "threads")
        for name in options:
            if name not in known:
                raise ArgumentError(f"unknown option {name!r}. {did_you_mean(name, known)}", argument=(name,))
        report = convert_precision(model, "fp16")  # refuses what cannot be
        inputs = as_example_inputs(example_inputs)
        floating = export_model(model, "onnx", inputs, verify=False).model.content
        content = _halved(floating)
        module = OnnxModule(content, threads=options.get("threads"))
        agreement = None
        if options.get("verify", True):
            agreement = compare(model, module, inputs, tolerance=options.get("tolerance", 0.05))
        if path is not None:
            with replacing(path) as file:
                file.write(content)
        paths = () if path is None else (Path(path),)
        notes = (f"in float32: operators {listed(_SENSITIVE_OPERATORS, limit=4)}",)
        return ExportReport("ONNX, float16", paths, len(content), report.float_bytes, (), notes, agreement, module, {})


def _halved(content: bytes) -> bytes:
    onnx: Any = require("onnx", "onnx", "writing float16 ONNX files")
    tools: Any = require("onnxruntime.transformers.float16", "onnx", "writing float16 ONNX files")
    blocked = [*tools.DEFAULT_OP_BLOCK_LIST, *_SENSITIVE_OPERATORS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that become 0
        try:
            proto = tools.convert_float_to_float16(
                onnx.load_from_string(content), keep_io_types=True, op_block_list=blocked
            )
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            raise ExportError(f"the ONNX file cannot be converted to float16: {error}") from error
    result: bytes = proto.SerializeToString()
    return result
