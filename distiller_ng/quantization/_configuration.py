"""What a model was quantized with, noted on the library's own modules, for copies and checkpoints (layer 2)."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch import nn

from distiller_ng.quantization.ptq_settings import ModuleQuantMode

__all__ = ["QuantizerConfig", "constructor_arguments", "is_marked", "mark", "marked_modules", "quantization_of"]

_MARK = "quantized_by"
# Statistics are kept in the layout, in whatever form they were given.
_LIVE_ARGUMENTS = ("self", "model", "optimizer", "model_activation_stats")


@dataclass(frozen=True, slots=True)
class QuantizerConfig:
    """Everything needed to quantize a fresh model the same way, in values JSON can hold.

    ``name`` of the registered class, ``arguments`` of its constructor without model and optimizer, and what was found
    out about the model (``layout``). ``arguments`` is None when they hold something JSON cannot, or the class is not
    registered: such a model has to be quantized again by the program that did it.
    """

    name: str
    arguments: Mapping[str, Any] | None
    layout: Mapping[str, Any] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantizerConfig:
        return self


def constructor_arguments(cls: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of a constructor call as JSON values, in the signature's order; None if they are none.

    >>> class Demo:
    ...     def __init__(self, model, bits=8, *, mode=None): ...
    >>> constructor_arguments(Demo, (object(), 4), {})
    {'bits': 4}
    """
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    try:
        bound = signature.bind_partial(None, *args, **kwargs)
    except TypeError:
        return None  # the call itself fails, and says why
    given: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            given.update(value)
        elif name not in _LIVE_ARGUMENTS:
            given[name] = value
    try:
        plain = {name: _plain(value) for name, value in given.items()}
        return plain if json.loads(json.dumps(plain, allow_nan=False)) == plain else None
    except (TypeError, ValueError):
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, ModuleQuantMode):
        return {"activations": value.activations.name, "weights": value.weights.name}
    if isinstance(value, Mapping):
        return {str(key) if type(key) is int else key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


def mark(module: nn.Module, config: QuantizerConfig) -> None:
    """Note on one of the library's own modules who put it there."""
    module.__dict__[_MARK] = config


def is_marked(module: nn.Module) -> bool:
    """Whether a quantizer put ``module`` there, or changed it."""
    return _MARK in module.__dict__


def marked_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of everything a quantizer put into ``model`` or changed there."""
    return ((name, module) for name, module in model.named_modules() if is_marked(module))


def quantization_of(model: nn.Module) -> QuantizerConfig | None:
    """What ``model`` was quantized with; None for a model that was not."""
    return next((module.__dict__[_MARK] for _, module in marked_modules(model)), None)
