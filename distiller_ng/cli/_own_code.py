"""Code of the user's that a command line names: imported, called, and what it raises in one line (layer 5)."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any

import torch

from distiller_ng.errors import ArgumentError, did_you_mean

__all__ = ["SEED", "called", "in_one_line", "named_object"]

#: Where random weights begin: the same ones in every run.
SEED = 0
#: What code of the user's may raise; some scripts end the program when they are imported.
_FAILURES = (Exception, SystemExit)
_NOT_THE_USERS = (str(Path(__file__).parents[1]), *(sysconfig.get_path(name) for name in ("stdlib", "purelib")))


def named_object(text: str, flag: str) -> Any:
    """What ``package.module:name`` or ``file.py:name`` means; ``flag`` is the option, for messages.

    Raises :class:`ArgumentError` for a module or file that cannot be imported, and a name that is not in it.
    """
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise ArgumentError(f"{flag} {text}: write package.module:name or file.py:name, e.g. mynet.py:MyNet")
    module = _from_file(Path(place).expanduser(), flag) if place.endswith(".py") else _imported(place, flag)
    return _found(module, name, f"{flag} {text}")


def called(factory: Any, what: str, *, seed: int = SEED) -> Any:
    """The result of a function of the user's without arguments; ``what`` begins messages.

    Torch's generator has this seed inside, and is as it was afterwards.

    Raises :class:`ArgumentError` for what cannot be called, and when it fails.
    """
    if not callable(factory):
        raise ArgumentError(f"{what} is a {type(factory).__name__}, not a class or function")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return factory()
        except _FAILURES as error:
            raise ArgumentError(f"{what}() failed: {in_one_line(error)}") from error


def _found(module: Any, name: str, what: str) -> Any:
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            names = [known for known in vars(module) if not known.startswith("_")]
            hint = did_you_mean(name, names) if names else "Nothing is"
            raise ArgumentError(f"{what}: there is no {name!r} in it. {hint}")
        found = getattr(found, part)
    return found


def _imported(name: str, flag: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does
    try:
        return importlib.import_module(name)
    except _FAILURES as error:
        hint = ""
        if isinstance(error, ModuleNotFoundError) and Path(f"{name}.py").exists():
            hint = f". Did you mean {name}.py:...?"
        raise ArgumentError(f"{flag}: {name} cannot be imported: {in_one_line(error)}{hint}") from error


def _from_file(path: Path, flag: str) -> Any:
    if not path.is_file():
        raise ArgumentError(f"{flag}: there is no file {str(path)!r}")
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # so that it may import its neighbours, and worker processes find it
    name = path.stem
    if not name.isidentifier():
        name = f"distiller_ng_model_{abs(hash(str(path.resolve())))}"
    loaded = sys.modules.get(name)
    if loaded is not None and Path(getattr(loaded, "__file__", None) or "").resolve() == path.resolve():
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ArgumentError(f"{flag}: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickle look it up
    try:
        spec.loader.exec_module(module)
    except _FAILURES as error:
        del sys.modules[name]
        raise ArgumentError(f"{flag}: {path} cannot be imported: {in_one_line(error)}") from error
    finally:
        if before is not None:
            sys.modules[name] = before
    return module


def in_one_line(error: BaseException) -> str:
    """``ValueError: no such width (mynet.py:12)``: what was raised, and the last line of the user's that led there."""
    if isinstance(error, SystemExit):
        return "it ends the program; put what it runs as a script below: if __name__ == '__main__':"
    text = " ".join(str(error).split())
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    return f"{said} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else said


def _is_users(file: str) -> bool:
    return not file.startswith(("<", *_NOT_THE_USERS)) and "site-packages" not in file
