"""A traced graph as the bytes of an ONNX file (layer 4)."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from distiller_ng.errors import ExportError
from distiller_ng.export._onnx_float_layers import keep_float_layers_
from distiller_ng.export._onnx_translation import translation_table
from distiller_ng.export.quantized_graph import QuantizedGraph
from distiller_ng.ops.optional import require

__all__ = ["onnx_bytes"]

_CHATTY = ("torch.onnx", "onnxscript", "onnx_ir", "torch.onnx._internal.exporter._registration")
_LIMIT = 2**31 - 1  # bytes of one protobuf message


def onnx_bytes(
    graph: QuantizedGraph,
    *,
    opset: int,
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
    clips_integers: bool = True,
) -> bytes:
    """The file's content. Raises :class:`ExportError` for operators ONNX does not have, naming them."""
    require("onnx", "onnx", "exporting to ONNX")
    require("onnxscript", "onnx", "exporting to ONNX")
    program = graph.program()
    try:
        with _quiet():
            written: Any = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                custom_translation_table=translation_table(clips_integers=clips_integers),
                input_names=input_names,
                output_names=output_names,
                verbose=False,
                optimize=True,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise ExportError(f"the model cannot be written as ONNX: {_reason(error)}") from error
    proto = written.model_proto
    _without_origins(proto)
    keep_float_layers_(proto)
    if proto.ByteSize() > _LIMIT:
        raise ExportError(f"the model needs {proto.ByteSize():,} bytes, and an ONNX file holds at most {_LIMIT:,}")
    content: bytes = proto.SerializeToString()
    return content


def _without_origins(proto: Any) -> None:
    """Without the source lines and paths of the machine that wrote it."""
    for graph in [proto.graph, *proto.functions]:
        del graph.metadata_props[:]
        for part in (*graph.node, *graph.value_info, *getattr(graph, "input", ()), *getattr(graph, "output", ())):
            if hasattr(part, "metadata_props"):
                del part.metadata_props[:]
            if hasattr(part, "doc_string"):
                part.ClearField("doc_string")
    for tensor in proto.graph.initializer:
        del tensor.metadata_props[:]
        tensor.ClearField("doc_string")


def _reason(error: BaseException) -> str:
    """The innermost cause, first line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _CHATTY]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
