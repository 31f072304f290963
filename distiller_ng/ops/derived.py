"""Changing what one instance does by giving it a subclass of its own class, made at run time (layer 1).

The instance keeps its identity, parameters, buffers, hooks and attributes; no class of the user's is touched.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

from torch import nn

__all__ = ["Derived", "derive_", "original_class", "underive_"]

_DERIVATION = "_derivation"


class Derived(nn.Module):
    """Base of the classes that :func:`derive_` puts before a module's own; they may be stacked."""

    #: What the name of the new class begins with.
    prefix: ClassVar[str] = ""

    def portable_state(self) -> dict[str, Any]:
        """The attributes that copies and pickles get."""
        return dict(self.__dict__)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class cannot be found by its name, so copies and pickles make it again.
        cls: type = type(self)
        mixins: list[type] = []
        while _DERIVATION in vars(cls):
            mixin, cls = vars(cls)[_DERIVATION]
            mixins.append(mixin)
        return _rebuild, (cls, tuple(reversed(mixins))), self.portable_state()


def derive_(module: nn.Module, mixin: type[Derived]) -> None:
    """Make ``module``, in place, an instance of ``mixin`` too, before its own class; nothing if it is one."""
    if not isinstance(module, mixin):
        module.__class__ = _derived_class(type(module), mixin)


def underive_(module: nn.Module, mixin: type[Derived]) -> None:
    """Undo :func:`derive_`; what was put on top of it stays."""
    if isinstance(module, mixin):
        module.__class__ = _without(type(module), mixin)


def original_class(cls: type) -> type[nn.Module]:
    """The class a module had before it was changed."""
    while _DERIVATION in vars(cls):
        cls = vars(cls)[_DERIVATION][1]
    return cls


def _without(cls: Any, mixin: type[Derived]) -> Any:
    top, below = vars(cls)[_DERIVATION]
    return below if top is mixin else _derived_class(_without(below, mixin), top)


def _make_class(cls: Any, mixin: Any) -> Any:
    members = {"__module__": cls.__module__, _DERIVATION: (mixin, cls)}
    if _takes_anything(mixin):
        members["forward"] = _with_signature(mixin.forward, cls.forward)
    return type(f"{mixin.prefix}{cls.__name__}", (mixin, cls), members)


def _takes_anything(mixin: Any) -> bool:
    """Whether a mixin passes on whatever ``forward`` is called with."""
    kinds = [one.kind for one in inspect.signature(mixin.forward).parameters.values()][1:]
    return kinds == [inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD]


def _with_signature(forward: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """``forward`` with the arguments of ``original`` to show: ``torch.export`` matches keyword arguments with them."""

    @functools.wraps(forward)
    def passing(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    try:
        passing.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    except (TypeError, ValueError):  # a forward that Python does not know the arguments of
        return forward
    return passing


#: One class for each pair, so that two layers of one class stay of one class.
_derived_class: Callable[[Any, Any], Any] = cache(_make_class)


def _rebuild(cls: type[nn.Module], mixins: tuple[type[Derived], ...]) -> nn.Module:
    for mixin in mixins:
        cls = _derived_class(cls, mixin)
    return cls.__new__(cls)
