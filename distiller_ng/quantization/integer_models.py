"""Distiller's conversion of a post-training quantized model to one that computes with integers (layer 2)."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from distiller_ng.errors import ArgumentError, did_you_mean
from distiller_ng.quantization._configuration import quantization_of
from distiller_ng.quantization.exporters import export_model

__all__ = ["BACKENDS", "convert_distiller_ptq_model_to_pytorch"]

#: Target and options for each backend; the first two are Distiller's.
BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "fbgemm": ("onnx", {"preset": "x86"}),
    "qnnpack": ("onnx", {"preset": "signed"}),
    "onnx": ("onnx", {}),
    "openvino": ("openvino", {}),
    "torchao": ("torchao", {}),
}


def convert_distiller_ptq_model_to_pytorch(model: nn.Module, dummy_input: Any, backend: str = "fbgemm") -> nn.Module:
    """A module that computes with 8-bit integers, from one that PostTrainLinearQuantizer prepared with statistics.

    ``backend``: Distiller's ``fbgemm`` (x86: uint8 activations) and ``qnnpack`` (ARM: int8) run in ONNX Runtime today,
    because the kernels they named are leaving torch; or say ``onnx``, ``openvino`` or ``torchao``. The result takes and
    returns tensors in floating point, and is compared with ``model`` on ``dummy_input``.

    Raises :class:`ArgumentError` (a ``ValueError``) for a model of another quantizer, a missing ``dummy_input`` and an
    unknown backend; :class:`ExportError` (a ``ValueError`` too) for a model that cannot be converted::

        int8 = convert_distiller_ptq_model_to_pytorch(quantizer.model, images)
        scores = int8(images)
    """
    made_by = quantization_of(model)
    if made_by is None or made_by.name != "PostTrainLinearQuantizer":
        message = "the model was not quantized" if made_by is None else f"{made_by.name} quantized the model"
        raise ArgumentError(
            f"only models of PostTrainLinearQuantizer are converted, but {message}", argument=("model",)
        )
    if dummy_input is None:
        raise ArgumentError("dummy_input is needed to convert a model", argument=("dummy_input",))
    if backend not in BACKENDS:
        raise ArgumentError(
            f"unknown backend {backend!r}. {did_you_mean(str(backend), BACKENDS)}", argument=("backend",)
        )
    target, options = BACKENDS[backend]
    return cast(nn.Module, export_model(model, target, dummy_input, **options).model)
