"""Scales, zero points and clippings of a prepared model by name, for searches (layer 2)."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, did_you_mean
from distiller_ng.names import canonical_name
from distiller_ng.ops.files import write_text_atomically
from distiller_ng.quantization.range_linear_output import OutputGrid

__all__ = ["LinearQuantParameters"]


class LinearQuantParameters:
    """The part of :class:`PostTrainLinearQuantizer` that reads and sets what its wrappers found.

    Names are ``<module>.<parameter>``: ``quantizer.set_linear_quant_param("conv1.output_scale", 30.0)``.
    """

    model: nn.Module

    def _wrappers(self) -> Iterator[tuple[str, OutputGrid]]:
        for name, module in self.model.named_modules():
            if isinstance(module, OutputGrid):
                yield canonical_name(name), module

    def named_linear_quant_params(
        self, yield_clipping_params: bool = False, filter: bool = False
    ) -> Iterator[tuple[str, Tensor]]:
        """``("conv1.output_scale", tensor)`` and the like; see the wrappers for ``filter``.

        With ``yield_clipping_params`` the ranges they stand for instead, as :meth:`named_clipping`.
        """
        if yield_clipping_params:
            yield from self.named_clipping(filter)
            return
        for name, wrapper in self._wrappers():
            for own, value in wrapper.named_linear_quant_params(filter):
                yield f"{name}.{own}", value

    def named_clipping(self, filter: bool = False) -> Iterator[tuple[str, Tensor]]:
        """``("conv1.output_clipping", [low, high])`` and the like."""
        for name, wrapper in self._wrappers():
            for own, value in wrapper.named_clipping(filter):
                yield f"{name}.{own}", value

    @property
    def linear_quant_params(self) -> OrderedDict[str, Tensor]:
        """All of :meth:`named_linear_quant_params`."""
        return OrderedDict(self.named_linear_quant_params())

    def set_linear_quant_param(self, name: str, value: float | Tensor) -> None:
        """Set one, e.g. ``("conv1.output_scale", 30.0)``; raises :class:`ArgumentError` for a name there is not."""
        wrapper, own = self._find(name)
        wrapper.set_linear_quant_param(own, value)
        self.force_readjust_wrappers()

    def update_linear_quant_params(self, new_config: Mapping[str, float | Tensor]) -> None:
        """Set several; nothing is set when a name is wrong."""
        for name in new_config:
            self._find(name)
        for name, value in new_config.items():
            self.set_linear_quant_param(name, value)

    def set_clipping(self, name: str, value: Any) -> None:
        """Set scale and zero point to cover a range: ``("conv1.output_clipping", (-1.0, 2.0))``; or a scale by name."""
        wrapper, own = self._find(name)
        if own.endswith("_scale"):  # of single channels, which have no one range
            wrapper.set_linear_quant_param(own, value)
        else:
            low, high = value
            wrapper.set_clipping(own, float(low), float(high))
        self.force_readjust_wrappers()

    def update_clipping_parameters(self, new_config: Mapping[str, Any]) -> None:
        """Set several ranges; nothing is set when a name is wrong."""
        for name in new_config:
            self._find(name)
        for name, value in new_config.items():
            self.set_clipping(name, value)

    def _find(self, name: str) -> tuple[OutputGrid, str]:
        module, _, own = name.rpartition(".")
        wrapper = dict(self._wrappers()).get(canonical_name(module))
        known = [] if wrapper is None else [k for k, _ in wrapper.named_linear_quant_params()]
        known += [] if wrapper is None else [k for k, _ in wrapper.named_clipping()]
        if wrapper is None or own not in known:
            names = [*self.linear_quant_params, *(key for key, _ in self.named_clipping())]
            raise ArgumentError(f"the model has no quantization parameter {name!r}. {did_you_mean(name, names)}")
        return wrapper, own

    def force_readjust_wrappers(self) -> None:
        """Let every wrapper derive what depends on scales and zero points anew in its next forward pass."""
        for _, wrapper in self._wrappers():
            wrapper.force_readjust.fill_(True)

    def save_per_layer_parameters(self, save_dir: str | os.PathLike[str] = "") -> Path:
        """Write ``layer_quant_params.yaml`` into ``save_dir``: every scale and zero point by module. Its path."""
        found: dict[str, dict[str, Any]] = {}
        for name, wrapper in self._wrappers():
            values = {key: value.flatten().tolist() for key, value in wrapper.named_linear_quant_params()}
            found[name] = {key: value[0] if len(value) == 1 else value for key, value in values.items()}
        path = Path(save_dir) / "layer_quant_params.yaml"
        return write_text_atomically(path, yaml.safe_dump(found, sort_keys=False))
