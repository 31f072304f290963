"""Dynamic int8: weights are integers, activations are quantized by the range they have in each call (layer 4).

Nothing has to be calibrated. Matrix products run in int8, everything between them in floating point; it pays for large
linear layers and LSTMs, where reading the weights takes the time.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from distiller_ng.errors import ArgumentError, ExportError, did_you_mean
from distiller_ng.export.onnx_runtime import OnnxModule, kernels_of
from distiller_ng.export.quantized_graph import QuantizedGraph, quantized_graph
from distiller_ng.export.torchao_lowering import lower_dynamically_
from distiller_ng.export.torchao_runtime import TorchaoModule, program_bytes
from distiller_ng.export.verification import compare
from distiller_ng.graph.inputs import ExampleInputs, ExampleInputsLike, as_example_inputs
from distiller_ng.names import unwrap
from distiller_ng.ops.files import replacing
from distiller_ng.ops.optional import require
from distiller_ng.quantization._configuration import quantization_of
from distiller_ng.quantization.exporters import (
    EXPORTERS,
    Exporter,
    ExportReport,
    LayerPrecision,
    PathLike,
    export_model,
)

__all__ = ["DynamicOnnxExporter", "DynamicTorchaoExporter", "LayerTypes", "quantize_dynamic"]

#: Layer classes, or their names: ``{nn.LSTM, nn.Linear}`` or ``{"LSTM", "Linear"}``.
LayerTypes: TypeAlias = "Iterable[type[nn.Module] | str]"

#: The traced operator of each layer type, and the ONNX operators ONNX Runtime quantizes it as.
_OPERATORS = {"Linear": "linear", "LSTM": "lstm", "Embedding": "embedding"}
_IN_ONNX = {"Linear": ["MatMul", "Gemm"], "LSTM": ["LSTM"], "Embedding": ["Gather"]}
_PREPARED = "onnx.quant.pre_process"
_RUNTIMES = {"onnx": "onnx_dynamic", "torchao": "torchao_dynamic"}


def quantize_dynamic(
    model: nn.Module,
    example_inputs: ExampleInputsLike,
    types: LayerTypes | None = None,
    *,
    runtime: str = "onnx",
    path: PathLike | None = None,
    **options: Any,
) -> ExportReport:
    """A floating point model with int8 weights in the layers of the given types, as it runs in ``runtime``.

    ``types``: of ``nn.Linear``, ``nn.LSTM`` and ``nn.Embedding`` for ``runtime="onnx"`` (None: the first two),
    ``nn.Linear`` for ``"torchao"`` (native code by inductor). ``report.model`` is called like the model, and ``path``
    keeps it as a file.
    ``tolerance``: the largest accepted noise against the model on ``example_inputs`` (RMS of the difference over RMS of
    the output, default 0.2, which is 14 dB); None accepts all. ::

        report = quantize_dynamic(model, tokens, {nn.LSTM, nn.Linear}, path="tagger.int8.onnx")
        print(report)                     # what is int8, and how far it is from the model
        scores = report.model(tokens)

    Two bidirectional LSTM layers of 128 and a linear layer, 4 x 20 tokens, one thread: 0.45 ms against 0.86 ms in
    floating point in ONNX Runtime, file 0.27x. Limits: convolutions and GRUs stay in floating point (int8 convolutions
    with dynamic ranges are slower); small layers may become slower, so measure with ``benchmark_model``.

    Raises :class:`ArgumentError` for types the runtime has no int8 kernel for, an unknown runtime and a model that is
    quantized already; :class:`ExportError` for a model without such layers, or more noise than ``tolerance``.
    """
    if runtime not in _RUNTIMES:
        raise ArgumentError(f"unknown runtime {runtime!r}. {did_you_mean(runtime, _RUNTIMES)}", argument=("runtime",))
    return export_model(model, _RUNTIMES[runtime], example_inputs, path, types=types, **options)


class _DynamicExporter(Exporter):
    """What both runtimes share: the choice of layers, and the report."""

    supported: tuple[str, ...] = ()

    def issues(self, model: nn.Module, example_inputs: ExampleInputsLike, **options: Any) -> list[str]:
        """Every layer that stays in floating point, with the reason; or why nothing can be exported."""
        chosen = self._chosen(options.get("types"))
        try:
            graph = quantized_graph(model, example_inputs)
        except ExportError as error:
            return [str(error)]
        layers = _layers(graph, chosen)
        return [f"layer {layer.name!r}: {layer.reason}" for layer in layers if layer.reason]

    def export(
        self, model: nn.Module, example_inputs: ExampleInputsLike, path: PathLike | None = None, **options: Any
    ) -> ExportReport:
        """See :func:`quantize_dynamic`."""
        known = ("types", "tolerance", "verify", *self._own_options())
        for name in options:
            if name not in known:
                raise ArgumentError(f"unknown option {name!r}. {did_you_mean(name, known)}", argument=(name,))
        if quantization_of(unwrap(model)) is not None:
            raise ArgumentError("the model is quantized already: export it to 'onnx' or 'torchao'", argument=("model",))
        chosen = self._chosen(options.get("types"))
        inputs = as_example_inputs(example_inputs)
        graph = quantized_graph(model, inputs)
        layers = _layers(graph, chosen)
        if not any(layer.is_quantized for layer in layers):
            raise ExportError(f"the model has no {' or '.join(sorted(chosen))} layer to quantize")
        content, module, kernels = self._made(model, inputs, graph, chosen, options)
        agreement = None
        if options.get("verify", True):
            agreement = compare(model, module, inputs, tolerance=options.get("tolerance", 0.2))
        paths = () if path is None else (_write(path, content),)
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        details = {"kernels": kernels}
        return ExportReport(self.target, paths, len(content), size, layers, graph.notes, agreement, module, details)

    target: str = ""

    def _own_options(self) -> tuple[str, ...]:
        return ()

    def _made(
        self, model: nn.Module, inputs: ExampleInputs, graph: QuantizedGraph, chosen: set[str], options: dict[str, Any]
    ) -> tuple[bytes, nn.Module, dict[str, int]]:
        """The file's content, the module that runs it, and which integer kernels run."""
        raise ArgumentError(f"{type(self).__name__} writes nothing: use a subclass")  # pragma: no cover

    def _chosen(self, types: Any) -> set[str]:
        """The names of the layer types."""
        if types is None:
            return {name for name in ("LSTM", "Linear") if name in self.supported}
        given = [types] if isinstance(types, str | type) else list(types)
        names = [one if isinstance(one, str) else getattr(one, "__name__", repr(one)) for one in given]
        names = [name.removeprefix("nn.") for name in names]
        wrong = [name for name in names if name not in self.supported]
        if wrong or not names:
            received = f"got {wrong[0]!r}" if wrong else "got none"
            message = f"types of layers that become int8 in {self.target}: {', '.join(self.supported)}; {received}"
            raise ArgumentError(message, argument=("types",))
        return set(names)


@EXPORTERS.register("onnx_dynamic")
class DynamicOnnxExporter(_DynamicExporter):
    """Dynamic int8 in ONNX Runtime: MatMulInteger for linear layers, DynamicQuantizeLSTM for LSTMs.

    Options: ``types``, ``tolerance``, ``verify``; ``per_channel`` (default True): one scale for each output channel;
    ``reduce_range``: weights of 7 bits, for processors without VNNI; ``threads`` of the report's module.
    """

    suffix = ".onnx"
    packages = ("onnx", "onnxscript", "onnxruntime")
    extra = "onnx"
    target = "ONNX Runtime (dynamic)"
    supported = tuple(_OPERATORS)

    def _own_options(self) -> tuple[str, ...]:
        return ("per_channel", "reduce_range", "threads")

    def _made(
        self, model: nn.Module, inputs: ExampleInputs, graph: QuantizedGraph, chosen: set[str], options: dict[str, Any]
    ) -> tuple[bytes, nn.Module, dict[str, int]]:
        floating = export_model(model, "onnx", inputs, verify=False).model.content
        content = _quantized_onnx(
            floating,
            [operator for name in sorted(chosen) for operator in _IN_ONNX[name]],
            per_channel=bool(options.get("per_channel", True)),
            reduce_range=bool(options.get("reduce_range", False)),
        )
        kernels = kernels_of(content)
        integer = {name: count for name, count in kernels.items() if "Dynamic" in name or "Integer" in name}
        if not integer and chosen != {"Embedding"}:
            raise ExportError(f"ONNX Runtime made no integer kernel of {', '.join(sorted(chosen))} in this model")
        return content, OnnxModule(content, threads=options.get("threads")), integer


@EXPORTERS.register("torchao_dynamic")
class DynamicTorchaoExporter(_DynamicExporter):
    """Dynamic int8 in native code: oneDNN's int8 linear layers, inputs quantized by their range in each call.

    Options: ``types``, ``tolerance``, ``verify``, ``batch_sizes`` (see :class:`TorchaoModule`).
    """

    suffix = ".pt2"
    packages = ("torchao",)
    extra = "torchao"
    target = "torchao (dynamic)"
    supported = ("Linear",)

    def _own_options(self) -> tuple[str, ...]:
        return ("batch_sizes",)

    def _made(
        self, model: nn.Module, inputs: ExampleInputs, graph: QuantizedGraph, chosen: set[str], options: dict[str, Any]
    ) -> tuple[bytes, nn.Module, dict[str, int]]:
        lower_dynamically_(graph)
        content = program_bytes(graph.program())
        module = TorchaoModule(content, batch_sizes=options.get("batch_sizes", ()))
        if options.get("verify", True):
            module.compile_now()
        return content, module, module.kernels


def _layers(graph: QuantizedGraph, chosen: set[str]) -> tuple[LayerPrecision, ...]:
    operators = {_OPERATORS[name] for name in chosen}
    found = []
    for layer in graph.layers:
        if layer.operator in operators:
            bits = None if layer.operator == "embedding" else 8
            found.append(LayerPrecision(layer.name, layer.operator, 8, bits))
        else:
            reason = "its type was not chosen" if layer.operator in _OPERATORS.values() else "no dynamic int8 kernel"
            found.append(LayerPrecision(layer.name, layer.operator, None, None, reason))
    return tuple(found)


def _quantized_onnx(content: bytes, operators: list[str], *, per_channel: bool, reduce_range: bool) -> bytes:
    """The file with its weights in int8. Raises :class:`ExportError` when ONNX Runtime's quantizer cannot."""
    onnx: Any = require("onnx", "onnx", "dynamic quantization in ONNX Runtime")
    runtime: Any = require("onnxruntime", "onnx", "dynamic quantization in ONNX Runtime")
    tools: Any = require("onnxruntime.quantization", "onnx", "dynamic quantization in ONNX Runtime")
    with tempfile.TemporaryDirectory() as folder:
        folded, target = Path(folder, "folded.onnx"), Path(folder, "quantized.onnx")
        session = runtime.SessionOptions()
        session.log_severity_level = 3
        # Weights that are put together from others (an LSTM's gates) must be constants to be quantized.
        session.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        session.optimized_model_filepath = str(folded)
        runtime.InferenceSession(content, session, providers=["CPUExecutionProvider"])
        proto = onnx.load(folded)
        del proto.graph.value_info[:]  # the quantizer turns weights around, and the shapes noted here would be wrong
        proto.metadata_props.add(key=_PREPARED, value="onnxruntime.quant")  # else it warns on the root logger
        root = logging.getLogger()
        handlers = list(root.handlers)
        try:
            tools.quantize_dynamic(
                proto,
                target,
                op_types_to_quantize=operators,
                per_channel=per_channel,
                reduce_range=reduce_range,
                weight_type=tools.QuantType.QInt8,
            )
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise ExportError(f"ONNX Runtime cannot quantize the model dynamically: {error}") from error
        finally:
            root.handlers[:] = handlers  # its calls of logging.info() give the root logger one
        return target.read_bytes()


def _write(path: PathLike, content: bytes) -> Path:
    with replacing(path) as file:
        file.write(content)
    return Path(path)
