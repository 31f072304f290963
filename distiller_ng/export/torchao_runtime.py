"""Exported programs compiled to native code by torch's inductor, with int8 kernels (layer 4)."""

from __future__ import annotations

import io
import json
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from distiller_ng.errors import ArgumentError, ExportError
from distiller_ng.graph.inputs import ExampleInputs
from distiller_ng.ops.optional import require

__all__ = ["TorchaoModule", "load_torchao", "program_bytes"]

_ABOUT = "distiller_ng.json"
_UNREADABLE = (RuntimeError, ValueError, KeyError, TypeError, OSError, EOFError, AttributeError, AssertionError)
#: Counters of inductor that say how many layers became oneDNN int8 kernels.
_KERNELS = {"qconv": "qconv_weight_prepack_matcher_count", "qlinear": "qlinear_weight_prepack_matcher_count"}


class TorchaoModule(nn.Module):
    """Runs an exported program as native code: ``TorchaoModule(content)(images)``; in and out are float tensors.

    ``content``: bytes of a ``.pt2`` file of the torchao exporter. It is compiled at the first call, for batches of any
    size where the program allows that (10 to 60 seconds; a C++ compiler is needed). ``batch_sizes``: sizes that get
    code of their own, which is up to a quarter faster for large batches. :attr:`kernels` counts the int8 kernels
    compiled. Copies and pickles carry the bytes and the native code there is. Raises :class:`ExportError` for bytes
    that are no such file and when compiling fails.
    """

    def __init__(self, content: bytes, *, batch_sizes: Sequence[int] = ()) -> None:
        super().__init__()
        if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in batch_sizes):
            message = f"batch_sizes are whole numbers from 1, got {list(batch_sizes)}"
            raise ArgumentError(message, argument=("batch_sizes",))
        self.content, self.batch_sizes = content, tuple(batch_sizes)
        self.kernels: dict[str, int] = {}
        self._runners: dict[int, Callable[..., Any]] = {}
        self._packages: dict[int, bytes] = {}  # native code, as files
        self._program, self._inputs = _read(content)
        self.has_free_batch = bool(self._program.range_constraints)

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns."""
        size = _batch(args, kwargs)
        return self._runner(size if size in self.batch_sizes else 0)(*args, **kwargs)

    def compile_now(self) -> TorchaoModule:
        """Compile now, for each of ``batch_sizes`` or for all sizes, not at the first call; returns itself."""
        for size in self.batch_sizes or (0,):
            self._runner(size)
        return self

    def _runner(self, size: int) -> Callable[..., Any]:
        if size not in self._runners:
            if size not in self._packages:
                program = self._program
                if size and self.has_free_batch:
                    inputs = _resized(self._inputs, size)
                    program = torch.export.export(program.module(), inputs.args, dict(inputs.kwargs), strict=False)
                self._packages[size], found = _compiled(program)
                self.kernels = self.kernels or found
            self._runners[size] = _opened(self._packages[size])
        return self._runners[size]

    def __getstate__(self) -> Mapping[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_runners", "_program")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._runners = {}
        self._program, self._inputs = _read(self.content)

    def extra_repr(self) -> str:
        """Kernels and size."""
        kernels = ", ".join(f"{count} {name}" for name, count in self.kernels.items()) or "not compiled yet"
        return f"{kernels}, {len(self.content):,} bytes"


def load_torchao(path: str | os.PathLike[str], *, batch_sizes: Sequence[int] = ()) -> TorchaoModule:
    """The model of a ``.pt2`` file that the torchao exporter wrote; it is compiled at its first call.

    Load only files you trust: torch's reader of exported programs evaluates expressions of the file. ``batch_sizes``:
    see :class:`TorchaoModule`. Raises ``FileNotFoundError`` and :class:`ExportError` for a damaged or foreign file::

        model = load_torchao("net.pt2", batch_sizes=[128])
        scores = model(images)
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {os.fspath(path)!r}")
    return TorchaoModule(file.read_bytes(), batch_sizes=batch_sizes)


def program_bytes(program: torch.export.ExportedProgram) -> bytes:
    """The file of a program: its example inputs are left out (their shapes stay), and so are source lines."""
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
            node.meta.pop(key, None)
    args, kwargs = program.example_inputs or ((), {})
    leaves, _ = pytree.tree_flatten((args, kwargs))
    about = {"format": "distiller_ng.torchao", "version": 1, "inputs": [_described(leaf) for leaf in leaves]}
    program._example_inputs = None
    buffer = io.BytesIO()
    try:
        torch.export.save(program, buffer, extra_files={_ABOUT: json.dumps(about)})
    except _UNREADABLE as error:
        raise ExportError(f"torch cannot save the program: {error}") from error
    finally:
        program._example_inputs = (args, kwargs)
    return _deflated(buffer.getvalue())


def _deflated(content: bytes) -> bytes:
    """The same archive, compressed: torch stores the graph (JSON) and pruned weights as they are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as stored, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as smaller:
        for member in stored.infolist():
            smaller.writestr(zipfile.ZipInfo(member.filename), stored.read(member), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _read(content: bytes) -> tuple[torch.export.ExportedProgram, ExampleInputs]:
    # Registers the operators that the program is written in.
    require("torchao.quantization.pt2e", "torchao", "running a torchao program")
    extra = {_ABOUT: ""}
    try:
        program = torch.export.load(io.BytesIO(content), extra_files=extra)
        about = json.loads(extra[_ABOUT] or "{}")
        if about.get("format") != "distiller_ng.torchao":
            raise ExportError("the file is an exported program, but not of the torchao exporter")
        spec = program.call_spec.in_spec
        args, kwargs = pytree.tree_unflatten([_made(one) for one in about["inputs"]], spec)
    except (*_UNREADABLE, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        if isinstance(error, ExportError):
            raise
        raise ExportError(f"damaged, or no file of the torchao exporter: {str(error).splitlines()[:1]}") from error
    program._example_inputs = (args, kwargs)
    return program, ExampleInputs(args, kwargs)


def _opened(package: bytes) -> Callable[..., Any]:
    """Native code, ready to be called."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt2")
        path.write_bytes(package)
        runner: Callable[..., Any] = torch._inductor.aoti_load_package(str(path))
    return runner


def _compiled(program: torch.export.ExportedProgram) -> tuple[bytes, dict[str, int]]:
    """The program as a package of native code, and how many layers of each kind became int8 kernels."""
    counters = torch._dynamo.utils.counters
    earlier, before = counters["inductor"], dict(counters["inductor"])
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        try:
            package = torch._inductor.aoti_compile_and_package(
                program, package_path=os.path.join(folder, "model.pt2"), inductor_configs={"freezing": True}
            )
            content = Path(package).read_bytes()
        except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, OSError, AssertionError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ExportError(
                f"torch cannot compile the model ({type(error).__name__}: {reason}). Compiling needs a C++ compiler "
                "(g++ or clang++), which the environment variable CXX may name"
            ) from error
    after = counters["inductor"]
    past = before if after is earlier else {}  # the compiler may begin to count anew
    found = {name: after[key] - past.get(key, 0) for name, key in _KERNELS.items()}
    return content, {name: count for name, count in found.items() if count}


def _described(leaf: Any) -> dict[str, Any]:
    if isinstance(leaf, Tensor):
        return {"shape": list(leaf.shape), "dtype": str(leaf.dtype).removeprefix("torch.")}
    return {"value": leaf}


def _made(about: Mapping[str, Any]) -> Any:
    if "shape" not in about:
        return about["value"]
    dtype = getattr(torch, str(about["dtype"]))
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"no dtype {about['dtype']!r}")
    return torch.zeros([int(size) for size in about["shape"]], dtype=dtype)


def _batch(args: Any, kwargs: Any) -> int:
    tensors = (leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim())
    return next((int(tensor.shape[0]) for tensor in tensors), 0)


def _resized(inputs: ExampleInputs, size: int) -> ExampleInputs:
    """The inputs with ``size`` samples: every tensor as long as the first one."""
    old = _batch(inputs.args, dict(inputs.kwargs))

    def resized(leaf: Any) -> Any:
        is_batch = isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == old
        return torch.zeros((size, *leaf.shape[1:]), dtype=leaf.dtype) if is_batch else leaf

    args, kwargs = pytree.tree_map(resized, (inputs.args, dict(inputs.kwargs)))
    return ExampleInputs(args, kwargs)
