"""Checking written values against an argument's type, with messages for people (layer 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from distiller_ng.config.marks import Path, as_part
from distiller_ng.config.problems import shown
from distiller_ng.config.signatures import Argument, adapter
from distiller_ng.errors import did_you_mean, nearest

__all__ = ["check_value"]

_KEY = "[key]"  # pydantic's last path part when a mapping's key is wrong
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "sequence_str": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "none_required": "null",
    "callable_type": "a Python function (from code only)",
}
_EXPECTED_CLASSES = {"Sequence": "a list", "Mapping": "a mapping"}


def check_value(argument: Argument, value: Any) -> tuple[Any, list[tuple[Path, str]]]:
    """The value as the constructor gets it, and what is wrong with it: paths below the argument, and messages.

    >>> check_value(Argument("level", float), "0.5")[1]
    [((), "expected a number, got '0.5'; write it without quotes")]
    """
    try:
        return adapter(argument.annotation).validate_python(value), []
    except ValidationError as error:
        found = [_located(details, value) for details in error.errors(include_url=False, include_context=True)]
    except RecursionError:
        return value, [((), "nested too deeply")]
    return value, _messages(found, value)


def _located(details: Any, value: Any) -> tuple[Path, bool, str, dict[str, Any]]:
    """Where in the user's data a pydantic error lies (without the names of union members), and what was expected."""
    here = value
    path: list[str | int] = []
    for part in details["loc"]:
        if isinstance(here, Mapping) and part in here:
            here = here[part]
            path.append(as_part(part))
        elif isinstance(here, list | tuple) and isinstance(part, int) and not isinstance(part, bool):
            path.append(part)
            here = here[part] if part < len(here) else None
    is_key = bool(details["loc"]) and details["loc"][-1] == _KEY
    return tuple(path), is_key, _expected(details), {"value": here, "details": details}


def _expected(details: Any) -> str:
    kind, context = details["type"], details.get("ctx") or {}
    if kind == "is_instance_of":
        name = str(context.get("class", "object")).rsplit(".", 1)[-1]
        return _EXPECTED_CLASSES.get(name, f"a {name} object (from code only)")
    if kind == "literal_error":
        return str(context.get("expected", "one of the allowed values"))
    return _EXPECTED.get(kind, "")


def _messages(found: list[tuple[Path, bool, str, dict[str, Any]]], value: Any) -> list[tuple[Path, str]]:
    """One message for each place. A union fails once per member: the member that got deepest knows best."""
    deepest = [e for e in found if not any(len(o[0]) > len(e[0]) and o[0][: len(e[0])] == e[0] for o in found)]
    places: dict[tuple[Path, bool], list[tuple[str, dict[str, Any]]]] = {}
    for path, is_key, expected, extra in deepest:
        places.setdefault((path, is_key), []).append((expected, extra))
    return [(path, _message(is_key, errors)) for (path, is_key), errors in places.items()]


def _message(is_key: bool, errors: list[tuple[str, dict[str, Any]]]) -> str:
    details, got = errors[0][1]["details"], errors[0][1]["value"]
    expected = list(dict.fromkeys(e for e, _ in errors if e))
    if is_key:
        return f"expected {' or '.join(expected)} as the key, got {shown(details['input'])}"
    if details["type"] == "missing":
        return "a value is missing"
    if details["type"] in ("too_long", "too_short"):
        context = details["ctx"]
        wanted = context.get("max_length", context.get("min_length"))
        return f"expected a list of {wanted}, got {context['actual_length']} values"
    if not expected:
        text = str(details["msg"])
        return f"{text[0].lower()}{text[1:]}, got {shown(got)}"
    return f"expected {' or '.join(expected)}, got {shown(got)}{_hint(expected, errors, got)}"


def _hint(expected: list[str], errors: list[tuple[str, dict[str, Any]]], got: Any) -> str:
    if not isinstance(got, str):
        return ""
    if any(e in ("a number", "a whole number") for e in expected) and _is_number(got):
        return "; write it without quotes"
    literals = [extra["details"] for _, extra in errors if extra["details"]["type"] == "literal_error"]
    allowed = [word.strip("' ") for d in literals for word in d["ctx"]["expected"].replace(" or ", ", ").split(",")]
    return f". {did_you_mean(got, allowed)}" if nearest(got, allowed) else ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
