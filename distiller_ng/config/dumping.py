"""A spec as schedule YAML (layer 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import yaml

from distiller_ng.config.spec import ScheduleSpec

__all__ = ["schedule_text"]


class _Dumper(yaml.SafeDumper):
    """Writes every value once, without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def schedule_text(spec: ScheduleSpec) -> str:
    """The YAML that reads back to an equal schedule; short lists and mappings stand on one line."""
    parts = []
    for key, value in _plain(spec.as_dict()).items():
        if isinstance(value, dict):
            lines = [f"{key}:", *(_indented(_dumped({name: entry}), 2) for name, entry in value.items())]
        elif isinstance(value, list) and value:
            lines = [f"{key}:", *(_indented(_dumped([entry]), 2) for entry in value)]
        else:
            lines = [str(yaml.dump({key: value}, Dumper=_Dumper, default_flow_style=False))]
        parts.append("\n".join(line.rstrip("\n") for line in lines))
    return "\n\n".join(parts) + "\n"


def _dumped(value: Any) -> str:
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=math.inf))


def _indented(text: str, by: int) -> str:
    return "\n".join(" " * by + line if line else line for line in text.splitlines())


def _plain(value: Any) -> Any:
    """Types that YAML knows."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(entry) for entry in value]
    return value
