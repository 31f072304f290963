"""Functions that a model's ``forward`` calls, ``x + y`` and ``F.softmax``, seen and named like modules (layer 1).

While a module's ``forward`` runs, a ``TorchFunctionMode`` sees the calls made there and in plain functions it uses;
those made inside of other modules belong to these. The first ``+`` of module ``layer1.0`` is ``layer1.0.add``, the next
``layer1.0.add_1``. Names that the module has already are left out, so a name never means two things.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from distiller_ng.graph._function_kinds import KINDS
from distiller_ng.ops.derived import Derived, derive_, original_class, underive_
from distiller_ng.ops.modules import has_parts

__all__ = [
    "CallListener",
    "FunctionCall",
    "Outside",
    "OwnsCalls",
    "Unseen",
    "call_kind",
    "function_call",
    "is_running",
    "may_own_calls",
    "watching_calls",
]

_OUT_OF_PLACE: dict[str, Any] = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div}
_NAME = re.compile(r"(.+?)(?:_(\d+))?")
# Modules that compute with the weights of their parts, never call these, or were made for a purpose of their own.
_UNITS = (nn.MultiheadAttention, nn.RNNBase, torch.jit.ScriptModule)
_OWN_PARTS = ("distiller_ng.modules.", "distiller_ng.quantization.")


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """One call: ``function(*operands, **settings)``, whose result is also written to ``target`` where it is in place.

    ``kind`` names the operation (``add`` for ``+``, ``torch.add`` and ``x.add_``), ``function`` works out of place.
    ``torch.cat([x, y], 1)`` has the operands ``(x, y)`` and the settings ``{"dim": 1}``, ``1 - x`` the operands
    ``(x, 1)``.
    """

    kind: str
    function: Callable[..., Any]
    operands: tuple[Any, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    target: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """The operands that are tensors."""
        return [value for value in self.operands if isinstance(value, Tensor)]


class CallListener(Protocol):
    """What is told of the calls, as :func:`watching_calls` makes them known."""

    def before_call(self, owner: nn.Module, name: str, call: FunctionCall) -> None:
        """The module ``owner`` is about to make the call, its own name for it being ``name``."""

    def after_call(self, owner: nn.Module, name: str, call: FunctionCall, output: Any) -> None:
        """The call is done."""


def call_kind(name: str) -> str | None:
    """The kind of call that ``name`` can be the name of: ``"add_2"`` -> ``"add"``; None for any other name.

    >>> call_kind("softmax"), call_kind("conv")
    ('softmax', None)
    """
    kinds = set(KINDS.values())
    if name in kinds:
        return name
    match = _NAME.fullmatch(name)
    return match[1] if match and match[1] in kinds and match[2] and int(match[2]) > 0 else None


def may_own_calls(module: nn.Module) -> bool:
    """Whether calls in ``module.forward`` are named after it: it has parts, and is no unit such as attention."""
    if isinstance(module, _UNITS) or isinstance(getattr(module, "wrapped_module", None), nn.Module):
        return False
    if original_class(type(module)).__module__.startswith(_OWN_PARTS):
        return False
    return has_parts(module)


def function_call(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> FunctionCall | None:
    """What a call of torch's is; None where it is of no interest: another function, whole numbers only, ``out=``."""
    name = getattr(function, "__name__", "")
    in_place = name.endswith("_") and not name.startswith("__")
    kind = KINDS.get(name[:-1] if in_place else name)
    if kind is None or kwargs.get("out") is not None:
        return None
    operands, settings = _arguments(name.rstrip("_") if in_place else name, kind, function, args, dict(kwargs))
    if not any(isinstance(one, Tensor) and one.is_floating_point() for one in operands):
        return None
    if in_place:
        plain = _OUT_OF_PLACE.get(kind) or getattr(torch.Tensor, name[:-1], None)
        return None if plain is None else FunctionCall(kind, plain, operands, settings, operands[0])
    if settings.pop("inplace", False):
        return FunctionCall(kind, function, operands, settings, operands[0])
    return FunctionCall(kind, function, operands, settings)


def _arguments(
    name: str, kind: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The operands, and the settings with ``inplace`` among them if it is a parameter."""
    if kind in ("cat", "stack", "hstack"):
        tensors = args[0] if args else kwargs.pop("tensors", ())
        dim = args[1] if len(args) > 1 else kwargs.pop("dim", kwargs.pop("axis", 0))
        settings = kwargs if kind == "hstack" else {"dim": dim, **kwargs}
        return tuple(tensors), settings
    if kind in ("add", "sub", "mul", "div", "maximum", "minimum", "matmul", "bmm"):
        named = [kwargs.pop(key) for key in ("input", "self", "other", "mat2", "tensor2") if key in kwargs]
        return (*args, *named), kwargs
    names = _parameters(function)
    if "inplace" in names:
        kwargs.update(zip(names[1:], args[1:]))
        return (args[0] if args else kwargs.pop("input"),), kwargs
    if not args and "input" in kwargs:
        return (kwargs.pop("input"),), kwargs
    return args, kwargs


@cache
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a Python function's parameters; none for functions in C, which have no ``inplace``."""
    if not inspect.isfunction(function):
        return ()
    return tuple(inspect.signature(function).parameters)


# -- whose call it is ----------------------------------------------------------------------------------------------


class _Frame:
    """One run of a module's ``forward``: how often it called what."""

    __slots__ = ("counts", "module")

    def __init__(self, module: OwnsCalls) -> None:
        self.module = module
        self.counts: dict[str, int] = {}

    def name(self, kind: str) -> str:
        """The module's own name for its next call of that kind."""
        own = self.module.__dict__.get("function_names", ())
        position = self.counts.get(kind, 0)
        while True:
            name = kind if position == 0 else f"{kind}_{position}"
            position += 1
            if name in own or not hasattr(self.module, name):
                self.counts[kind] = position
                return name


#: The innermost module that runs; None inside of modules whose calls are of no interest.
_RUNNING: ContextVar[_Frame | None] = ContextVar("distiller_ng_running", default=None)
_SEEING: ContextVar[bool] = ContextVar("distiller_ng_seeing", default=False)


class _SeesCalls(TorchFunctionMode):
    """Hands every call of interest to the module that makes it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        frame = _RUNNING.get()
        if frame is not None:
            call = function_call(func, args, kwargs or {})
            if call is not None:
                token = _RUNNING.set(None)
                try:
                    return frame.module.on_call(frame.name(call.kind), call, lambda: func(*args, **(kwargs or {})))
                finally:
                    _RUNNING.reset(token)
        return func(*args, **(kwargs or {}))


def is_running(module: nn.Module) -> bool:
    """Whether it is this module's ``forward`` that runs, and not that of a part of it."""
    frame = _RUNNING.get()
    return frame is not None and frame.module is module


class Unseen(nn.Module):
    """Base of modules whose calls are of no interest: nobody sees what is called in them, or in their hooks."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As every module's."""
        token = _RUNNING.set(None)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            _RUNNING.reset(token)


class Outside(Derived, Unseen):
    """Put before the class of a module to make its calls ones of no interest."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own ``forward``."""
        token = _RUNNING.set(None)
        try:
            return super().forward(*args, **kwargs)
        finally:
            _RUNNING.reset(token)


class OwnsCalls(Outside):
    """Base of what is put before the class of a module that makes calls; subclasses define :meth:`on_call`."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own ``forward``, seen."""
        forward = super(Outside, self).forward
        token = _RUNNING.set(_Frame(self))
        try:
            if _SEEING.get():
                return forward(*args, **kwargs)
            seeing = _SEEING.set(True)
            try:
                with _SeesCalls():
                    return forward(*args, **kwargs)
            finally:
                _SEEING.reset(seeing)
        finally:
            _RUNNING.reset(token)

    def on_call(self, name: str, call: FunctionCall, original: Callable[[], Any]) -> Any:
        """What the call returns; ``original`` makes it."""
        return original()


# -- watching ------------------------------------------------------------------------------------------------------


class _Watched(OwnsCalls):
    """A module whose calls are told to listeners."""

    def on_call(self, name: str, call: FunctionCall, original: Callable[[], Any]) -> Any:
        is_module = name in self.__dict__.get("function_names", ())  # then hooks on it tell more
        listeners: list[CallListener] = [] if is_module else self.__dict__["call_listeners"]
        for listener in listeners:
            listener.before_call(self, name, call)
        output = super().on_call(name, call, original)
        for listener in listeners:
            listener.after_call(self, name, call, output)
        return output


class _OutsideWatched(Outside):
    """A module that is none of those."""


@contextmanager
def watching_calls(model: nn.Module, listener: CallListener) -> Iterator[None]:
    """Tell ``listener`` of every call inside ``model`` while the block runs it; the model is unchanged otherwise.

    Several may watch at a time.
    """
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    for module in modules:
        module.__dict__.setdefault("call_listeners", []).append(listener)
        derive_(module, _Watched if may_own_calls(module) else _OutsideWatched)
    try:
        yield
    finally:
        for module in modules:
            listeners = module.__dict__["call_listeners"]
            listeners.remove(listener)
            if not listeners:
                del module.__dict__["call_listeners"]
                underive_(module, _Watched)
                underive_(module, _OutsideWatched)
