"""What ``benchmark_model`` is given, as something that runs in its own runtime (layer 4)."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.export.onnx_runtime import OnnxModule, kernels_of
from distiller_ng.export.openvino_runtime import OpenVinoModule
from distiller_ng.export.torchao_runtime import TorchaoModule, load_torchao
from distiller_ng.names import unwrap
from distiller_ng.quantization._configuration import quantization_of

__all__ = ["Subject", "as_subject", "loaded"]

_INTEGER = ("QLinear", "Integer", "QGemm", "QAttention", "DynamicQuantize")
_LOADERS: dict[str, Callable[[Path, int], nn.Module]] = {
    ".onnx": lambda path, threads: OnnxModule(path, threads=threads),
    ".xml": lambda path, threads: OpenVinoModule(path, threads=threads),
    ".pt2": lambda path, threads: load_torchao(path).compile_now(),
}


@dataclass(frozen=True, slots=True)
class Subject:
    """One model to measure: what runs, in which runtime, what it computes with, and bytes of its file.

    ``path``: of the file it was given as.
    """

    name: str
    model: nn.Module
    runtime: str
    precision: str
    file_bytes: int
    path: Path | None = None


def as_subject(name: str, value: Any, threads: int) -> Subject:
    """A module, or a file of one of the exporters, ready to run with so many threads.

    Raises ``FileNotFoundError``, and :class:`ArgumentError` for anything that cannot run.
    """
    if isinstance(value, nn.Module):
        model = value
        if isinstance(model, OnnxModule):
            model = OnnxModule(model.content, threads=threads)
        return Subject(name, model, _runtime(model), _precision(model), _bytes(model))
    if not isinstance(value, str | os.PathLike):
        raise ArgumentError(
            f"{name!r} must be a model or the path of a file, got {type(value).__name__}", argument=("models", name)
        )
    path = Path(value).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {os.fspath(value)!r} (model {name!r})")
    model = loaded(path, threads)
    size = sum(one.stat().st_size for one in (path, path.with_suffix(".bin")) if one.is_file())
    return Subject(name, model, _runtime(model), _precision(model), size, path)


def loaded(path: Path, threads: int) -> nn.Module:
    """The model of a file. Raises :class:`ArgumentError` for a kind of file that does not run by itself."""
    if path.suffix not in _LOADERS:
        raise ArgumentError(
            f"{path.name} does not run by itself: give .onnx, .xml (OpenVINO) or .pt2 (torchao) files, and load others "
            "first (load_model, load_packed)",
            argument=("models",),
        )
    return _LOADERS[path.suffix](path, threads)


def _runtime(model: nn.Module) -> str:
    kinds = {OnnxModule: "ONNX Runtime", OpenVinoModule: "OpenVINO", TorchaoModule: "torchao"}
    for kind, text in kinds.items():
        if isinstance(model, kind):
            return text
    return "torch.compile" if hasattr(model, "_orig_mod") else "torch"


def _precision(model: nn.Module) -> str:
    if isinstance(model, OnnxModule):
        kernels = kernels_of(model.content)
        integer = sum(count for kind, count in kernels.items() if any(mark in kind for mark in _INTEGER))
        return "int8" if integer else "float32"
    if isinstance(model, OpenVinoModule):
        return "int8" if any(kind.endswith(("u8", "i8")) for kind in model.kernels()) else "float32"
    if isinstance(model, TorchaoModule):
        return "int8" if model.compile_now().kernels else "float32"
    plain = unwrap(model)
    if quantization_of(plain) is not None:
        return "simulated"
    kinds = {tensor.dtype for tensor in plain.parameters() if tensor.is_floating_point()}
    return " + ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds)) or "-"


def _bytes(model: nn.Module) -> int:
    if isinstance(model, OnnxModule | TorchaoModule):
        return len(model.content)
    if isinstance(model, OpenVinoModule):
        return 0  # known of files alone
    buffer = io.BytesIO()
    torch.save(unwrap(model).state_dict(), buffer)
    return buffer.tell()
