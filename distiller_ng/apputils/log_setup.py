"""The run folder of one experiment, its log file, and a record of what it ran on (layer 5).

Only the library's own logger, ``distiller_ng``, is configured, and only when :func:`config_pylogger` is called; the
root logger is never touched.
"""

from __future__ import annotations

import configparser
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeAlias, cast

import numpy as np
import torch

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.timing import machine

__all__ = ["RunLogger", "close_pylogger", "config_pylogger", "execution_env_state", "log_execution_env_state"]

PathLike: TypeAlias = "str | os.PathLike[str]"
_PACKAGE_LOGGER = "distiller_ng"
_APP_LOGGER = "distiller_ng.app"
_GIT_SECONDS = 5
if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler  # takes no type argument before Python 3.11
_logger = logging.getLogger(__name__)


class RunLogger(logging.Logger):
    """What :func:`config_pylogger` returns: a logger that knows its run folder."""

    logdir: str
    log_filename: str


class _RunFile(logging.FileHandler):
    """The log file of a run."""


class _RunConsole(_StreamHandler):
    """The console of a run; looks ``sys.stdout`` up at each record, because notebooks and tests replace it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stdout

    @stream.setter
    def stream(self, value: TextIO) -> None:
        raise AttributeError("the run console always writes to sys.stdout")


class _Formatter(logging.Formatter):
    """The message as it is; warnings and worse say what they are."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        return f"{record.levelname}: {line}" if record.levelno >= logging.WARNING else line


@dataclass(frozen=True, slots=True)
class _Style:
    console: str = "%(message)s"
    file: str = "%(asctime)s - %(message)s"
    level: str = "INFO"


_DEFAULT_STYLE = _Style()


def config_pylogger(
    log_cfg_file: PathLike | None,
    experiment_name: str | None,
    output_dir: PathLike = "logs",
    verbose: bool = False,
) -> RunLogger:
    """Make a run folder, send the library's log to a file in it and to standard output, and return a logger for it.

    The folder is ``output_dir/<experiment>___<YYYY.MM.DD-HHMMSS>`` (the time alone without a name), the file the same
    name with ``.log``; both are found again as ``logger.logdir`` and ``logger.log_filename``. Two runs in one second
    get two folders. A second call closes the first run's handlers.

    ``log_cfg_file`` may name a standard logging INI file. Of it the formats of the formatters that handlers ``console``
    and ``file`` use and the root's level are taken; handler classes and their arguments are not, since the standard
    reader evaluates them as code. Without a file the defaults hold; a file that is not there is a logged warning.
    ``verbose`` logs debug messages too.

    Raises :class:`ArgumentError` for an experiment name with a path separator and a configuration that cannot be read.
    Example: ``config_pylogger(None, "agp")`` makes ``logs/agp___2024.05.01-093000/agp___2024.05.01-093000.log``.
    """
    if experiment_name is not None and set(experiment_name) & {"/", "\\", "\0"}:
        raise ArgumentError(
            f"experiment_name {experiment_name!r} must be a plain name; choose the folder with output_dir",
            argument=("experiment_name",),
        )
    style = _read_style(log_cfg_file)
    folder = _new_folder(Path(output_dir), experiment_name)
    path = folder / f"{folder.name}.log"
    close_pylogger()
    package = logging.getLogger(_PACKAGE_LOGGER)
    package.setLevel(logging.DEBUG if verbose else style.level)
    _attach(package, _RunFile(path, encoding="utf-8"), style.file)
    if not _root_prints():
        _attach(package, _RunConsole(), style.console)
    logger = cast(RunLogger, logging.getLogger(_APP_LOGGER))
    logger.logdir, logger.log_filename = str(folder), str(path)
    logger.info("Log file for this run: %s", os.path.realpath(path))
    if log_cfg_file is not None and not Path(log_cfg_file).is_file():
        logger.warning("logging configuration %s does not exist; the defaults are used", log_cfg_file)
    return logger


def close_pylogger() -> None:
    """Detach and close what :func:`config_pylogger` attached; without a run it does nothing."""
    package = logging.getLogger(_PACKAGE_LOGGER)
    for handler in [h for h in package.handlers if isinstance(h, _RunFile | _RunConsole)]:
        package.removeHandler(handler)
        handler.close()


def _attach(logger: logging.Logger, handler: logging.Handler, line_format: str) -> None:
    handler.setFormatter(_Formatter(line_format))
    logger.addHandler(handler)


def _root_prints() -> bool:
    """Whether the user's own root handler already shows our records on the terminal: twice would be noise."""
    return any(
        isinstance(handler, logging.StreamHandler) and getattr(handler, "stream", None) in (sys.stdout, sys.stderr)
        for handler in logging.getLogger().handlers
    )


def _new_folder(output_dir: Path, experiment_name: str | None) -> Path:
    stamp = time.strftime("%Y.%m.%d-%H%M%S")
    name = f"{experiment_name}___{stamp}" if experiment_name else stamp
    number = 1
    while True:
        folder = output_dir / (name if number == 1 else f"{name}_{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except (FileExistsError, NotADirectoryError):
            if not output_dir.is_dir():
                raise ArgumentError(
                    f"output_dir {output_dir} is or lies below a file, not a folder", argument=("output_dir",)
                ) from None
            number += 1


def _read_style(log_cfg_file: PathLike | None) -> _Style:
    if log_cfg_file is None or not Path(log_cfg_file).is_file():
        return _DEFAULT_STYLE
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(Path(log_cfg_file).read_text(encoding="utf-8"))
        level = parser.get("logger_root", "level", fallback=_DEFAULT_STYLE.level).strip().upper()
        if not isinstance(logging.getLevelName(level), int):
            raise ValueError(f"unknown level {level!r}")
        console, file = (_line_format(parser, handler) for handler in ("console", "file"))
        return _Style(console or _DEFAULT_STYLE.console, file or _DEFAULT_STYLE.file, level)
    except (configparser.Error, ValueError) as error:
        raise ArgumentError(
            f"{log_cfg_file}: not a usable logging configuration: {error}", argument=("log_cfg_file",)
        ) from error


def _line_format(parser: configparser.RawConfigParser, handler: str) -> str:
    formatter = parser.get(f"handler_{handler}", "formatter", fallback="")
    line_format = parser.get(f"formatter_{formatter.strip()}", "format", fallback="")
    if line_format:
        logging.PercentStyle(line_format).validate()
    return line_format


def execution_env_state() -> dict[str, str]:
    """What this program runs on, by name: ``{"Python": "3.11.7", "PyTorch": "2.13.0", ...}``."""
    state = {
        "Python": platform.python_version(),
        "PyTorch": str(torch.__version__),
        "NumPy": np.__version__,
        "distiller_ng": _own_version(),
        "Platform": platform.platform(),
        "Processor": str(machine()["cpu"]),
        "Number of CPUs": str(_usable_cpus()),
        "Number of torch threads": str(torch.get_num_threads()),
        "Number of GPUs": str(torch.cuda.device_count()),
    }
    if torch.cuda.is_available():
        state["GPU"] = torch.cuda.get_device_name()
    return state | {"Git": _git_state(), "Command line": shlex.join(sys.argv)}


def log_execution_env_state(
    config_paths: PathLike | Iterable[PathLike] | None = None, logdir: PathLike | None = None
) -> dict[str, str]:
    """Log what this run executes on, copy its configuration files into the run folder, and return what was logged.

    ``config_paths`` (one path or several; None among them is left out) are copied to ``logdir/configs``, files of the
    same name numbered; without ``logdir`` nothing is copied. Raises :class:`ArgumentError` for a path that is no file.
    Example: ``log_execution_env_state("agp.yaml", logger.logdir)["PyTorch"]`` -> ``"2.13.0"``.
    """
    paths = _as_paths(config_paths)
    state = execution_env_state()
    for key, value in state.items():
        _logger.info("%s: %s", key, value)
    if logdir is not None:
        for path in paths:
            _logger.info("Configuration %s copied to %s", path, _copy(path, Path(logdir) / "configs"))
    return state


def _as_paths(config_paths: PathLike | Iterable[PathLike] | None) -> list[Path]:
    if config_paths is None:
        return []
    given = [config_paths] if isinstance(config_paths, str | os.PathLike) else config_paths
    paths = [Path(path) for path in given if path is not None]
    for path in paths:
        if not path.is_file():
            raise ArgumentError(f"configuration file {path} does not exist", argument=("config_paths",))
    return paths


def _copy(path: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    target, number = folder / path.name, 2
    while target.exists():
        target, number = folder / f"{path.stem}_{number}{path.suffix}", number + 1
    shutil.copyfile(path, target)
    return target


def _own_version() -> str:
    try:
        return metadata.version("distiller_ng")
    except metadata.PackageNotFoundError:
        return "not installed (run from its source folder)"


def _usable_cpus() -> int:
    # Containers and batch systems often allow fewer than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _git_state() -> str:
    """Commit and branch of the working directory's repository, or why there is none."""
    commit = _git("rev-parse", "HEAD")
    if not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        return "not available (no git repository here)"
    changed = " with uncommitted changes" if _git("status", "--porcelain", "--untracked-files=no") else ""
    return f"commit {commit}, branch {_git('rev-parse', '--abbrev-ref', 'HEAD')}{changed}"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=_GIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
