"""Which override of a quantizer holds for which module: exact names, then patterns in order (layer 2)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from distiller_ng.errors import ArgumentError, TargetError, did_you_mean, listed
from distiller_ng.names import canonical_name, strip_wrappers

__all__ = ["OverrideTypeError", "Overrides"]

_DEPRECATED = {"acts": "bits_activations", "wts": "bits_weights", "bias": "bits_bias"}
# ``module.`` or ``module\.`` as one whole part of a pattern, as schedules for wrapped models write it.
_WRAPPER_PART = re.compile(r"(?<![\w.*+?\])])module\\?\.|(?<=\.)module\\?\.")


class OverrideTypeError(ArgumentError, TypeError):
    """An override is of a wrong type, or has a key the quantizer does not know."""


@dataclass(frozen=True, slots=True)
class _Pattern:
    """One key of ``overrides``: its text, and the expressions that stand for it (the second without wrapper parts)."""

    text: str
    expressions: tuple[re.Pattern[str], ...]

    def is_exact(self, names: Iterable[str]) -> bool:
        return self.text in names or canonical_name(self.text) in names

    def fits(self, names: Iterable[str]) -> bool:
        return any(expression.fullmatch(name) for expression in self.expressions for name in names)

    def starts(self, names: Iterable[str]) -> bool:
        return any(expression.match(name) for expression in self.expressions for name in names if name)


@dataclass(slots=True)
class Overrides:
    """``{pattern: settings}`` of one quantizer, in order.

    Patterns are regular expressions over module names without the parts that wrappers add (``module.``); they match
    whole names, the first one wins, and a key that is literally a module's name beats every earlier pattern. A pattern
    that matches no name in full but the beginning of some is used for those, with a warning that suggests ``.*``.

    >>> settings = {"conv1": {"bits_weights": 8}, "conv.*": {"bits_weights": 2}}
    >>> model = nn.Sequential()
    >>> _ = [model.add_module(f"conv{i}", nn.Conv2d(1, 1, 1)) for i in (1, 2)]
    >>> Overrides.of(settings).assign(model)[0]
    {'conv1': 'conv1', 'conv2': 'conv.*'}
    """

    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    _patterns: list[_Pattern] = field(default_factory=list)

    @classmethod
    def of(cls, overrides: Mapping[str, Mapping[str, Any] | None] | None) -> Overrides:
        """Check the shape. Raises :class:`OverrideTypeError` (a ``TypeError``) for anything but ordered mappings,
        :class:`ArgumentError` for patterns that are no regular expressions and for Distiller's oldest keys.
        """
        if overrides is None:
            return cls()
        if not isinstance(overrides, Mapping):
            raise OverrideTypeError(
                f"overrides must be an OrderedDict or a dict, whose order counts, got {type(overrides).__name__}",
                argument=("overrides",),
            )
        result = cls()
        for text, entry in overrides.items():
            if not isinstance(text, str):
                raise OverrideTypeError(
                    f"a key of overrides is a module's name or a pattern, got {text!r}", argument=("overrides", text)
                )
            result.settings[text] = _settings(text, entry)
            result._patterns.append(_compile(text))
        return result

    def assign(self, model: nn.Module) -> tuple[dict[str, str], list[str]]:
        """``{module name as the model gives it: key}`` for every module that some key matches, and warnings.

        Those are about patterns that match beginnings only, and about those that an earlier pattern leaves nothing.
        Raises :class:`TargetError` for a key that matches nothing.
        """
        modules = dict(model.named_modules(remove_duplicate=False))
        known = {full: _forms(full, short) for short, full in strip_wrappers(modules).items()}
        prefixes = {p.text for p in self._patterns if not any(p.is_exact(n) or p.fits(n) for n in known.values())}
        notes = [self._prefix_note(pattern, known) for pattern in self._patterns if pattern.text in prefixes]
        found: dict[str, str] = {}
        for name, forms in known.items():
            exact = [p for p in self._patterns if p.text not in prefixes and p.is_exact(forms)]
            matching = (p for p in self._patterns if (p.starts if p.text in prefixes else p.fits)(forms))
            chosen = exact[0] if exact else next(matching, None)
            if chosen is not None:
                found[name] = chosen.text
        return found, notes + self._unused(found, known)

    @staticmethod
    def _prefix_note(pattern: _Pattern, known: Mapping[str, Sequence[str]]) -> str:
        started = [forms[0] for forms in known.values() if pattern.starts(forms)]
        if not started:
            names = [forms[0] for forms in known.values() if forms[0]]
            hint = did_you_mean(canonical_name(pattern.text.replace("\\", "")), names)
            raise TargetError(
                f"override {pattern.text!r} matches no module of the model. {hint}",
                argument=("overrides", pattern.text),
            )
        return (
            f"override {pattern.text!r} matches no module's whole name, only the beginning of "
            f"{listed(started, limit=4)}, and is used for {'those' if len(started) > 1 else 'that'}. Patterns are "
            f"regular expressions over whole names: write {pattern.text.rstrip('*') + '.*'!r}"
        )

    def _unused(self, found: Mapping[str, str], known: Mapping[str, Sequence[str]]) -> list[str]:
        notes = []
        for pattern in self._patterns:
            if pattern.text not in found.values():
                first = next((found[name] for name, forms in known.items() if pattern.fits(forms)), None)
                notes.append(
                    f"override {pattern.text!r} is never used: the first pattern that matches wins, and "
                    f"{'an earlier one' if first is None else repr(first)} matches all its modules. Move the more "
                    "specific pattern before the broad one"
                )
        return notes

    def __iter__(self) -> Iterator[str]:
        return iter(self.settings)

    def __len__(self) -> int:
        return len(self.settings)


def _forms(full: str, short: str) -> tuple[str, ...]:
    """The names a pattern may mean one module by, the canonical one first."""
    return tuple(dict.fromkeys((short, full, full.replace("module.", "", 1), f"module.{short}" if short else "")))


def _settings(text: str, entry: Any) -> dict[str, Any]:
    place = ("overrides", text)
    if entry is None:  # "relu1: null"
        return dict.fromkeys(_DEPRECATED.values())
    if not isinstance(entry, Mapping):
        raise OverrideTypeError(
            f"an override maps settings to values, such as {{bits_weights: 4}}, got {entry!r}", argument=place
        )
    for key in entry:
        if key in _DEPRECATED:
            raise ArgumentError(
                f"override {text!r}: {key!r} is no longer supported, write {_DEPRECATED[key]!r}",
                argument=(*place, key),
            )
        if not isinstance(key, str):
            raise OverrideTypeError(f"override {text!r}: a setting's name is text, got {key!r}", argument=place)
    return dict(entry)


def _compile(text: str) -> _Pattern:
    bare = _WRAPPER_PART.sub("", text)
    try:
        return _Pattern(text, tuple(re.compile(variant) for variant in dict.fromkeys((text, bare)) if variant))
    except re.error as error:
        glob = re.sub(r"(?<!\.)\*", ".*", text)
        hint = f". A star alone repeats what stands before it: write {glob!r}" if glob != text else ""
        raise ArgumentError(
            f"override {text!r} is not a valid regular expression: {error}{hint}", argument=("overrides", text)
        ) from None
