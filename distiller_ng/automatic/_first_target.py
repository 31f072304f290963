"""What a first schedule shall reach, and with which technique."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from distiller_ng.errors import ArgumentError, did_you_mean

__all__ = ["BUDGETS", "TECHNIQUES", "Target", "Technique", "UnreachableTarget", "technique_named", "two_digits"]

#: What a target can be measured in, with the words for it.
BUDGETS: Mapping[str, str] = {
    "size": "bytes of the stored model",
    "macs": "multiply-accumulates",
    "latency": "time of a forward pass",
}


class UnreachableTarget(ArgumentError):
    """No schedule of the technique reaches the target; ``least`` is the share that can be reached (None: unknown)."""

    def __init__(self, message: str, *, least: float | None = None) -> None:
        super().__init__(message, argument=("target",))
        self.least = least


@dataclass(frozen=True, slots=True)
class Target:
    """The share of a model's cost that shall remain: ``Target("macs", 0.5)``."""

    budget: str
    share: float

    @classmethod
    def read(cls, text: object) -> Target:
        """``"macs=0.5"`` as a target; targets pass. Raises :class:`ArgumentError` for anything else.

        >>> Target.read("size=30%").share
        0.3
        """
        if isinstance(text, Target):
            return text
        if not isinstance(text, str):
            raise _wrong(f"a target is a text such as macs=0.5, got {text!r}")
        name, equals, number = (part.strip() for part in text.partition("="))
        if not equals:
            raise _wrong(f"{text!r} is no target: write size=0.3, macs=0.5 or latency=0.5")
        if name not in BUDGETS:
            raise _wrong(f"unknown target {name!r}. {did_you_mean(name, BUDGETS)}")
        try:
            share = float(number[:-1]) / 100 if number.endswith("%") else float(number)
        except ValueError:
            raise _wrong(f"{number!r} is not a number: write {name}=0.5 for half of what it is now") from None
        if not 0 < share < 1:
            message = f"{name}={number}: the share that remains lies above 0 and below 1, such as {name}=0.5"
            raise _wrong(message)
        return cls(name, share)

    def __str__(self) -> str:
        return f"{self.budget}={two_digits(self.share)}"


def two_digits(share: float) -> str:
    """0.4 as "0.40", 0.0243 as "0.024": no share is shown as nothing."""
    text = f"{share:.2f}"
    return text if share >= 0.1 or math.isclose(float(text), share) else f"{share:.2g}"


def _wrong(message: str) -> ArgumentError:
    return ArgumentError(message, argument=("target",))


@dataclass(frozen=True, slots=True)
class Technique:
    """A way to make a model cheaper, or two of them together.

    ``group``: what is pruned ("element" or "filter"; None: nothing). ``pattern``: of N:M sparsity. ``bits``: of weights
    at the end. ``meets``: the budgets it can meet.
    """

    name: str
    what: str
    meets: tuple[str, ...]
    group: str | None = None
    pattern: str | None = None
    bits: int = 32

    @property
    def pruned_thing(self) -> str:
        """ "weights" or "filters"."""
        return "filters" if self.group == "filter" else "weights"


TECHNIQUES: Mapping[str, Technique] = {
    technique.name: technique
    for technique in (
        Technique("weights", "single weights of lowest magnitude become zero", ("size",), "element"),
        Technique("2:4", "of 4 neighbouring weights the 2 smallest become zero", ("size",), "element", pattern="2:4"),
        Technique("filters", "whole filters are removed", ("macs", "latency", "size"), "filter"),
        Technique("int8", "training with weights and activations rounded to 8 bits", ("size",), bits=8),
        Technique("weights+int8", "single weights become zero, the others get 8 bits", ("size",), "element", bits=8),
        Technique(
            "filters+int8",
            "whole filters are removed, what stays gets 8 bits",
            ("macs", "latency", "size"),
            "filter",
            bits=8,
        ),
    )
}


def technique_named(name: str, target: Target) -> Technique:
    """The technique; raises :class:`ArgumentError` for another name, or one that cannot meet the target's budget."""
    if name not in TECHNIQUES:
        hint = did_you_mean(str(name), TECHNIQUES)
        raise ArgumentError(f"unknown technique {name!r}. {hint}", argument=("technique",))
    technique = TECHNIQUES[name]
    if target.budget not in technique.meets:
        able = [other.name for other in TECHNIQUES.values() if target.budget in other.meets]
        raise ArgumentError(
            f"technique {name!r} cannot meet {target}: {_WHY_NOT[technique.group is not None]}. "
            f"Use --technique {' or '.join(able)}, or a target for size",
            argument=("technique",),
        )
    return technique


_WHY_NOT = {
    True: "a dense runtime multiplies by zeros as by any other number, so zeros save it no work",
    False: "as many numbers are multiplied, and how much faster 8 bits are depends on the runtime (measure it with "
    "distiller-ng quantize and distiller-ng benchmark)",
}
