"""Layers that hold their weights packed and unpack them when they are used (layer 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from distiller_ng.export.packed_encoding import decode
from distiller_ng.names import canonical_name
from distiller_ng.quantization._derived import Derived, derive_
from distiller_ng.quantization._weights import QUANTIZABLE_LAYERS

__all__ = ["PackedLayer", "keep_packed_"]


class PackedLayer(Derived):
    """What the subclasses made here add to a layer's own class: ``weight`` and ``bias`` are unpacked at each access.

    ``packed_parameters`` maps a parameter's name to its entry in the file; the buffers ``packed_<name>_<part>`` hold
    what the file does. The tensors have no gradients.
    """

    prefix: ClassVar[str] = "Packed"
    packed_parameters: dict[str, Mapping[str, Any]]

    @property
    def weight(self) -> Tensor | None:
        """The weight, unpacked."""
        return self._unpacked("weight")

    @property
    def bias(self) -> Tensor | None:
        """The bias, unpacked where it is packed."""
        return self._unpacked("bias")

    def _unpacked(self, name: str) -> Tensor | None:
        entry = self.packed_parameters.get(name)
        if entry is None:
            return self._parameters.get(name)
        start = f"packed_{name}_"
        parts = {key.removeprefix(start): value for key, value in self._buffers.items() if key.startswith(start)}
        stored = {f"{name}:{part}": value.cpu() for part, value in parts.items() if value is not None}
        device = next(value.device for value in parts.values() if value is not None)
        return decode(name, entry, stored).to(device)

    def extra_repr(self) -> str:
        """The layer's own description, and what is packed."""
        packed = ", ".join(f"{name} packed ({entry['encoding']})" for name, entry in self.packed_parameters.items())
        return ", ".join(part for part in (super().extra_repr(), packed) if part)


def keep_packed_(
    model: nn.Module, entries: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor]
) -> list[str]:
    """Replace, in place, every parameter of a convolution, linear layer or embedding that the file holds packed.

    Returns the names of these parameters. Tied parameters and those of other modules stay unpacked.
    """
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    packed = []
    for full, module in model.named_modules():
        if not isinstance(module, QUANTIZABLE_LAYERS):
            continue
        for name, parameter in list(module._parameters.items()):
            key = f"{canonical_name(full)}.{name}" if full else name
            entry = entries.get(key, {"encoding": "dense"})
            if name not in ("weight", "bias") or entry["encoding"] == "dense" or owners[id(parameter)] > 1:
                continue
            _pack_(module, name, key, entry, tensors)
            packed.append(key)
    return packed


def _pack_(module: nn.Module, name: str, key: str, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    parameter = module._parameters.pop(name)
    device = None if parameter is None else parameter.device
    for stored, value in tensors.items():
        owner, _, part = stored.rpartition(":")
        if owner == key:
            module.register_buffer(f"packed_{name}_{part}", value.to(device))
    module.__dict__.setdefault("packed_parameters", {})[name] = dict(entry)
    derive_(module, PackedLayer)
