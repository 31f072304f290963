"""Overrides of a quantizer as a YAML file of their own (layer 2)."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.files import write_text_atomically

__all__ = ["Override", "load_overrides", "save_overrides"]

#: What an override sets for the modules it matches.
Override: TypeAlias = "dict[str, Any]"


def save_overrides(path: str | os.PathLike[str], overrides: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write overrides as YAML in one step; :func:`load_overrides` reads them. The path."""
    plain = {name: dict(entry) for name, entry in overrides.items()}
    return write_text_atomically(path, yaml.safe_dump(plain, sort_keys=False))


def load_overrides(path: str | os.PathLike[str]) -> OrderedDict[str, Override]:
    """Overrides as :func:`save_overrides` wrote them, for ``PostTrainLinearQuantizer(model, overrides=...)``.

    Raises ``FileNotFoundError``, and :class:`ArgumentError` for a file of another form.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ArgumentError(f"{os.fspath(path)} is no valid YAML: {error}", argument=("overrides",)) from error
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise ArgumentError(f"{os.fspath(path)} holds no overrides: a mapping of names to settings is needed")
    return OrderedDict(content)
