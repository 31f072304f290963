"""Replacing modules by what a quantizer makes of them: first everything is made, then everything is set (layer 2)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import nn

from distiller_ng.errors import listed
from distiller_ng.ops.modules import has_parts
from distiller_ng.quantization._overrides import OverrideTypeError

__all__ = ["ReplaceFn", "Replacement", "Replacements", "check_settings", "settings_of"]

#: ``function(module, full name, module_qbits_map, **override settings) -> module`` (the same one: leave it alone).
ReplaceFn: TypeAlias = Callable[..., nn.Module]


@dataclass(frozen=True, slots=True)
class Replacement:
    """``container.child`` becomes ``module``; both names are the model's own."""

    container: nn.Module
    child: str
    name: str
    original: nn.Module
    module: nn.Module


@dataclass(slots=True)
class Replacements:
    """Decides, module by module, what is replaced; ``shared`` lists ``(second name, first name)`` of shared modules.

    ``replace(module, name)`` returns the module itself where nothing is to be done.
    """

    replace: Callable[[nn.Module, str], nn.Module]
    blacklist: Collection[type[nn.Module]] = ()
    found: list[Replacement] = field(default_factory=list)
    shared: list[tuple[str, str]] = field(default_factory=list)
    _seen: dict[nn.Module, tuple[str, nn.Module]] = field(default_factory=dict)

    def visit(self, container: nn.Module, prefix: str = "") -> None:
        """Walk the model from the top; nothing is changed."""
        for child, module in container._modules.items():
            if module is None or isinstance(module, tuple(self.blacklist)):
                continue
            name = prefix + child
            if module in self._seen:
                first, wrapper = self._seen[module]
                self.shared.append((name, first))
                if wrapper is not module:
                    self.found.append(Replacement(container, child, name, module, wrapper))
                continue
            wrapper = self.replace(module, name)
            self._seen[module] = (name, wrapper)
            if wrapper is not module:
                self.found.append(Replacement(container, child, name, module, wrapper))
            if has_parts(module):
                self.visit(module, f"{name}.")

    def apply_(self) -> None:
        """Set everything that was found, in the model."""
        for replacement in self.found:
            setattr(replacement.container, replacement.child, replacement.module)

    def __iter__(self) -> Iterator[Replacement]:
        return iter(self.found)


def settings_of(function: ReplaceFn) -> tuple[str, ...] | None:
    """The override settings a replacement function takes besides the bits; None if it takes any."""
    parameters = list(inspect.signature(function).parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    allowed = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return tuple(allowed[3:])


def check_settings(
    function: ReplaceFn, settings: Mapping[str, Any], *, key: str, owner: str, kind: type[nn.Module]
) -> None:
    """Raise :class:`OverrideTypeError` for a setting the replacement function does not take."""
    allowed = settings_of(function)
    unknown = [] if allowed is None else [name for name in settings if name not in allowed]
    if unknown:
        takes = f"it takes {listed(allowed or ())}" if allowed else "it takes none"
        raise OverrideTypeError(
            f"override {key!r}: {owner} does not accept {listed(map(repr, unknown))} as override arguments for "
            f"{kind.__name__}; besides bits_activations, bits_weights and bits_bias {takes}",
            argument=("overrides", key, unknown[0]),
        )
