"""Models as native code with int8 kernels, by way of torchao's PT2E operators and inductor (layer 4)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from torch import fx, nn

from distiller_ng.errors import ArgumentError, ExportError, did_you_mean
from distiller_ng.export.added_grids import with_missing_grids
from distiller_ng.export.quantized_graph import QuantizedGraph, quantized_graph
from distiller_ng.export.torchao_lowering import lower_to_pt2e_
from distiller_ng.export.torchao_runtime import TorchaoModule, program_bytes
from distiller_ng.export.verification import compare
from distiller_ng.graph.inputs import ExampleInputsLike, as_example_inputs
from distiller_ng.ops.files import replacing
from distiller_ng.quantization.exporters import EXPORTERS, Exporter, ExportReport, LayerPrecision, PathLike

__all__ = ["TorchaoExporter", "TorchaoOptions"]


@dataclass(frozen=True, slots=True)
class TorchaoOptions:
    """How a program is exported and compiled.

    ``tolerance``: the largest accepted noise of the compiled model against the simulation on the example inputs (RMS of
    the difference over RMS of the output); None accepts all. ``verify``: compile the program, run it and compare;
    without it the program is compiled at its first call. ``dynamic_batch``: let the batch vary. ``batch_sizes``: sizes
    that get code of their own (see :class:`TorchaoModule`). ``calibration_data``: samples, or batches of them, that
    give 8-bit grids to inputs of quantized layers which training left in floating point.
    """

    tolerance: float | None = 0.1
    verify: bool = True
    dynamic_batch: bool = True
    batch_sizes: tuple[int, ...] = ()
    calibration_data: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def parse(cls, options: dict[str, Any]) -> TorchaoOptions:
        """From keyword arguments. Raises :class:`ArgumentError` for unknown ones."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise ArgumentError(f"unknown option {name!r}. {did_you_mean(name, known)}", argument=(name,))
        return cls(**{**options, "batch_sizes": tuple(options.get("batch_sizes", ()))})


@EXPORTERS.register("torchao")
class TorchaoExporter(Exporter):
    """Compiles a quantized model with inductor, whose oneDNN kernels compute convolutions and linear layers in int8.

    Every quantized layer is rewritten by us, whatever class its module has: torchao's own annotator leaves subclasses
    of ``Conv2d`` in floating point without a word. ::

        report = quantizer.convert("torchao", "net.pt2", images)
        print(report)  # which layers compute with integers, and how many kernels run
        scores = report.model(images)
        model = load_torchao("net.pt2", batch_sizes=[128])  # elsewhere

    The file is an exported program with int8 weights; native code is made from it where it runs, which takes some ten
    seconds and a C++ compiler. Limits: x86 processors (with AVX512-VNNI or better); weights symmetric, of at most 8
    bits; convolutions of one or two dimensions and linear layers; products of two activations (attention) stay in
    floating point.

    Options: :class:`TorchaoOptions`.
    """

    suffix: ClassVar[str] = ".pt2"
    packages = ("torchao",)
    extra = "torchao"

    def issues(self, model: nn.Module, example_inputs: ExampleInputsLike, **options: Any) -> list[str]:
        """What cannot be exported, and every layer that stays in floating point, with the reason."""
        chosen = TorchaoOptions.parse(options)
        try:
            graph, layers = _lowered(model, example_inputs, chosen)
        except ExportError as error:
            return [str(error)]
        return [*(f"layer {one.name!r}: {one.reason}" for one in layers if one.reason), *graph.notes]

    def export(
        self, model: nn.Module, example_inputs: ExampleInputsLike, path: PathLike | None = None, **options: Any
    ) -> ExportReport:
        """Write the program and compare the compiled model with ``model``; without ``path`` nothing is written.

        Raises :class:`ExportError` when the model cannot be exported or compiled, or disagrees with the simulation, and
        :class:`ArgumentError` for unknown options and missing packages.
        """
        chosen = TorchaoOptions.parse(options)
        inputs = as_example_inputs(example_inputs)
        graph, layers = _lowered(model, inputs, chosen)
        content = program_bytes(graph.program())
        module = TorchaoModule(content, batch_sizes=chosen.batch_sizes)
        agreement = None
        details: dict[str, Any] = {"added_grids": dict(graph.added_grids)}
        if chosen.verify:
            agreement = compare(model, module.compile_now(), inputs, steps=_steps(graph), tolerance=chosen.tolerance)
            details["kernels"] = dict(module.kernels)
        notes = (*graph.notes, *_missing(layers, module.kernels if chosen.verify else None))
        paths = () if path is None else (_write(path, content),)
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        return ExportReport("torchao", paths, len(content), size, layers, notes, agreement, module, details)


def _lowered(
    model: nn.Module, example_inputs: ExampleInputsLike, options: TorchaoOptions
) -> tuple[QuantizedGraph, tuple[LayerPrecision, ...]]:
    graph = quantized_graph(model, example_inputs, dynamic_batch=options.dynamic_batch)
    data, tolerance = options.calibration_data, options.tolerance
    graph = with_missing_grids(graph, model, data, conv_outputs=False, tolerance=tolerance)
    layers = lower_to_pt2e_(graph)
    return graph, layers


def _missing(layers: tuple[LayerPrecision, ...], kernels: dict[str, int] | None) -> list[str]:
    """A note where the compiler made fewer int8 kernels than there are integer layers."""
    expected = sum(1 for layer in layers if layer.is_quantized and layer.operator != "embedding")
    if kernels is None or sum(kernels.values()) >= expected:
        return []
    return [f"the compiler made int8 kernels of {sum(kernels.values())} of {expected} integer layers on this machine"]


def _steps(graph: QuantizedGraph) -> list[float | None]:
    """The step of each output's grid; None for floating point."""
    (output,) = graph.module.graph.find_nodes(op="output")
    nodes: list[fx.Node] = []
    fx.map_arg(output.args, nodes.append)
    return [_step_of(node) for node in nodes]


def _step_of(node: fx.Node) -> float | None:
    is_dequantized = "dequantize_per_tensor" in str(node.target) and len(node.args) > 1
    return float(node.args[1]) if is_dequantized else None  # type: ignore[arg-type]


def _write(path: PathLike, content: bytes) -> Path:
    with replacing(path) as file:
        file.write(content)
    return Path(path)
