"""An OpenVINO model as a module that is called like the model it was made from (layer 4)."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, ExportError
from distiller_ng.graph.inputs import flat_tensors
from distiller_ng.ops.optional import require

__all__ = ["OpenVinoModule"]

_MULTIPLYING = ("Convolution", "Deconvolution", "FullyConnected", "MatMul", "Gather", "Subgraph")


class OpenVinoModule(nn.Module):
    """Runs an OpenVINO model on the CPU: ``OpenVinoModule("model.xml")(images)``.

    ``model``: the path of an ``.xml`` file with its ``.bin`` beside it, of an ONNX file, or a model of OpenVINO.
    ``threads``: how many it may use; None leaves that to OpenVINO. Tensors and results as in :class:`OnnxModule`.
    Raises :class:`ExportError` for a model OpenVINO refuses, :class:`ArgumentError` for another number of inputs.
    """

    def __init__(self, model: str | os.PathLike[str] | Any, *, threads: int | None = None) -> None:
        super().__init__()
        openvino: Any = require("openvino", "openvino", "running OpenVINO models")
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        try:
            read = core.read_model(os.fspath(model)) if isinstance(model, str | os.PathLike) else model
            self.compiled = core.compile_model(read, "CPU", settings)
        except RuntimeError as error:
            raise ExportError(f"OpenVINO refuses the model: {error}") from error
        self.input_names = [one.get_any_name() for one in self.compiled.inputs]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns, from tensors of any nest."""
        named = {name: value for name, value in kwargs.items() if name in self.input_names}
        rest = {name: value for name, value in kwargs.items() if name not in named}
        free = [name for name in self.input_names if name not in named]
        tensors = flat_tensors((args, rest))
        if len(tensors) != len(free):
            names = ", ".join(self.input_names)
            raise ArgumentError(
                f"the model takes {len(self.input_names)} inputs ({names}), got {len(tensors) + len(named)}"
            )
        given = {**dict(zip(free, tensors, strict=True)), **named}
        feed = [given[name].detach().as_subclass(Tensor).cpu().contiguous().numpy() for name in self.input_names]
        found = self.compiled(feed)
        outputs = tuple(torch.from_numpy(found[port].copy()) for port in self.compiled.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def kernels_by_origin(self) -> dict[str, tuple[str, str]]:
        """``{layer of the ONNX file: (kernel, precision)}`` of what multiplies: ``("Convolution", "u8")``."""
        found: dict[str, tuple[str, str]] = {}
        for operation in self.compiled.get_runtime_model().get_ops():
            info = operation.get_rt_info()
            kind, precision = (info[key].astype(str) for key in ("layerType", "runtimePrecision"))
            if kind in _MULTIPLYING:
                origins = info["originalLayersNames"].astype(str) if "originalLayersNames" in info else ""
                for origin in [operation.get_friendly_name(), *origins.split(",")]:
                    found[origin.partition("/")[0]] = (kind, precision)
        return found

    def kernels(self) -> dict[str, int]:
        """How often each layer type runs in which precision: ``{"Convolution u8": 19, "FullyConnected u8": 1}``."""
        found: Counter[str] = Counter()
        for operation in self.compiled.get_runtime_model().get_ops():
            info = operation.get_rt_info()
            kind, precision = (info[key].astype(str) for key in ("layerType", "runtimePrecision"))
            if kind not in ("Const", "Input", "Output"):
                found[f"{kind} {precision}"] += 1
        return dict(sorted(found.items()))
