"""OpenVINO models (``.xml`` and ``.bin``) whose integer layers run as integers on the CPU (layer 4)."""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from distiller_ng.errors import ExportError
from distiller_ng.export._onnx_precision import openvino_layers
from distiller_ng.export._onnx_writing import onnx_bytes
from distiller_ng.export._openvino_layers import as_they_run, without_shared_zero_points
from distiller_ng.export.onnx_exporter import OnnxOptions, float_bytes, lowered, obstacles, output_steps
from distiller_ng.export.openvino_runtime import OpenVinoModule
from distiller_ng.export.quantized_graph import QuantizedGraph
from distiller_ng.export.verification import compare
from distiller_ng.graph.inputs import ExampleInputsLike, as_example_inputs
from distiller_ng.ops.optional import require
from distiller_ng.quantization.exporters import EXPORTERS, Exporter, ExportReport, PathLike

__all__ = ["OpenVinoExporter"]


@EXPORTERS.register("openvino")
class OpenVinoExporter(Exporter):
    """Writes a model for OpenVINO, by way of ONNX: ``quantizer.convert("openvino", "model.xml", images)``.

    The weights are in ``model.bin`` beside it. Convolutions whose outputs stay in floating point run as integers too.
    Options: :class:`OnnxOptions`, and the packages of ``distiller_ng[openvino]``.
    """

    suffix: ClassVar[str] = ".xml"
    packages = ("openvino", "onnx", "onnxscript", "onnxruntime")
    extra = "openvino"

    def issues(self, model: nn.Module, example_inputs: ExampleInputsLike, **options: Any) -> list[str]:
        """What cannot be exported, and every layer that stays in floating point, with the reason.

        What OpenVINO decides when it compiles the model is in the report of :meth:`export` alone.
        """
        try:
            graph = _lowered(model, example_inputs, OnnxOptions.parse(options))
        except ExportError as error:
            return [str(error)]
        floating = [f"layer {one.name!r}: {one.reason}" for one in openvino_layers(graph) if not one.is_quantized]
        return [*obstacles(graph), *floating, *graph.notes]

    def export(
        self, model: nn.Module, example_inputs: ExampleInputsLike, path: PathLike | None = None, **options: Any
    ) -> ExportReport:
        """Write both files and compare the model, as it runs, with the original; without ``path`` nothing is written.

        Raises :class:`ExportError` when the model cannot be exported or disagrees, :class:`ArgumentError` for unknown
        options and missing packages.
        """
        chosen = OnnxOptions.parse(options)
        openvino: Any = require("openvino", "openvino", "exporting to OpenVINO")
        inputs = as_example_inputs(example_inputs)
        graph = _lowered(model, inputs, chosen)
        blocked = obstacles(graph)
        if blocked:
            raise ExportError("the model cannot be exported to OpenVINO: " + "; ".join(blocked))
        names = {"input_names": chosen.input_names, "output_names": chosen.output_names}
        content = onnx_bytes(graph, opset=chosen.opset, clips_integers=False, **names)
        content = without_shared_zero_points(content)
        with tempfile.TemporaryDirectory() as folder:
            network = _converted(openvino, content, Path(folder))
            module = OpenVinoModule(network, threads=chosen.threads)
            agreement = None
            if chosen.verify:
                agreement = compare(model, module, inputs, steps=output_steps(graph), tolerance=chosen.tolerance)
            files = _written(openvino, network, Path(folder, "saved.xml") if path is None else Path(path))
            size = sum(file.stat().st_size for file in files)
        return ExportReport(
            "OpenVINO",
            () if path is None else files,
            size,
            float_bytes(model),
            as_they_run(openvino_layers(graph), graph, module),
            graph.notes,
            agreement,
            module,
            {"kernels": module.kernels(), "added_grids": dict(graph.added_grids)},
        )


def _lowered(model: nn.Module, inputs: ExampleInputsLike, options: OnnxOptions) -> QuantizedGraph:
    """OpenVINO adds biases in floating point, and its integer convolutions need not round what they return."""
    return lowered(model, inputs, options, integer_biases=False, rounds_outputs=False)


def _converted(openvino: Any, content: bytes, folder: Path) -> Any:
    source = folder / "model.onnx"
    source.write_bytes(content)
    failures: tuple[type[Exception], ...] = (RuntimeError, *_conversion_failures())
    try:
        return openvino.convert_model(str(source))
    except failures as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ExportError(f"OpenVINO cannot read the model: {' '.join(lines[-3:])}") from error


def _conversion_failures() -> tuple[type[Exception], ...]:
    """What OpenVINO's reader of ONNX raises; none of it is a ``RuntimeError``."""
    frontend: Any = require("openvino.frontend", "openvino", "exporting to OpenVINO")
    return tuple(one for one in vars(frontend).values() if isinstance(one, type) and issubclass(one, Exception))


def _written(openvino: Any, network: Any, path: Path) -> tuple[Path, Path]:
    """Both files, each moved to its place in one step; the one that is opened comes last."""
    target = path if path.suffix == ".xml" else path.with_name(path.name + ".xml")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{uuid.uuid4().hex}.xml")
    try:
        openvino.save_model(network, str(temporary), compress_to_fp16=False)
        os.replace(temporary.with_suffix(".bin"), target.with_suffix(".bin"))
        os.replace(temporary, target)
    finally:
        for left in (temporary, temporary.with_suffix(".bin")):
            with contextlib.suppress(FileNotFoundError):
                left.unlink()
    return target, target.with_suffix(".bin")
