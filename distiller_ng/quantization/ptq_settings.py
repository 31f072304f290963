"""How the tensors of a post-training quantized model are quantized: settings, and what travels with them (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError, CalibrationError, LifecycleError, listed
from distiller_ng.ops.clipping import Clipping
from distiller_ng.ops.linear_quantization import LinearQuantMode, check_bits, quantized_range, range_bins
from distiller_ng.quantization.q_utils import linear_quantize_clamp
from distiller_ng.quantization.quant_params import (
    ClipMode,
    clipping_of,
    get_quant_params_from_stats_dict,
    get_quant_params_from_tensor,
)

__all__ = [
    "ModuleQuantMode",
    "NoStatsError",
    "QuantSettings",
    "StatisticsError",
    "StatisticsFileError",
    "TensorQuantMetadata",
    "UnquantizedInputError",
    "input_settings",
    "linear_quantize_clamp_with_metadata",
    "metadata_of",
    "parse_clip",
    "with_metadata",
]

_INPUT_KEYS = ("bits_activations", "mode", "clip_acts", "clip_n_stds", "clip_half_range")


class NoStatsError(CalibrationError, NotImplementedError):
    """A module whose output range must be known beforehand has no calibration statistics."""


class StatisticsError(ArgumentError, CalibrationError):
    """The statistics a quantizer was given are damaged or belong to another model."""


class StatisticsFileError(StatisticsError, FileNotFoundError):
    """The statistics file a quantizer was given does not exist."""


class UnquantizedInputError(LifecycleError):
    """A module that computes with integers got a tensor nobody quantized, or one that is quantized twice."""


class TensorQuantMetadata(NamedTuple):
    """The grid a tensor's values lie on: ``x = (q + zero_point) / scale`` with ``q`` in ``min_q_val .. max_q_val``."""

    scale: Tensor
    zero_point: Tensor
    min_q_val: float
    max_q_val: float


@dataclass(frozen=True, slots=True)
class ModuleQuantMode:
    """One mode for activations and one for weights: ``ModuleQuantMode("ASYMMETRIC_UNSIGNED", "SYMMETRIC")``."""

    activations: LinearQuantMode
    weights: LinearQuantMode

    def __post_init__(self) -> None:
        for name in ("activations", "weights"):
            object.__setattr__(self, name, LinearQuantMode.parse(getattr(self, name), argument=("mode", name)))

    @classmethod
    def parse(cls, mode: Mode, *, argument: tuple[str | int, ...] = ("mode",)) -> ModuleQuantMode:
        """From a mode, its name, a mapping with ``activations`` and ``weights``, or itself.

        Raises :class:`ArgumentError` for anything else.
        """
        if isinstance(mode, cls):
            return mode
        if isinstance(mode, Mapping):
            if set(mode) != {"activations", "weights"}:
                raise ArgumentError(
                    f"a mode given as a mapping has the keys activations and weights, got {listed(map(repr, mode))}",
                    argument=argument,
                )
            parsed = {key: LinearQuantMode.parse(value, argument=(*argument, key)) for key, value in mode.items()}
            return cls(**parsed)
        one = LinearQuantMode.parse(mode, argument=argument)  # type: ignore[arg-type]
        return cls(one, one)


Mode: TypeAlias = "ModuleQuantMode | LinearQuantMode | str | Mapping[str, Any]"
Clip: TypeAlias = "ClipMode | str | Clipping | None"


def parse_clip(clip: Clip, *, argument: tuple[str | int, ...] = ("clip_acts",)) -> ClipMode | str | Clipping:
    """Distiller's member where ``clip`` is or names one; None means ``NONE``. Names of users' clippings stay text."""
    if clip is None:
        return ClipMode.NONE
    if isinstance(clip, str) and clip.upper() in ClipMode.__members__:
        return ClipMode[clip.upper()]
    if not isinstance(clip, ClipMode | str | Clipping):
        raise ArgumentError(
            f"a clipping is one of {listed(ClipMode.__members__)}, or the name of a registered one, got {clip!r}",
            argument=argument,
        )
    return clip


@dataclass(frozen=True, slots=True)
class QuantSettings:
    """How one tensor is quantized; ``num_bits`` None leaves it in floating point.

    Raises :class:`ArgumentError` for bits, modes and clippings that cannot be, and for ``N_STD`` without
    ``clip_n_stds``.
    """

    num_bits: int | None
    quant_mode: LinearQuantMode
    clip_mode: ClipMode | str | Clipping = ClipMode.NONE
    clip_n_stds: float | None = None
    clip_half_range: bool = False
    per_channel: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "quant_mode", LinearQuantMode.parse(self.quant_mode))
        object.__setattr__(self, "clip_mode", parse_clip(self.clip_mode))
        if self.num_bits is not None:
            range_bins(check_bits(self.num_bits, argument="num_bits"), self.quant_mode)
        clipping_of(self.clip_mode, self._num_stds, self._half_range)

    @property
    def _num_stds(self) -> float | None:
        return self.clip_n_stds if self.clip_mode is ClipMode.N_STD else None

    @property
    def _half_range(self) -> bool:
        return self.clip_half_range and self.clip_mode in (ClipMode.GAUSS, ClipMode.LAPLACE)

    @property
    def bits(self) -> int:
        """``num_bits`` of settings that quantize."""
        if self.num_bits is None:
            raise LifecycleError("these settings leave the tensor in floating point")
        return self.num_bits

    @property
    def q_range(self) -> tuple[int, int]:
        """Smallest and largest integer."""
        return quantized_range(self.bits, self.quant_mode)

    def of_tensor(self, values: Tensor, mult_bits: int | None = None, channel_dim: int = 0) -> tuple[Tensor, Tensor]:
        """Scale and zero point from the values themselves."""
        return get_quant_params_from_tensor(
            values,
            self.bits,
            self.quant_mode,
            self.clip_mode,
            self.per_channel,
            self._num_stds,
            self._half_range,
            mult_bits,
            channel_dim=channel_dim,
        )

    def of_stats(self, stats: Mapping[str, Any], mult_bits: int | None = None) -> tuple[Tensor, Tensor]:
        """Scale and zero point from calibration statistics of one tensor."""
        return get_quant_params_from_stats_dict(
            stats, self.bits, self.quant_mode, self.clip_mode, self._num_stds, self._half_range, mult_bits
        )

    def metadata(self, scale: Tensor, zero_point: Tensor) -> TensorQuantMetadata:
        """The grid with these settings' integers."""
        return TensorQuantMetadata(scale, zero_point, *self.q_range)


def input_settings(output: QuantSettings, overrides: Mapping[Any, Any] | None) -> dict[int, QuantSettings]:
    """``{input: settings}`` of a module whose output has ``output``, from ``{0: {"from_output": True}, 1: {...}}``.

    What an entry does not set is the output's. Raises :class:`ArgumentError` for other keys.
    """
    found: dict[int, QuantSettings] = {}
    if overrides is not None and not isinstance(overrides, Mapping):
        raise ArgumentError(
            f"input_overrides maps an input's number to settings, got {overrides!r}", argument=("input_overrides",)
        )
    for key, entry in (overrides or {}).items():
        path = ("input_overrides", key)
        if isinstance(key, bool) or not str(key).isdigit():
            raise ArgumentError(f"input_overrides: {key!r} is no number of an input (0, 1, ...)", argument=path)
        if not isinstance(entry, Mapping):
            raise ArgumentError(f"input_overrides: expected a mapping of settings, got {entry!r}", argument=path)
        found[int(key)] = _one_input(output, entry, path)
    return found


def _one_input(output: QuantSettings, entry: Mapping[str, Any], path: tuple[Any, ...]) -> QuantSettings:
    settings = dict(entry)
    if settings.pop("from_output", False) is True:
        if settings:
            raise ArgumentError(
                f"from_output takes everything from the output: drop {listed(map(repr, settings))}", argument=path
            )
        return replace(output, clip_half_range=False)
    unknown = [key for key in settings if key not in _INPUT_KEYS]
    if unknown:
        raise ArgumentError(
            f"input_overrides does not know {listed(map(repr, unknown))}; an input has from_output: true, or "
            f"{listed(_INPUT_KEYS)}",
            argument=(*path, unknown[0]),
        )
    return QuantSettings(
        settings.get("bits_activations", output.num_bits),
        settings.get("mode", output.quant_mode),
        settings.get("clip_acts", output.clip_mode),
        settings.get("clip_n_stds", output.clip_n_stds),
        settings.get("clip_half_range", False),
    )


# -- what travels with a tensor --------------------------------------------------------------------------------


def metadata_of(tensor: Tensor) -> TensorQuantMetadata | None:
    """The grid ``tensor`` is known to lie on: attribute ``quant_metadata``; None if it has none, or was changed since.

    Only outputs of the library's own wrappers (and what a user marked) carry it.
    """
    found: TensorQuantMetadata | None = getattr(tensor, "quant_metadata", None)
    if found is None:
        return None
    version = getattr(tensor, "_quant_version", None)
    return found if version is None or version == _version(tensor) else None


def with_metadata(tensor: Tensor, metadata: TensorQuantMetadata) -> Tensor:
    """``tensor``, a wrapper's fresh output, marked with its grid."""
    setattr(tensor, "quant_metadata", metadata)  # noqa: B010 - Tensor declares no such attribute
    setattr(tensor, "_quant_version", _version(tensor))  # noqa: B010
    return tensor


def _version(tensor: Tensor) -> int | None:
    if torch.compiler.is_compiling() or tensor.is_inference():
        return None  # neither counts versions
    return tensor._version


def linear_quantize_clamp_with_metadata(tensor: Tensor, metadata: TensorQuantMetadata | None = None) -> Tensor:
    """The integers of ``tensor`` on its grid, in floating point.

    A scale of 2 and the range ``-128 .. 127`` make ``[1.2, 90.0]`` into ``[2., 127.]``.
    """
    grid = metadata if metadata is not None else metadata_of(tensor)
    if grid is None:
        raise UnquantizedInputError("the tensor carries no quantization metadata")
    scale, zero_point = (torch.as_tensor(value, device=tensor.device) for value in grid[:2])
    return linear_quantize_clamp(tensor, scale, zero_point, grid.min_q_val, grid.max_q_val)
