"""What a quantizer does while a model trains: it waits, acts, stops observing (layer 2)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from distiller_ng.errors import CheckpointError, LifecycleError, listed
from distiller_ng.quantization._activations import PausedModule, pause_, resume_
from distiller_ng.quantization._configuration import marked_modules
from distiller_ng.quantization._frozen_batch_norm import FrozenStatistics, batch_norms, freeze_statistics_
from distiller_ng.quantization._weights import ParamQuantizationFn, ParamToQuantize, QuantizedLayer

__all__ = ["QuantizerControl"]

logger = logging.getLogger(__name__)


class QuantizerControl:
    """The part of :class:`Quantizer` that works on a prepared model."""

    model: nn.Module
    params_to_quantize: list[ParamToQuantize]
    param_quantization_fn: ParamQuantizationFn | None
    is_prepared: bool
    #: Whether a policy decides when it acts.
    is_scheduled: bool
    is_enabled: bool
    observes: bool
    bn_is_frozen: bool
    is_waiting: bool

    #: Whether it follows the ranges of activations, which can be stopped.
    has_observers: ClassVar[bool] = False

    @property
    def quantizes_parameters(self) -> bool:
        """Whether there is a function that quantizes parameters."""
        return self.param_quantization_fn is not None

    def quantized_layers(self) -> dict[str, QuantizedLayer]:
        """``{name: layer}`` of the layers that compute with quantized parameters."""
        return {name: module for name, module in marked_modules(self.model) if isinstance(module, QuantizedLayer)}

    def activation_modules(self) -> dict[str, nn.Module]:
        """``{name: module}`` of what stands where activations are quantized."""
        return {name: module for name, module in marked_modules(self.model) if not isinstance(module, QuantizedLayer)}

    def parameters_called(self, ending: str) -> dict[str, nn.Parameter]:
        """``{name: parameter}`` of the parameters this quantizer added whose own name is ``ending`` (``clip_val``)."""
        found: dict[str, nn.Parameter] = {}
        for name, module in marked_modules(self.model):
            for inner, parameter in module.named_parameters(name):
                if inner.rpartition(".")[2] == ending:
                    found[inner] = parameter
        return found

    def quantize_params(self) -> None:
        """Quantize the parameters as they are now.

        With floating point copies every forward pass does so by itself; this makes ``module.weight`` show the result,
        with autograd history to ``module.float_weight``, as Distiller does. Without, the parameters are overwritten.
        Raises :class:`LifecycleError` before :meth:`prepare_model`.
        """
        if not self.is_prepared:
            raise LifecycleError("call prepare_model before quantize_params")
        for meta in self.params_to_quantize:
            if isinstance(meta.module, QuantizedLayer):
                meta.module.publish(meta.q_attr_name)
            else:
                parameter = getattr(meta.module, meta.q_attr_name)
                parameter.data.copy_(self._param_fn()(parameter, meta).detach())

    def enable(self) -> None:
        """Compute with quantized weights and activations from now on.

        After :meth:`wait` what is learned (ranges, steps) starts from the present weights.
        """
        if self.is_waiting:
            self._start_learning()
        self.is_waiting = False
        self._switch(True)
        self._report_lost_layers()

    def disable(self) -> None:
        """Compute in floating point, as the model did before; what was added to it stays there, with its values."""
        self._switch(False)

    def wait(self) -> None:
        """Compute in floating point until quantization begins with :meth:`enable`, for the first time."""
        self.is_waiting = True
        self._switch(False)

    def _switch(self, on: bool) -> None:
        self.is_enabled = on
        for layer in self.quantized_layers().values():
            layer.is_quantizing = on
            if not on:
                layer.withdraw()
        for module in self.activation_modules().values():
            (resume_ if on else pause_)(module)

    def freeze_observers(self, frozen: bool = True) -> None:
        """Keep the ranges of activations as they are from now on (or, with False, follow the data again)."""
        self.observes = not frozen
        for observer in self._observers():
            observer.observing = not frozen

    def batch_norms(self) -> list[nn.Module]:
        """The batch norms of the model that have running statistics."""
        return batch_norms(self.model)

    def freeze_batch_norms(self) -> None:
        """Make every batch norm keep its running statistics and use them in training too, from now on."""
        self.bn_is_frozen = True
        freeze_statistics_(self.model)

    def _observers(self) -> Iterator[Any]:
        """The modules that follow the ranges of activations."""
        seen = {part: None for _, module in marked_modules(self.model) for part in module.modules()}
        return (part for part in seen if hasattr(part, "observing"))

    @torch.no_grad()
    def _report_lost_layers(self) -> None:
        """Log a warning about layers all of whose weights quantize to 0: nothing passes them, forward or backward."""
        lost = []
        for name, layer in self.quantized_layers().items():
            weight = layer.full_precision("weight") if "weight" in layer.quantized_parameters else None
            quantized = None if weight is None or weight.is_meta else layer.quantized("weight")
            if quantized is not None and not bool(quantized.any()) and bool(weight.any()):  # type: ignore[union-attr]
                lost.append(name)
        if lost:
            logger.warning(
                "%s: every weight of %s quantizes to 0, so these layers cannot learn. Give them more bits, begin in a "
                "later epoch (a warm start), or use a quantizer whose range follows the weights",
                type(self).__name__,
                listed(lost),
            )

    def _start_learning(self) -> None:
        """Set learned ranges anew, just before they act for the first time."""

    def _param_fn(self) -> ParamQuantizationFn:
        if self.param_quantization_fn is None:
            raise LifecycleError(f"{type(self).__name__} has no param_quantization_fn to quantize parameters with")
        return self.param_quantization_fn

    @staticmethod
    def switches_of(model: nn.Module) -> dict[str, Any]:
        """The :meth:`state_dict` of whatever quantizer prepared ``model``, as it can be seen there."""
        marked = [module for _, module in marked_modules(model)]
        waits = [not m.is_quantizing if isinstance(m, QuantizedLayer) else isinstance(m, PausedModule) for m in marked]
        observers = [part for module in marked for part in module.modules() if hasattr(part, "observing")]
        return {
            "is_enabled": not any(waits),
            "is_waiting": any(waits),
            "observes": all(part.observing for part in observers),
            "bn_is_frozen": any(isinstance(module, FrozenStatistics) for module in batch_norms(model)),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beyond the model: whether the quantization acts, and observers observe."""
        return {
            "is_enabled": self.is_enabled,
            "is_waiting": self.is_waiting,
            "observes": self.observes,
            "bn_is_frozen": self.bn_is_frozen,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; raises :class:`CheckpointError` for the state of something else."""
        if set(state) != set(self.state_dict()):
            raise CheckpointError(f"{type(self).__name__} expects {sorted(self.state_dict())}, got {sorted(state)}")
        self._switch(bool(state["is_enabled"]))
        self.is_waiting = bool(state["is_waiting"])
        self.freeze_observers(not state["observes"])
        if state["bn_is_frozen"]:
            self.freeze_batch_norms()
