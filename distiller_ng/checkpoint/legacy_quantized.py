"""Quantized models in files written by Distiller: how to quantize a fresh model in the same way (layer 3).

Distiller stored the quantizer's class and arguments. Models trained with quantization had the parameter in
``float_weight`` and its quantized copy in ``weight``; here the parameter is ``weight``. After post-training
quantization ``wrapped_module.weight`` held integers without the zero point, which here is in them.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distiller_ng.checkpoint.legacy import Placeholder, placeholder_name
from distiller_ng.checkpoint.optimizers import GroupNames
from distiller_ng.checkpoint.record import RecordEntry
from distiller_ng.errors import ArgumentError, CheckpointError, listed
from distiller_ng.quantization.base import QUANTIZERS
from distiller_ng.quantization.ptq_layout import layout_of

__all__ = ["LegacyQuantization"]

logger = logging.getLogger(__name__)

_ENUMS = {
    "LinearQuantMode": ("SYMMETRIC", "SYMMETRIC_RESTRICTED", "ASYMMETRIC_UNSIGNED", "ASYMMETRIC_SIGNED"),
    "ClipMode": ("NONE", "AVG", "N_STD", "GAUSS", "LAPLACE"),
}
_FIRST_VALUE = {"LinearQuantMode": 1, "ClipMode": 0}
_POST_TRAIN = "PostTrainLinearQuantizer"
_RANGE_LINEAR = ("QuantAwareTrainRangeLinearQuantizer", "NCFQuantAwareTrainQuantizer")
_SWITCHES = {"is_enabled": True, "is_waiting": False, "observes": True, "bn_is_frozen": False}
_BITS = {"acts": "bits_activations", "wts": "bits_weights", "bias": "bits_bias"}
_FLOAT = "float_"
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "_scale", "_zero_point", "iter_count", "ema_decay")
# Tensors with one element that have no dimensions there and one here.
_ONE_DIMENSION = (
    *("output_scale", "output_zero_point", "w_scale", "w_zero_point", "b_scale", "b_zero_point"),
    *("num_forwards", "clip_val"),
)


class LegacyQuantization:
    """What a Distiller file says about its quantizer, and its tensors under our names.

    ``entry``: how to quantize a fresh model. ``state``: the file's tensors by canonical name. ``optimizer_names``:
    which parameters its optimizer's groups hold, None where that cannot be told.

    Raises :class:`CheckpointError` naming what the file lacks or what is not known here.
    """

    def __init__(self, content: Mapping[str, Any], state: Mapping[str, Any], source: str) -> None:
        metadata = content["quantizer_metadata"]
        if not isinstance(metadata, Mapping) or "type" not in metadata:
            raise CheckpointError(f"{source}: the model was quantized, but the file does not say by which class")
        self._source, self._given = source, dict(state)
        full = placeholder_name(metadata["type"]) or str(metadata["type"])
        self.name = full.rpartition(".")[2]
        if self.name not in QUANTIZERS:
            raise CheckpointError(
                f"{source}: the model was quantized by {full}, which does not exist here (there are "
                f"{listed(QUANTIZERS.names())}): load the float checkpoint the run started from, and quantize again"
            )
        self.arguments, stats = self._arguments(dict(metadata.get("params") or {}))
        self.entry = RecordEntry(
            "quantize",
            {"class": self.name, "arguments": self.arguments, "layout": self._layout(metadata, stats)},
            metadata=dict(_SWITCHES),
        )
        self.state = self._post_train_state() if self.name == _POST_TRAIN else self._trained_state()
        self.optimizer_names = self._optimizer_names(content.get("optimizer_state_dict"))
        logger.info("%s: quantized by Distiller's %s with %s", source, self.name, self.arguments)

    # -- how it was quantized ------------------------------------------------------------------------------------------

    def _arguments(self, params: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        """The constructor's arguments, and the calibration statistics."""
        stats = params.pop("model_activation_stats", None)
        plain = {name: self._plain(value) for name, value in params.items()}
        overrides = dict(plain.pop("bits_overrides", None) or {}) | dict(plain.pop("overrides", None) or {})
        if "quantize_bias" in plain:
            quantizes = plain.pop("quantize_bias")
            plain["bits_bias"] = 32 if quantizes else None
        for layer in plain.pop("no_clip_layers", None) or ():
            overrides[layer] = {**overrides.get(layer, {}), "clip_acts": "NONE"}
        if isinstance(plain.get("clip_acts"), bool):  # the oldest form
            plain["clip_acts"] = "AVG" if plain["clip_acts"] else "NONE"
        if overrides:
            plain["overrides"] = {key: _override(entry) for key, entry in overrides.items()}
        if self.name in _RANGE_LINEAR and plain.get("mode") and self._is_asymmetric(plain["mode"]):
            plain["mode"] = "ASYMMETRIC_UNSIGNED"
        known = inspect.signature(QUANTIZERS.get(self.name).cls).parameters
        unknown = [name for name, value in plain.items() if name not in known and value is not None]
        if unknown:
            raise CheckpointError(
                f"{self._source}: {self.name} was made with {listed(map(repr, unknown))}, which it does not have here"
            )
        return {name: value for name, value in plain.items() if name in known}, stats

    def _is_asymmetric(self, mode: Any) -> bool:
        """Whether a symmetric mode was trained asymmetric all the same, which is how some versions did it."""
        if "ASYMMETRIC" in str(mode):
            return False
        points = [v for k, v in self._given.items() if k.endswith("weight_zero_point") and isinstance(v, Tensor)]
        if not any(bool((value != 0).any()) for value in points):
            return False
        logger.warning(
            "%s: trained as mode %s, but its zero points show that Distiller quantized asymmetrically: loaded as "
            "ASYMMETRIC_UNSIGNED, which computes the same",
            self._source,
            mode,
        )
        return True

    def _plain(self, value: Any) -> Any:
        """Names for enumerations, lists for tuples, text for keys."""
        if isinstance(value, Placeholder):
            return self._plain_placeholder(value)
        if isinstance(value, Mapping):
            return {str(key): self._plain(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self._plain(one) for one in value]
        if isinstance(value, bool | int | float | str | type(None)):
            return value
        if isinstance(value, Tensor) and value.numel() == 1:
            return value.item()
        raise CheckpointError(f"{self._source}: an argument of {self.name} is a {type(value).__name__}")

    def _plain_placeholder(self, value: Placeholder) -> Any:
        kind, contents = value.name.rpartition(".")[2], list(value.__dict__.get("contents") or ())
        if kind in _ENUMS and contents:
            return _ENUMS[kind][int(contents[0]) - _FIRST_VALUE[kind]]
        if kind == "ModuleQuantMode" and len(contents) == 2:
            return {"activations": self._plain(contents[0]), "weights": self._plain(contents[1])}
        if kind == "QBits" and contents:
            return dict(zip(_BITS.values(), map(self._plain, contents)))
        raise CheckpointError(f"{self._source}: an argument of {self.name} is a {value.name}, which is not known here")

    def _layout(self, metadata: Mapping[str, Any], stats: Any) -> dict[str, Any]:
        if self.name != _POST_TRAIN:
            inputs = [name for name in self._given if name.startswith("inputs_quant.")]
            return {"inputs": 1} if inputs else {}
        if not any(".wrapped_module." in f".{name}" for name in self._given):
            raise CheckpointError(
                f"{self._source}: says that the model was quantized by Distiller, but has no quantized layer: it is "
                "damaged, or remove quantizer_metadata from it to load it as a float checkpoint"
            )
        has_grids = any(name.endswith(".output_scale") for name in self._given)
        if has_grids and not isinstance(stats, Mapping):
            raise CheckpointError(
                f"{self._source}: the model was quantized with calibration statistics, which the file does not hold "
                "(quantizer_metadata has no model_activation_stats): load the float checkpoint and quantize it again"
            )
        return layout_of(metadata.get("dummy_input"), stats if has_grids else None)

    # -- its tensors ---------------------------------------------------------------------------------------------------

    def _trained_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {}
        for name, value in self._given.items():
            owner, _, own = name.rpartition(".")
            prefix = f"{owner}." if owner else ""
            if f"{prefix}{_FLOAT}{own}" in self._given:
                continue  # the quantized copy
            state[prefix + own.removeprefix(_FLOAT)] = self._shaped(own, value)
        return state

    def _post_train_state(self) -> dict[str, Any]:
        state = {name: self._shaped(name.rpartition(".")[2], value) for name, value in self._given.items()}
        for name in [name for name in state if name.endswith(".wrapped_module.weight")]:
            wrapper = name.removesuffix("wrapped_module.weight")
            shifted = bool(state.pop(f"{wrapper}is_simulated_quant_weight_shifted", torch.tensor(True)))
            point = state.get(f"{wrapper}w_zero_point")
            if point is not None and not shifted:
                state[name] = state[name] + point.to(state[name].dtype)
            if f"{wrapper}fp_bias" in state:  # the bias itself was overwritten by integers
                state[f"{wrapper}wrapped_module.bias"] = state.pop(f"{wrapper}fp_bias")
            state.pop(f"{wrapper}accum_scale", None)
        return state

    @staticmethod
    def _shaped(own: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if own in ("weight_scale", "weight_zero_point", "bias_scale", "bias_zero_point"):
            return value.reshape(-1)
        if own in _ONE_DIMENSION and value.numel() == 1:
            return value.reshape(1)
        if own in ("force_readjust", "ema_decay"):
            return value.reshape(())
        return value

    def _optimizer_names(self, saved: Any) -> GroupNames | None:
        """Distiller's optimizers held the parameters in the order of the state dict, clips in a group of their own."""
        if not isinstance(saved, Mapping) or not saved.get("param_groups"):
            return None
        sizes = [len(group["params"]) for group in saved["param_groups"]]
        held = [name for name in self.state if not name.endswith(_BUFFERS) and not _is_grid(name)]
        clips = [name for name in held if name.endswith("clip_val")]
        rest = [name for name in held if name not in clips]
        for groups in ([[*rest, *clips]], [rest, clips]):
            if [len(group) for group in groups] == sizes:
                return [list(group) for group in groups]
        return None


def _is_grid(name: str) -> bool:
    return ".fake_q." in f".{name}" or name.startswith("inputs_quant.")


def _override(entry: Any) -> dict[str, Any]:
    """One override; the oldest form has ``acts`` and ``wts``."""
    if isinstance(entry, list):
        return dict(zip(_BITS.values(), entry))
    if not isinstance(entry, Mapping):
        raise ArgumentError(f"an override is {entry!r}")
    return {_BITS.get(str(key), str(key)): value for key, value in entry.items() if key != "bits"}
