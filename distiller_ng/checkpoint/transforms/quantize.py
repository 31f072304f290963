"""Quantizing a fresh model as the checkpoint's was (layer 3)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from distiller_ng.checkpoint.record import TRANSFORMS, RecordEntry, StructuralTransform
from distiller_ng.errors import CheckpointError, DistillerError, ScheduleWarning
from distiller_ng.names import unwrap
from distiller_ng.quantization.base import QUANTIZERS, Quantizer, quantization_of
from distiller_ng.quantization.ptq_layout import changes_of, redo_changes_

__all__ = ["Quantize"]

logger = logging.getLogger(__name__)


@TRANSFORMS.register("quantize")
class Quantize(StructuralTransform):
    """Runs ``prepare_model`` of the quantizer that the model was trained with.

    ``config`` is ``{"class": "PACTQuantizer", "arguments": {"bits_weights": 4, ...}, "layout": {...}}``: the class's
    registered name, its constructor's arguments, and what it found out about the model. ``metadata`` holds the
    quantizer's switches (whether it acts yet, what is frozen). A model that is quantized so already is left as it is.
    """

    def apply(self, model: nn.Module, config: Mapping[str, Any], metadata: Mapping[str, Any]) -> nn.Module:
        """Quantize ``model`` in place. Raises :class:`CheckpointError` when that is not possible as recorded."""
        inner, name = unwrap(model), config["class"]
        earlier = quantization_of(inner)
        if earlier is not None:
            if (earlier.name, earlier.arguments) == (name, config["arguments"]):
                redo_changes_(inner, config["layout"])
                return model
            raise CheckpointError(
                f"the checkpoint's model was quantized by {name} with {config['arguments']}, this one by "
                f"{earlier.name} with {earlier.arguments}: load it into a fresh model, or one quantized in the same way"
            )
        try:
            with warnings.catch_warnings():  # they were said when the model was quantized first
                warnings.simplefilter("ignore", ScheduleWarning)
                quantizer = self._build(inner, name, config["arguments"])
                quantizer.layout = dict(config["layout"])
                quantizer.prepare_model()
            redo_changes_(inner, config["layout"])
            quantizer.load_state_dict(metadata)
        except DistillerError as error:
            raise CheckpointError(f"the model cannot be quantized as the checkpoint's was: {error}") from error
        return model

    @staticmethod
    def _build(model: nn.Module, name: str, arguments: Mapping[str, Any]) -> Quantizer:
        entry = QUANTIZERS.get(name)
        # New parameters join the caller's optimizer when its state is restored; this one only stands in for it.
        available = {"model": model, "optimizer": torch.optim.SGD([torch.zeros(1)], lr=0.0)}
        injected: dict[str, Any] = {key: value for key, value in available.items() if key in entry.injected}
        return entry.cls(**injected, **arguments)

    @classmethod
    def found_in(cls, model: nn.Module) -> RecordEntry | None:
        """The entry for a quantized model; None, with a logged warning, for one that cannot be rebuilt."""
        found = quantization_of(model)
        if found is None:
            return None
        if found.arguments is None:
            logger.warning(
                "the checkpoint does not say how to quantize a fresh model: prepare the model with %s before loading "
                "it. To have it rebuilt, register the class with @QUANTIZERS.register and give it plain arguments "
                "(numbers, text, lists, mappings)",
                found.name,
            )
            return None
        layout = {**found.layout, **changes_of(model)}
        config = {"class": found.name, "arguments": dict(found.arguments), "layout": layout}
        return RecordEntry("quantize", config, metadata=Quantizer.switches_of(model))
