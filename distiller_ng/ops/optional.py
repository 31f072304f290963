"""Importing packages that only some features need (layer 1)."""

from __future__ import annotations

import importlib
from types import ModuleType

from distiller_ng.errors import ArgumentError

__all__ = ["check_drawing", "require"]


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """The module ``module``, imported now.

    Raises :class:`ArgumentError` that says what to install when the package is missing or cannot be imported::

        onnxruntime = require("onnxruntime", "onnx", "running ONNX files")
        # ArgumentError: running ONNX files needs onnxruntime (...): pip install 'distiller_ng[onnx]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        message = f"{purpose} needs {package} ({error}): pip install 'distiller_ng[{extra}]'"
        raise ArgumentError(message) from error


def check_drawing(purpose: str) -> None:
    """Raise :class:`ArgumentError` without matplotlib: before minutes of work whose outcome could not be drawn."""
    require("matplotlib.figure", "plots", purpose)
