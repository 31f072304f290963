"""The JSON schema of schedule files, generated from the registries for editors (layer 4).

``python -m distiller_ng.config.schema --write schedules/schedule.schema.json`` writes it; a schedule that begins with
``# yaml-language-server: $schema=schedule.schema.json`` is then completed and checked while it is written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import CoreSchema, PydanticOmit, to_jsonable_python
from pydantic_core.core_schema import CallableSchema, EnumSchema, IsInstanceSchema

from distiller_ng.config.arguments import nested_table
from distiller_ng.config.classes import ClassTable, ComponentClass
from distiller_ng.config.docstrings import describe_argument, summary
from distiller_ng.config.kinds import KINDS, NESTED, Kind
from distiller_ng.config.signatures import Argument, adapter
from distiller_ng.config.structure import POLICIES, VERSION

__all__ = ["main", "schedule_schema", "write_schema"]

Schema = dict[str, Any]

_DOTTED_PATH = r"^[A-Za-z_]\w*(\.\w+)+$"
_TIMES: Schema = {
    "epochs": {
        "description": "The epochs in which the policy acts, counted from 0.",
        "type": "array",
        "items": {"type": "integer", "minimum": 0},
        "minItems": 1,
    },
    "starting_epoch": {
        "description": "The first epoch, counted from 0; -1 with trigger: step: the first step.",
        "type": "number",
        "minimum": -1,
    },
    "ending_epoch": {"description": "The epoch before which the policy ends; -1: never.", "type": "number"},
    "frequency": {
        "description": "Act every so many epochs; with trigger: step -1 is every step, 0 only the start and the end.",
        "type": "number",
        "minimum": -1,
        "default": 1,
    },
    "trigger": {
        "description": "step: look at the window right before every optimizer step, as SparseML's recipes do.",
        "enum": ["epoch", "step"],
        "default": "epoch",
    },
}
_TIMES_GIVEN: Schema = {
    "oneOf": [
        {"required": ["epochs"], "not": {"anyOf": [{"required": [n]} for n in _TIMES if n != "epochs"]}},
        {"required": ["starting_epoch", "ending_epoch"], "not": {"required": ["epochs"]}},
    ]
}
_TIMES_OF_EPOCHS: Schema = {
    "if": {"not": {"properties": {"trigger": {"const": "step"}}, "required": ["trigger"]}},
    "then": {"properties": {"starting_epoch": {"minimum": 0}, "frequency": {"exclusiveMinimum": 0}}},
}


def schedule_schema(*, plugins: bool = False) -> Schema:
    """The schema (draft 2020-12) of a schedule file.

    ``plugins``: include registered classes that come from elsewhere than this library and torch.
    """
    sections = {kind.section: _section(kind) for kind in KINDS.values()}
    policies = {
        "description": "When each component acts.",
        "type": ["array", "null"],
        "items": {"$ref": _ref("policy")},
    }
    definitions = {kind.key: _definition(kind.classes, plugins) for kind in KINDS.values() if kind.classes is not None}
    nested = {_nested_name(table): _definition(table, plugins) for table in NESTED.values()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "distiller_ng schedule",
        "description": "What to compress (sections of named components) and when (policies).",
        "type": "object",
        "properties": {VERSION: {"description": "1; not checked."}, **sections, POLICIES: policies},
        "additionalProperties": False,
        "$defs": {**definitions, **nested, "policy": _policy()},
    }


def _ref(name: str) -> str:
    return f"#/$defs/{name}"


def _nested_name(table: ClassTable) -> str:
    return next(str(kind.__name__) for kind, known in NESTED.items() if known is table)


# -- components --------------------------------------------------------------------------------------------------------


def _section(kind: Kind) -> Schema:
    section: Schema = {"description": f"Named {kind.noun}s.", "type": ["object", "null"]}
    if kind.classes is None:
        return {**section, "description": f"This version has no {kind.section}.", "maxProperties": 0}
    if kind.most is not None:
        section["maxProperties"] = kind.most
    return {**section, "additionalProperties": {"$ref": _ref(kind.key)}}


def _definition(table: ClassTable, plugins: bool) -> Schema:
    """A mapping with a class, and for each class the arguments it takes."""
    found = [(name, table.get(name)) for name in table.names()]
    classes = [(name, c) for name, c in found if (plugins or c.is_built_in) and _is_writable(c)]
    own: Schema = {"type": "string", "pattern": _DOTTED_PATH, "description": "A class of your own."}
    names: list[Schema] = [{"enum": [name for name, _ in classes]}] if classes else []
    definition: Schema = {
        "type": "object",
        "required": ["class"],
        "properties": {"class": {"description": "The algorithm.", "anyOf": [*names, own]}},
    }
    branches = [
        {"if": {"properties": {"class": {"const": name}}, "required": ["class"]}, "then": _branch(c)}
        for name, c in classes
    ]
    return {**definition, "allOf": branches} if branches else definition


def _is_writable(found: ComponentClass) -> bool:
    """Whether a file can give all that the class needs; LambdaLR needs a function."""
    return all(_type(argument) is not None for argument in found.arguments.values() if argument.required)


def _branch(found: ComponentClass) -> Schema:
    properties: Schema = {"class": {"description": summary(found.source)}}
    properties |= dict(_properties(found.arguments.values(), found.source))
    properties |= {name: {"deprecated": True, "description": why} for name, why in found.ignored.items()}
    required = [a.name for a in found.arguments.values() if a.required]
    branch: Schema = {"title": found.name, "properties": properties, "additionalProperties": False}
    return {**branch, "required": required} if required else branch


def _properties(arguments: Any, source: type | None) -> Iterator[tuple[str, Schema]]:
    for argument in arguments:
        schema = _type(argument)
        if schema is not None:
            yield argument.name, {**_about(argument, source), **schema}


def _about(argument: Argument, source: type | None) -> Schema:
    about: Schema = {}
    if description := describe_argument(source, argument.name):
        about["description"] = description
    if not argument.required and isinstance(argument.default, bool | int | float | str | None):
        about["default"] = argument.default
    return about


class _Generator(GenerateJsonSchema):
    """Leaves out what no file can hold: functions and Python objects."""

    def callable_schema(self, schema: CallableSchema) -> JsonSchemaValue:
        raise PydanticOmit

    def is_instance_schema(self, schema: IsInstanceSchema) -> JsonSchemaValue:
        raise PydanticOmit

    def enum_schema(self, schema: EnumSchema) -> JsonSchemaValue:
        raise PydanticOmit  # a file holds its name, as text

    def handle_invalid_for_json_schema(self, schema: CoreSchema, error_info: str) -> JsonSchemaValue:
        raise PydanticOmit


def _type(argument: Argument) -> Schema | None:
    """The schema of one argument's values; None if it can only be given from Python."""
    table = nested_table(argument)
    if table is not None:
        nested: Schema = {"$ref": _ref(_nested_name(table))}
        return {"anyOf": [nested, {"type": "null"}]} if argument.default is None else nested
    try:
        schema = adapter(argument.annotation).json_schema(schema_generator=_Generator)
    except (PydanticOmit, PydanticUserError):
        return None
    return None if schema in ({"type": "null"}, {"anyOf": []}) else dict(schema)


# -- policies ----------------------------------------------------------------------------------------------------------


def _policy() -> Schema:
    """One entry of ``policies``: exactly one component and one way to say when (nested times are deprecated)."""
    keys = [kind.key for kind in KINDS.values()]
    nested = [{"required": [key], "properties": {key: _TIMES_GIVEN}} for key in keys]
    return {
        "type": "object",
        "properties": {**{kind.key: _instance(kind) for kind in KINDS.values()}, **_TIMES},
        "additionalProperties": False,
        "allOf": [
            {"oneOf": [{"required": [key]} for key in keys]},
            {"anyOf": [_TIMES_GIVEN, *nested]},
            _TIMES_OF_EPOCHS,
        ],
    }


def _instance(kind: Kind) -> Schema:
    misplaced = {name: {**schema, "deprecated": True} for name, schema in _TIMES.items()}
    args = {
        "description": "Arguments of the policy.",
        "type": ["object", "null"],
        "properties": dict(_properties(kind.policy_args.values(), kind.policy_source)),
        "additionalProperties": False,
    }
    name = {"description": f"A name defined below {kind.section}.", "type": ["string", "number", "boolean"]}
    return {
        "description": f"The {kind.noun} this policy runs.",
        "type": "object",
        "required": ["instance_name"],
        "properties": {"instance_name": name, "args": args, **misplaced},
        "additionalProperties": False,
    }


# -- command -----------------------------------------------------------------------------------------------------------


def write_schema(path: str | os.PathLike[str], schema: Mapping[str, Any]) -> None:
    """Write a schema as JSON, whole or not at all."""
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(_text(schema), encoding="utf-8")
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def _text(schema: Mapping[str, Any]) -> str:
    return json.dumps(to_jsonable_python(schema), indent=1) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: print the schema, or write it to a file."""
    parser = argparse.ArgumentParser(prog="python -m distiller_ng.config.schema", description=main.__doc__)
    parser.add_argument("--write", metavar="PATH", help="write to this file instead of printing")
    parser.add_argument("--plugins", action="store_true", help="include classes registered by installed plug-ins")
    options = parser.parse_args(arguments)
    schema = schedule_schema(plugins=options.plugins)
    if options.write:
        write_schema(options.write, schema)
    else:
        sys.stdout.write(_text(schema))
    return 0


if __name__ == "__main__":
    sys.exit(main())
