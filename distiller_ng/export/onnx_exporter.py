"""ONNX files whose integer layers run as integers in ONNX Runtime (layer 4).

QuantizeLinear and DequantizeLinear around every operator (QDQ), as ONNX Runtime, OpenVINO and TensorRT read them:
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from distiller_ng.errors import ArgumentError, ExportError, did_you_mean
from distiller_ng.export._dequantize import FAKE_QUANTIZE
from distiller_ng.export._lowering import (
    choose_activation_type_,
    choose_table_type_,
    flatten_linear_,
    integer_biases_,
    reduce_weight_range_,
    repeat_grids_,
)
from distiller_ng.export._naming import layer_name
from distiller_ng.export._onnx_precision import onnx_layers
from distiller_ng.export._onnx_translation import OPSET
from distiller_ng.export._onnx_writing import onnx_bytes
from distiller_ng.export.added_grids import with_missing_grids
from distiller_ng.export.onnx_runtime import OnnxModule, kernels_of
from distiller_ng.export.quantized_graph import QuantizedGraph, quantized_graph
from distiller_ng.export.verification import compare
from distiller_ng.graph.inputs import ExampleInputsLike, as_example_inputs
from distiller_ng.ops.files import replacing
from distiller_ng.quantization.exporters import EXPORTERS, Exporter, ExportReport, PathLike

__all__ = ["OnnxExporter", "OnnxOptions"]

_PRESETS = {"x86": torch.uint8, "signed": torch.int8, "as_trained": None}


@dataclass(frozen=True, slots=True)
class OnnxOptions:
    """How an ONNX file is written.

    ``preset``: ``"x86"`` stores activations as uint8 (fastest with int8 weights on x86), ``"signed"`` as int8 (ARM,
    TensorRT), ``"as_trained"`` as the quantizer had them; the values are the same. ``reduce_range``: weights of 7 bits,
    for processors without VNNI instructions. ``tolerance``: the largest accepted noise of the file against the model on
    the example inputs (RMS of the difference over RMS of the output, 0.1 is 20 dB); None accepts all. ``verify``: run
    the file and compare. ``dynamic_batch``: let the batch vary. ``input_names``, ``output_names``: of the file.
    ``threads`` of the module that the report holds. ``calibration_data``: samples, or batches of them, on which the
    ranges of activations are observed that training left in floating point and integer kernels need (ONNX Runtime's
    convolutions round their output; behind a residual addition Distiller's training does not). They get 8-bit grids,
    and the report says which and what that does to the outputs; None leaves those layers in floating point.
    """

    preset: str = "x86"
    reduce_range: bool = False
    tolerance: float | None = 0.1
    verify: bool = True
    dynamic_batch: bool = True
    opset: int = OPSET
    input_names: tuple[str, ...] | None = None
    output_names: tuple[str, ...] | None = None
    threads: int | None = None
    calibration_data: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.preset not in _PRESETS:
            raise ArgumentError(f"unknown preset {self.preset!r}. {did_you_mean(self.preset, _PRESETS)}")
        if self.opset < OPSET:
            raise ArgumentError(f"opset must be {OPSET} or more, got {self.opset!r}", argument=("opset",))

    @classmethod
    def parse(cls, options: dict[str, Any]) -> OnnxOptions:
        """From keyword arguments. Raises :class:`ArgumentError` for unknown ones."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise ArgumentError(f"unknown option {name!r}. {did_you_mean(name, known)}", argument=(name,))
        return cls(**options)


@EXPORTERS.register("onnx")
class OnnxExporter(Exporter):
    """Writes a model as ONNX; quantized ones run with integer kernels, floating point ones as they are.

    ``OnnxExporter().export(model, images, "model.onnx")`` returns a report whose ``model`` runs in ONNX Runtime::

        report = quantizer.convert("onnx", "model.onnx", images)
        print(report)  # which layers compute with integers, and how far the file is from the model
        scores = report.model(images)

    Options: :class:`OnnxOptions`.
    """

    suffix: ClassVar[str] = ".onnx"
    packages = ("onnx", "onnxscript", "onnxruntime")
    extra = "onnx"

    def issues(self, model: nn.Module, example_inputs: ExampleInputsLike, **options: Any) -> list[str]:
        """What cannot be exported (it raises that), and every layer that stays in floating point, with the reason."""
        chosen = OnnxOptions.parse(options)
        try:
            graph = lowered(model, example_inputs, chosen)
        except ExportError as error:
            return [str(error)]
        blocked = obstacles(graph)
        floating = [f"layer {one.name!r}: {one.reason}" for one in onnx_layers(graph) if not one.is_quantized]
        return [*blocked, *floating, *graph.notes]

    def export(
        self, model: nn.Module, example_inputs: ExampleInputsLike, path: PathLike | None = None, **options: Any
    ) -> ExportReport:
        """Write the file and compare it, as it runs, with the model; without ``path`` nothing is written.

        Raises :class:`ExportError` when the model cannot be exported or the file disagrees with it, and
        :class:`ArgumentError` for unknown options and missing packages.
        """
        chosen = OnnxOptions.parse(options)
        inputs = as_example_inputs(example_inputs)
        graph = lowered(model, inputs, chosen)
        blocked = obstacles(graph)
        if blocked:
            raise ExportError("the model cannot be exported to ONNX: " + "; ".join(blocked))
        content = onnx_bytes(
            graph, opset=chosen.opset, input_names=chosen.input_names, output_names=chosen.output_names
        )
        module = OnnxModule(content, threads=chosen.threads)
        agreement = None
        if chosen.verify:
            agreement = compare(model, module, inputs, steps=output_steps(graph), tolerance=chosen.tolerance)
        return ExportReport(
            "ONNX",
            () if path is None else (_write(path, content),),
            len(content),
            float_bytes(model),
            onnx_layers(graph),
            graph.notes,
            agreement,
            module,
            {"kernels": kernels_of(content), "added_grids": dict(graph.added_grids)},
        )


def lowered(
    model: nn.Module,
    example_inputs: ExampleInputsLike,
    options: OnnxOptions,
    *,
    integer_biases: bool = True,
    rounds_outputs: bool = True,
) -> QuantizedGraph:
    """The quantized graph in the form ONNX Runtime has kernels for. Raises :class:`ExportError`.

    ``rounds_outputs``: the runtime's integer convolutions need a grid for what they return.
    """
    graph = quantized_graph(model, example_inputs, dynamic_batch=options.dynamic_batch)
    data, tolerance = options.calibration_data, options.tolerance
    graph = with_missing_grids(graph, model, data, conv_outputs=rounds_outputs, tolerance=tolerance)
    flatten_linear_(graph)
    repeat_grids_(graph)
    if options.reduce_range:
        reduce_weight_range_(graph)
    graph = graph.renewed()
    wanted = _PRESETS[options.preset]
    if wanted is not None:
        choose_activation_type_(graph, wanted)
        choose_table_type_(graph, wanted)
    if integer_biases:
        integer_biases_(graph.renewed(), largest=63 if options.reduce_range else 127)
    return graph.renewed()


def obstacles(graph: QuantizedGraph) -> list[str]:
    """What makes an export impossible."""
    found = []
    for node in graph.module.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE):
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.dtype != torch.float32:
            found.append(
                f"{layer_name(node)!r} quantizes {value.dtype}, and QuantizeLinear takes float32: call model.float()"
            )
        elif graph.grids.written(node) is None:
            found.append(f"{layer_name(node)!r} finds its range in each batch: collect statistics for a fixed one")
    return found


def output_steps(graph: QuantizedGraph) -> list[float | None]:
    """The step of each output's grid; None for floating point."""
    (output,) = graph.module.graph.find_nodes(op="output")
    nodes: list[fx.Node] = []
    fx.map_arg(output.args, nodes.append)
    grids = [graph.grids.of(node) for node in nodes]
    return [None if grid is None or grid.axis is not None else float(grid.scale) for grid in grids]


def float_bytes(model: nn.Module) -> int:
    """Bytes of the model's parameters in their own dtype, tied ones once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _write(path: PathLike, content: bytes) -> Path:
    with replacing(path) as file:
        file.write(content)
    return Path(path)
