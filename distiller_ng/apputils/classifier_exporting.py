"""Models of the image-classification application in real runtimes: ``--qe-convert-pytorch``, ``--export-onnx``
(layer 5).
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.graph.inputs import ExampleInputsLike
from distiller_ng.ops.modules import make_non_parallel_copy
from distiller_ng.quantization.exporters import export_model
from distiller_ng.quantization.integer_models import BACKENDS
from distiller_ng.thinning.functions import example_inputs_for

__all__ = ["add_export_arguments", "converted_model", "export_onnx"]

logger = logging.getLogger("distiller_ng.app")

_ONNX = "model.onnx"


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--export-onnx``."""
    group = parser.add_argument_group("Export")
    group.add_argument(
        "--export-onnx",
        nargs="?",
        const=_ONNX,
        metavar="FILE",
        help=f"write the model as ONNX into the run folder and stop (default: {_ONNX}); quantized models with integers",
    )


def converted_model(
    model: nn.Module,
    example: ExampleInputsLike,
    args: argparse.Namespace,
    folder: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """The quantized ``model`` computing with real integers, for ``--qe-pytorch-backend``.

    The backends are those of :func:`distiller_ng.quantization.integer_models.convert_distiller_ptq_model_to_pytorch`;
    what is written is ``quantized`` with the runtime's ending, in ``folder``. Raises :class:`ArgumentError` for another
    backend, :class:`ExportError` for what cannot be converted.
    """
    backend = getattr(args, "qe_pytorch_backend", None) or "fbgemm"
    if backend not in BACKENDS:
        raise ArgumentError(
            f"--qe-pytorch-backend {backend}: choose from {', '.join(BACKENDS)}", argument=("qe_pytorch_backend",)
        )
    target, options = BACKENDS[backend]
    report = export_model(model, target, example, None if folder is None else Path(folder) / "quantized", **options)
    logger.info("%s", report)
    converted: nn.Module = report.model
    return converted


def export_onnx(model: nn.Module, args: argparse.Namespace, folder: str | os.PathLike[str] | None = None) -> Path:
    """Write ``model`` as ONNX to ``args.export_onnx`` inside ``folder`` and compare the file with it; the path.

    Raises :class:`ExportError` where the model cannot be exported.
    """
    path = Path(folder or ".") / (args.export_onnx or _ONNX)
    exported = make_non_parallel_copy(model).cpu().eval()
    inputs = example_inputs_for(exported, None, args.dataset)
    report = export_model(exported, "onnx", inputs, path)
    logger.info("%s", report)
    return report.path
