"""What every command of ``distiller-ng`` is (layer 5)."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from typing import ClassVar

from distiller_ng.registry import Registry

__all__ = ["COMMANDS", "Command"]

COMMANDS: Registry[Command] = Registry("command", "distiller_ng.cli")


class Command(ABC):
    """One command; a new one is a file with ``@COMMANDS.register("my-command")`` on its class.

    It prints its result to standard output and returns the exit status. A :class:`DistillerError` it raises is printed
    to standard error without a traceback, and the status is 1.
    """

    #: One line for ``distiller-ng --help``.
    help: ClassVar[str] = ""
    #: Command lines to show below the command's own ``--help``.
    example: ClassVar[str] = ""
    #: Whether ranks that ``torchrun`` starts share the work; other commands run in one process.
    shares_ranks: ClassVar[bool] = False

    @abstractmethod
    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""

    @abstractmethod
    def run(self, options: argparse.Namespace) -> int:
        """Do it; returns the exit status, 0 if all is well."""
