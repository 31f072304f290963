"""Saying what a file that is no schedule seems to be (layer 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from distiller_ng.config.problems import shown
from distiller_ng.errors import listed

__all__ = ["describe", "recognize"]

_Data: TypeAlias = Mapping[str, Any]


def recognize(data: _Data) -> str | None:
    """One sentence about a mapping that is known to be another kind of file; None for any other.

    >>> recognize({"network": {"resnet20": ["conv1"]}})
    'This seems to be a search space for automatic compression (AMC), not a schedule.'
    """
    named = {str(key): value for key, value in data.items()}
    found = next((what for what, test in _KINDS_OF_FILES if test(named)), None)
    return None if found is None else f"This seems to be {found}, not a schedule."


def describe(data: Any, text: str) -> str:
    """One sentence about a document that is of no known kind: ``describe(None, "")`` -> ``"The file is empty."``."""
    if data is None:
        return "The file holds nothing but comments." if text.strip() else "The file is empty."
    if not isinstance(data, Mapping):
        return f"The document is {shown(data)}, not a mapping."
    what = "JSON" if text.lstrip().startswith("{") else "YAML"
    return f"This is {what} about something else (its keys: {listed(data)})."


def _mappings(data: _Data) -> list[_Data]:
    return [value for value in data.values() if isinstance(value, Mapping)]


def _is_statistics(data: _Data) -> bool:
    """``{layer: {inputs: {0: {min, max, ...}}, output: {min, max, ...}}}``."""
    layers = [layer for layer in _mappings(data) if isinstance(layer.get("output"), Mapping) or "inputs" in layer]
    measured = [layer for layer in layers if {"min", "max"} & set(map(str, layer.get("output") or {}))]
    return bool(measured) and 2 * len(layers) >= len(data)


def _is_search_space(data: _Data) -> bool:
    network = data.get("network")
    return isinstance(network, Mapping) and all(isinstance(layers, list) for layers in network.values())


def _is_definition(data: _Data) -> bool:
    return "class" in data or any("class" in value for value in _mappings(data))


def _has(*keys: str) -> Callable[[_Data], bool]:
    return lambda data: all(key in data for key in keys)


def _is_neural_compressor(data: _Data) -> bool:
    return "model" in data and bool({"quantization", "pruning", "tuning", "distillation"} & set(data))


_KINDS_OF_FILES: tuple[tuple[str, Callable[[_Data], bool]], ...] = (
    ("a file of calibration statistics (for post-training quantization)", _is_statistics),
    ("a search space for automatic compression (AMC)", _is_search_space),
    ("an Intel Neural Compressor configuration", _is_neural_compressor),
    ("an NNCF configuration", _has("input_info", "compression")),
    ("the configuration of MkDocs", _has("site_name")),
    ("a Docker Compose file", _has("services")),
    ("a Kubernetes manifest", _has("apiVersion", "kind")),
    ("a workflow of GitHub Actions", _has("jobs")),
    ("the configuration of pre-commit", _has("repos")),
    ("a conda environment", _has("channels", "dependencies")),
    ("a definition that stands outside any section", _is_definition),
)
