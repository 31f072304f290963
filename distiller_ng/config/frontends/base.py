"""What every front end is: it turns the text of one language into a spec (layer 4)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from distiller_ng.config.spec import ScheduleSpec
from distiller_ng.registry import Registry

__all__ = ["FRONTENDS", "Frontend", "frontend_for"]

FRONTENDS: Registry[Frontend] = Registry("front end", "distiller_ng.config.frontends")


class Frontend(ABC):
    """Reads one language in which schedules are written.

    Register a new one with ``@FRONTENDS.register("my_language")``; everything after the spec (checks, building,
    errors with line and column) is shared.
    """

    #: Front ends with a lower number are asked first; the schedule YAML is asked last and takes everything.
    priority: ClassVar[int] = 0

    @abstractmethod
    def accepts(self, path: Path | None, text: str) -> bool:
        """Whether this looks like the front end's language; ``path`` is None for text that came from no file."""

    @abstractmethod
    def parse(self, text: str, *, source: str, recipe_args: Any = None) -> ScheduleSpec:
        """The spec of ``text``; ``source`` is the file's name for messages.

        ``recipe_args`` are values of variables; they are passed only where they were given.

        Text that cannot be read at all raises :class:`ScheduleError`; anything else that is wrong goes into the spec's
        ``problems``, so that it is reported together with what later checks find.
        """


def frontend_for(path: Path | None, text: str) -> Frontend:
    """The first front end that accepts the text."""
    candidates = sorted((entry.cls for entry in FRONTENDS), key=lambda cls: cls.priority)
    return next(frontend for cls in candidates if (frontend := cls()).accepts(path, text))
