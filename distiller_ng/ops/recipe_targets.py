"""Names of parameters as SparseML's recipes write them, and as this library does (layer 1).

In recipes ``re:`` patterns match from the start of a name (here: in full), ``__ALL_PRUNABLE__`` includes embeddings,
a module's name may stand for its weight, and a parameter of the model itself is called ``.weight``.
"""

from __future__ import annotations

import re

from distiller_ng.names import ALL, ALL_PRUNABLE, ALL_PRUNABLE_WITH_EMBEDDINGS, PATTERN_PREFIX

__all__ = ["from_recipe_target", "to_recipe_target"]

_FLAGS = re.compile(r"\(\?[aiLmsux]+\)")
_WRAPPED = re.compile(r"(?P<flags>(?:\(\?[aiLmsux]+\))?)\(\?:(?P<inner>.*)\)\.\*", re.DOTALL)
_WEIGHT_OF = re.compile(r"(?P<name>(?:\w|\\.)+)\(\\\.weight\)\?")
_PARAMETER = re.compile(r".*(?:^|\.)(?:weight|bias|\w*weight\w*|\w*bias\w*)$")


def from_recipe_target(name: str) -> str:
    r"""One entry of ``params`` as a target of ours.

    >>> [from_recipe_target(name) for name in ("re:conv", "__all_prunable__", "fc.weight", "conv")]
    ['re:(?:conv).*', '__ALL_PRUNABLE_WITH_EMBEDDINGS__', 'fc.weight', 're:conv(\\\\.weight)?']
    """
    if name.upper() in (ALL, ALL_PRUNABLE):
        return ALL if name.upper() == ALL else ALL_PRUNABLE_WITH_EMBEDDINGS
    if name == ALL_PRUNABLE_WITH_EMBEDDINGS:
        return name
    if name.startswith(PATTERN_PREFIX):
        return PATTERN_PREFIX + _from_the_start(name[len(PATTERN_PREFIX) :])
    plain = name.removeprefix(".")
    if _PARAMETER.fullmatch(plain) or not plain:
        return plain
    return f"{PATTERN_PREFIX}{re.escape(plain)}(\\.weight)?"


def to_recipe_target(name: str) -> str:
    """The reverse of :func:`from_recipe_target`; a pattern that matches in full ends in ``$`` there."""
    if name == ALL_PRUNABLE_WITH_EMBEDDINGS:
        return ALL_PRUNABLE
    if not name.startswith(PATTERN_PREFIX):
        return name
    pattern = name[len(PATTERN_PREFIX) :]
    if module := _WEIGHT_OF.fullmatch(pattern):
        return re.sub(r"\\(.)", r"\1", module["name"])
    if wrapped := _WRAPPED.fullmatch(pattern):
        return PATTERN_PREFIX + wrapped["flags"] + wrapped["inner"]
    if pattern.endswith((".*", "$")) and "|" not in pattern and not pattern.endswith("\\.*"):
        return name
    return f"{PATTERN_PREFIX}(?:{pattern})$"


def _from_the_start(pattern: str) -> str:
    """A pattern that matches in full what ``pattern`` matches at the beginning."""
    is_open = pattern.endswith(".*") and not pattern.endswith("\\.*")
    if (is_open or (pattern.endswith("$") and not pattern.endswith("\\$"))) and "|" not in pattern:
        return pattern
    flags = _FLAGS.match(pattern)
    first = flags.group() if flags else ""
    return f"{first}(?:{pattern[len(first) :]}).*"
