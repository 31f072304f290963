"""The schema of a component is its constructor's signature: names, types and defaults of its arguments (layer 4)."""

from __future__ import annotations

import builtins
import collections.abc
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, Strict, TypeAdapter
from pydantic.fields import FieldInfo

__all__ = ["NO_DEFAULT", "Argument", "adapter", "arguments_of"]

#: Default of an argument that must be given.
NO_DEFAULT = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument a schedule may give."""

    name: str
    annotation: Any
    default: Any = NO_DEFAULT

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is NO_DEFAULT


def arguments_of(target: Callable[..., Any]) -> Mapping[str, Argument]:
    """The keyword arguments of a class's constructor, in order, without ``self``.

    A constructor that passes ``**kwargs`` on also has the arguments of the constructors it inherits from.

    >>> class Demo:
    ...     def __init__(self, level: float, deep: bool = False) -> None: ...
    >>> [(a.name, a.annotation.__name__, a.required) for a in arguments_of(Demo).values()]
    [('level', 'float', True), ('deep', 'bool', False)]
    """
    return _cached_arguments(target)


@cache
def _cached_arguments(target: Any) -> Mapping[str, Argument]:
    found: dict[str, Argument] = {}
    for function in _constructors(target):
        hints = _hints(function)
        parameters = list(inspect.signature(function).parameters.values())
        for parameter in parameters[1:] if inspect.isclass(target) else parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                argument = Argument(parameter.name, hints.get(parameter.name, Any), parameter.default)
                found.setdefault(parameter.name, argument)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return types.MappingProxyType(found)


def _constructors(target: Callable[..., Any]) -> Iterable[Callable[..., Any]]:
    """The functions that receive the arguments: the class's ``__init__`` and those it inherits, nearest first."""
    if not inspect.isclass(target):
        return [target]
    own = [cls.__dict__["__init__"] for cls in target.__mro__ if "__init__" in cls.__dict__ and cls is not object]
    return [function for function in own if inspect.isfunction(function)]


class _Names(dict[str, Any]):
    """Names for resolving annotations: those a module imports for type checking only stand for anything."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        super().__init__()
        self._known = known

    def __missing__(self, name: str) -> Any:
        return self._known[name] if name in self._known else getattr(builtins, name, Any)


def _hints(function: Callable[..., Any]) -> Mapping[str, Any]:
    known = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        return get_type_hints(function, localns=_Names(known), include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError):  # annotations that are no types
        return {}


@cache
def _cached_adapter(annotation: Any) -> TypeAdapter[Any]:
    return _new_adapter(annotation)


def adapter(annotation: Any) -> TypeAdapter[Any]:
    """pydantic's validator for one argument: containers are taken as they come, scalars are not converted.

    A whole number passes for a float; text never passes for a number, a boolean is no number, and floats are finite.
    """
    try:
        return _cached_adapter(annotation)
    except TypeError:  # an annotation that cannot be hashed, e.g. Literal[[...]]
        return _new_adapter(annotation)


def _new_adapter(annotation: Any) -> TypeAdapter[Any]:
    config = ConfigDict(arbitrary_types_allowed=True)
    try:
        return TypeAdapter(_strict(annotation), config=config)
    except PydanticUserError:  # a type that brings its own configuration (dataclass, TypedDict)
        pass
    except (PydanticSchemaGenerationError, TypeError):
        return TypeAdapter(Any)
    try:
        return TypeAdapter(_strict(annotation))
    except (PydanticUserError, PydanticSchemaGenerationError, TypeError):
        return TypeAdapter(Any)


_SCALARS: Mapping[Any, Any] = {
    bool: Annotated[bool, Strict()],
    int: Annotated[int, Strict()],
    str: Annotated[str, Strict()],
    float: Annotated[float, Strict(), FieldInfo(allow_inf_nan=False)],
}


def _strict(annotation: Any) -> Any:
    """The same type with scalars that are not converted, at any depth."""
    if annotation in (None, type(None), Any):
        return annotation
    if isinstance(annotation, type) and annotation in _SCALARS:
        return _SCALARS[annotation]
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        members = (_strict(args[0]), *args[1:])
        return Annotated[members]
    if origin in (Union, types.UnionType):
        return Union[tuple(_strict(arg) for arg in args)]
    if not args or not isinstance(origin, type) or issubclass(origin, collections.abc.Callable):  # type: ignore[arg-type]
        return annotation  # Literal's origin is no type
    inner = tuple(arg if arg is Ellipsis else _strict(arg) for arg in args)
    try:
        return origin[inner]  # type: ignore[index]
    except TypeError:
        return annotation
