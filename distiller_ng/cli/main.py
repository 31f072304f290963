"""The entry point of ``distiller-ng`` (layer 5)."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

import torch

import distiller_ng
from distiller_ng.apputils.guard import INTERRUPTED
from distiller_ng.cli._own_code import in_one_line
from distiller_ng.cli._printing import ReaderGoneError, results_apart, say
from distiller_ng.cli._ranks import check_one_process, tells_errors
from distiller_ng.cli.base import COMMANDS
from distiller_ng.errors import DistillerError, ScheduleWarning, nearest

__all__ = ["main", "make_parser"]

_NO_COMMAND = 2  # as argparse ends for a wrong command line
_READER_GONE = 141  # what a program that SIGPIPE ends has


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command: ``distiller-ng recipe translate recipe.md``; returns the exit status.

    0: done, 1: the input is wrong (every problem is printed to standard error), 2: the command line is, 130: Ctrl-C,
    141: standard output was closed, as by ``| head``.
    What nothing foresaw, such as an exception of the user's own data set in the middle of a run, is one line, too;
    ``distiller-ng --traceback COMMAND ...`` shows where it came from.
    """
    words = sys.argv[1:] if arguments is None else arguments
    with _short_warnings():
        parser = make_parser()
        if not words:  # nothing was asked: what could be?
            parser.print_help(sys.stderr)
            return _NO_COMMAND
        return _done(parser.parse_args(words))


def _done(options: argparse.Namespace) -> int:
    """The exit status of what was asked; what goes wrong is told."""
    try:
        with results_apart():
            if not options.shares_ranks:
                check_one_process(options.command)
            return int(options.run(options))
    except ReaderGoneError:
        return _READER_GONE
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except Exception as error:
        if not isinstance(error, DistillerError | OSError) and options.traceback:
            raise
        if tells_errors():
            say(_in_one_line(error, options.command))
        return 1


def _in_one_line(error: Exception, command: str) -> str:
    """What an error says; of what nothing foresaw also where it comes from, and how to see more."""
    if isinstance(error, DistillerError):
        return str(error)
    if isinstance(error, OSError):  # a file that is not there, or that cannot be written
        if error.strerror is None:
            return str(error)
        place = error.filename2 or error.filename
        return error.strerror if place is None else f"{place}: {error.strerror}"
    return f"{in_one_line(error)}; distiller-ng --traceback {command} ... shows more"


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Warnings in one line each, the ones of schedules every time, those between packages never."""
    with warnings.catch_warnings():
        warnings.showwarning = _show
        warnings.simplefilter("always", ScheduleWarning)
        for category in (DeprecationWarning, FutureWarning):  # the user of a command cannot help them
            warnings.simplefilter("ignore", category)
        yield


def make_parser() -> argparse.ArgumentParser:
    """The parser of every command; ``parse_args(words).run`` does what the words say."""
    parser = _OneLineParser(
        prog="distiller-ng", description="Compress PyTorch models while they train.", allow_abbrev=False
    )
    parser.add_argument(
        "--version", action="version", version=f"distiller-ng {distiller_ng.__version__}, torch {torch.__version__}"
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error that nothing foresaw comes from")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for entry in COMMANDS:
        command = entry.cls()
        own = commands.add_parser(
            entry.name,
            help=command.help,
            description=command.help,
            epilog=f"example:\n  {command.example}" if command.example else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # --loader shall not be taken for --loaders
        )
        command.configure(own)
        own.set_defaults(run=command.run, shares_ranks=command.shares_ranks)
    return parser


class _OneLineParser(argparse.ArgumentParser):
    """Says in one line what is wrong: the usage of a command with twenty options would bury it."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse does, but a command refuses what it does not know itself: it can name what is near."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            words = [word.partition("=")[0] for word in unknown if word.startswith("-")]
            close = nearest(words[0], self._option_string_actions) if words else []
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, []

    def error(self, message: str) -> NoReturn:
        """End with status 2."""
        self.exit(2, f"{self.prog}: {message} ({self.prog} --help shows what it takes)\n")


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: Any = None,
) -> None:
    """A schedule's warnings are about the user's file; where in our code they arose says nothing."""
    if os.environ.get("RANK", "0") == "0":
        said = " ".join(str(message).split())
        say(f"warning: {said}" if issubclass(category, ScheduleWarning) else f"{category.__name__}: {said}")
