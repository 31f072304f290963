"""An ONNX file as a module that is called like the model it was made from (layer 4)."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, ExportError
from distiller_ng.graph.inputs import flat_tensors
from distiller_ng.ops.optional import require

__all__ = ["OnnxModule", "kernels_of"]


class OnnxModule(nn.Module):
    """Runs an ONNX model in ONNX Runtime on the CPU: ``OnnxModule("model.onnx")(images)``.

    ``model``: a path, or the bytes of a file. ``threads``: how many it may use; None leaves that to ONNX Runtime.
    Tensors are passed in the order of the model's inputs, keyword arguments by name; the result is a tensor, or a tuple
    of several. Copies and pickles carry the file's bytes. Raises :class:`ExportError` for a file ONNX Runtime refuses,
    :class:`ArgumentError` for another number of inputs; calling it raises :class:`ExportError` for inputs of another
    shape or type.
    """

    def __init__(self, model: str | os.PathLike[str] | bytes, *, threads: int | None = None) -> None:
        super().__init__()
        self.content = model if isinstance(model, bytes) else Path(model).read_bytes()
        self.threads = threads
        self._open()

    def _open(self) -> None:
        self.session = _session(self.content, self.threads)
        self.input_names = [one.name for one in self.session.get_inputs()]
        self.output_names = [one.name for one in self.session.get_outputs()]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns, from tensors of any nest."""
        named = {name: value for name, value in kwargs.items() if name in self.input_names}
        rest = {name: value for name, value in kwargs.items() if name not in named}
        free = [name for name in self.input_names if name not in named]
        tensors = flat_tensors((args, rest))
        if len(tensors) != len(free):
            raise ArgumentError(
                f"the ONNX model takes {len(self.input_names)} inputs ({', '.join(self.input_names)}), got "
                f"{len(tensors) + len(named)}"
            )
        feed = {name: _as_numpy(value) for name, value in [*zip(free, tensors, strict=True), *named.items()]}
        outputs = tuple(torch.from_numpy(value) for value in self._run(feed))
        return outputs[0] if len(outputs) == 1 else outputs

    def _run(self, feed: dict[str, Any]) -> Any:
        runtime: Any = require("onnxruntime", "onnx", "running ONNX files")
        try:
            return self.session.run(None, feed)
        except _failures(runtime) as error:
            takes = ", ".join(f"{one.name} {one.type} {one.shape}" for one in self.session.get_inputs())
            got = ", ".join(f"{name} {value.dtype} {list(value.shape)}" for name, value in feed.items())
            raise ExportError(f"the ONNX model takes {takes}; got {got}: {error}") from error

    def __getstate__(self) -> Mapping[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "session"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def extra_repr(self) -> str:
        """Inputs, outputs and size."""
        names = f"{', '.join(self.input_names)} -> {', '.join(self.output_names)}"
        return f"{names}, {len(self.content):,} bytes"


def kernels_of(content: bytes) -> dict[str, int]:
    """How often each operator runs after ONNX Runtime's own optimization: ``{"QLinearConv": 19, "QGemm": 1}``."""
    onnx = require("onnx", "onnx", "reading ONNX files")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "optimized.onnx")
        _session(content, 1, optimized=path)
        nodes = onnx.load(path, load_external_data=False).graph.node
    return dict(sorted(Counter(str(node.op_type) for node in nodes).items()))


def _session(content: bytes, threads: int | None, *, optimized: Path | None = None) -> Any:
    runtime: Any = require("onnxruntime", "onnx", "running ONNX files")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except _failures(runtime) as error:
        raise ExportError(f"ONNX Runtime refuses the model: {error}") from error


def _failures(runtime: Any) -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: one class for each status code."""
    found = vars(runtime.capi.onnxruntime_pybind11_state).values()
    return tuple(one for one in found if isinstance(one, type) and issubclass(one, Exception))


def _as_numpy(tensor: Tensor) -> Any:
    plain = tensor.detach().as_subclass(Tensor).cpu().contiguous()
    if plain.dtype == torch.bfloat16:
        raise ArgumentError("ONNX Runtime takes no bfloat16 tensors here: convert the inputs with .float()")
    return plain.numpy()
