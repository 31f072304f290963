"""Files written by Distiller: what they refer to becomes harmless placeholders (layer 3).

Distiller pickled classes (the optimizer's, thinning recipes, quantizers). They are never imported or called: each name
is replaced by an empty class that only remembers what it was given, and everything else is refused by the loader.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from torch import Tensor

from distiller_ng.errors import CheckpointError

__all__ = ["Placeholder", "placeholder_name", "placeholders_for", "thinning_recipes"]

_KNOWN = re.compile(r"torch\.optim\.(\w+\.)*[A-Z]\w*|distiller\.(thinning|quantization)\.(\w+\.)*[A-Z]\w*")
# Before the object itself, torch's old format stores a magic number, a protocol number and facts about the machine.
_PREAMBLE = 3
_MAGIC = 0x1950A86A20F9469CFC6C


class Placeholder:
    """Stands for an object whose class is not loaded; ``name`` is the class's full name, ``contents`` what it held."""

    name = ""

    def __new__(cls, *args: Any) -> Placeholder:
        """An instance that keeps ``args`` and does nothing with them."""
        made = object.__new__(cls)
        made.__dict__["contents"] = args
        return made

    def __init__(self, *args: Any) -> None:
        """Nothing to do: :meth:`__new__` kept the arguments."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__["contents"] = state


def placeholders_for(path: Path) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """A placeholder for each class of Distiller's files that ``path`` refers to, as ``safe_globals`` takes them.

    The pickle is read as data, opcode by opcode; nothing of it is executed. For a file that cannot be read so the list
    is empty: the loader says what is wrong with it.
    """
    try:
        with path.open("rb") as file:
            names = sorted({name for name in _globals_of(file) if _KNOWN.fullmatch(name)})
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):
        return []
    return [(type(name.rpartition(".")[2], (Placeholder,), {"name": name}), name) for name in names]


def _globals_of(file: IO[bytes]) -> Iterable[str]:
    """Full names the pickle in a checkpoint file refers to."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for member in archive.namelist():
                if member.endswith("data.pkl"):
                    with archive.open(member) as pickled:
                        yield from _pickled_names(pickled)
        return
    file.seek(0)
    for number in range(_PREAMBLE):
        arguments = [argument for _, argument, _ in pickletools.genops(file)]
        if number == 0 and _MAGIC not in arguments:
            return
    yield from _pickled_names(file)


def _pickled_names(file: IO[bytes]) -> Iterable[str]:
    # Protocol 2, which torch.save uses, names classes by the GLOBAL opcode only: "module name".
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            yield str(argument).replace(" ", ".")


def placeholder_name(value: Any) -> str | None:
    """The full name a placeholder class or instance stands for, None for anything else."""
    kind = value if isinstance(value, type) else type(value)
    return kind.name if issubclass(kind, Placeholder) else None


def thinning_recipes(content: Mapping[str, Any], source: str) -> list[dict[str, Any]]:
    """The thinning recipes of a Distiller file as plain data, ``{"modules": ..., "parameters": ...}``; often none.

    Raises :class:`CheckpointError` for recipes of another form.
    """
    found = []
    for recipe in content.get("thinning_recipes") or []:
        fields = recipe.__dict__.get("contents") if isinstance(recipe, Placeholder) else recipe
        if not isinstance(fields, tuple | list) or len(fields) != 2:
            raise CheckpointError(f"{source}: damaged: a thinning recipe is a pair of modules and parameters")
        modules, parameters = (_plain(part) for part in fields)
        found.append({"modules": modules, "parameters": parameters})
    return found


def _plain(value: Any) -> Any:
    """Index tensors as lists, tuples as lists, names as text."""
    if isinstance(value, Tensor):
        return value.reshape(-1).tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
