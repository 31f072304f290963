"""What a recipe says about one layer's quantization: bits, symmetry, granularity of its parts (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from distiller_ng.errors import ArgumentError, did_you_mean
from distiller_ng.ops.linear_quantization import LinearQuantMode

__all__ = ["QuantizationScheme", "SchemeLike", "TensorScheme"]

Path: TypeAlias = tuple[str | int, ...]
SchemeLike: TypeAlias = str | Mapping[str, Any] | None

_NONE = ("none", "null", "")
_TENSOR_KEYS = ("num_bits", "symmetric", "strategy", "kwargs")


@dataclass(frozen=True, slots=True)
class TensorScheme:
    """One tensor's grid: ``num_bits`` integers, with zero point 0 if ``symmetric``, ``channel`` by channel or not."""

    num_bits: int = 8
    symmetric: bool = False
    channel: bool = False

    @classmethod
    def read(cls, value: Any, argument: Path) -> TensorScheme | None:
        """``{num_bits: 8, symmetric: false, strategy: tensor}``; None and ``null`` mean floating point."""
        if value is None or (isinstance(value, str) and value.strip().lower() in _NONE):
            return None
        if not isinstance(value, Mapping):
            message = f"{argument[-1]} is null or {{num_bits: 8, symmetric: false, strategy: tensor}}, got {value!r}"
            raise ArgumentError(message, argument=argument)
        _check_keys(value, _TENSOR_KEYS, argument)
        bits, symmetric, strategy = value.get("num_bits", 8), value.get("symmetric", False), value.get("strategy")
        if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 16:
            raise ArgumentError(
                f"num_bits is a whole number from 2 to 16, got {bits!r}", argument=(*argument, "num_bits")
            )
        if not isinstance(symmetric, bool):
            raise ArgumentError(f"symmetric is true or false, got {symmetric!r}", argument=(*argument, "symmetric"))
        if strategy not in (None, "tensor", "channel"):
            raise ArgumentError(f"strategy is tensor or channel, got {strategy!r}", argument=(*argument, "strategy"))
        return cls(bits, symmetric, strategy == "channel")

    def mode(self, *, signed: bool) -> LinearQuantMode:
        """The mode of our quantizers; ``signed`` chooses the integers of an asymmetric one."""
        if self.symmetric:
            return LinearQuantMode.SYMMETRIC
        return LinearQuantMode.ASYMMETRIC_SIGNED if signed else LinearQuantMode.ASYMMETRIC_UNSIGNED


_ACTIVATIONS = TensorScheme()
_WEIGHTS = TensorScheme(symmetric=True)


@dataclass(frozen=True, slots=True)
class QuantizationScheme:
    """How a layer is quantized: its input, its weight and its output; None: in floating point.

    >>> QuantizationScheme.read("default").weights
    TensorScheme(num_bits=8, symmetric=True, channel=False)
    """

    input_activations: TensorScheme | None = _ACTIVATIONS
    weights: TensorScheme | None = _WEIGHTS
    output_activations: TensorScheme | None = None

    @classmethod
    def read(
        cls, value: SchemeLike, argument: Path = ("scheme",), default: QuantizationScheme | None = None
    ) -> QuantizationScheme:
        """What a recipe writes.

        None, ``default`` and ``deepsparse``: 8 bits, asymmetric inputs, symmetric weights; ``tensorrt``: both
        symmetric; or ``{input_activations: ..., weights: ..., output_activations: ...}``, where what is left out is as
        by default and ``null`` means floating point. Raises :class:`ArgumentError`.
        """
        base = default or cls()
        if value is None or value in ("default", "deepsparse"):
            return base
        if value == "tensorrt":
            return cls(replace(_ACTIVATIONS, symmetric=True), _WEIGHTS)
        if not isinstance(value, Mapping):
            message = f"{argument[-1]} is default, deepsparse, tensorrt or a mapping, got {value!r}"
            raise ArgumentError(message, argument=argument)
        parts = ("input_activations", "weights", "output_activations")
        _check_keys(value, (*parts, "target_hardware"), argument)
        given = {part: TensorScheme.read(value[part], (*argument, part)) for part in parts if part in value}
        return replace(cls(), **given)


def _check_keys(value: Mapping[str, Any], allowed: tuple[str, ...], argument: Path) -> None:
    for key in value:
        if key not in allowed:
            message = f"{argument[-1]} has no {key!r}. {did_you_mean(str(key), allowed)}"
            raise ArgumentError(message, argument=(*argument, key))
