"""Scales and ranges of a quantized model as a vector that numeric methods can move (layer 2)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError
from distiller_ng.quantization.range_linear_output import OutputGrid

__all__ = ["SearchSpace", "quant_params_dict2vec", "quant_params_vec2dict"]

_ENDS = ("_min", "_max")
_SMALLEST = 1e-12


def quant_params_dict2vec(p_dict: Mapping[str, Any], search_clipping: bool = False) -> tuple[tuple[str, ...], Any]:
    """Names and values (``float64 [n]``) of ``p_dict``; with ``search_clipping`` ranges become two entries each.

    Scales of single channels are one entry, their mean, with ``search_clipping`` too.

    >>> keys, values = quant_params_dict2vec({"conv.w_scale": torch.tensor([2.0]), "fc.w_scale": 3.0})
    >>> keys, values.tolist()
    (('conv.w_scale', 'fc.w_scale'), [2.0, 3.0])
    >>> quant_params_dict2vec({"fc.output_clipping": torch.tensor([-1.0, 2.0])}, search_clipping=True)[0]
    ('fc.output_clipping_min', 'fc.output_clipping_max')
    """
    keys: list[str] = []
    values: list[float] = []
    for name, value in p_dict.items():
        tensor = torch.as_tensor(value, dtype=torch.float64).reshape(-1)
        if search_clipping and not name.endswith("_scale"):
            keys += [f"{name}{end}" for end in _ENDS]
            values += [float(tensor[0]), float(tensor[-1])]
        else:
            keys.append(name)
            values.append(float(tensor.mean()))
    return tuple(keys), np.array(values, dtype=np.float64)


def quant_params_vec2dict(
    keys: Sequence[str], vals: Any, search_clipping: bool = False, *, like: Mapping[str, Any] | None = None
) -> OrderedDict[str, Any]:
    """What :func:`quant_params_dict2vec` took apart: scales are absolute values, the ends of ranges are sorted.

    ``like`` holds scales of single channels, which are multiplied by one factor.

    >>> dict(quant_params_vec2dict(["conv.w_scale"], [-2.0]))
    {'conv.w_scale': 2.0}
    >>> quant_params_vec2dict(["a_min", "a_max"], [2.0, -1.0], search_clipping=True)["a"].tolist()
    [-1.0, 2.0]
    """
    found: OrderedDict[str, Any] = OrderedDict()
    pairs = iter(zip(keys, vals, strict=True))
    for name, value in pairs:
        if search_clipping and name.endswith(_ENDS[0]):
            _, other = next(pairs)
            found[name.removesuffix(_ENDS[0])] = torch.tensor(sorted((float(value), float(other))))
            continue
        scale = max(abs(float(value)), _SMALLEST)
        start = (like or {}).get(name)
        is_several = isinstance(start, Tensor) and start.numel() > 1
        found[name] = start * (scale / float(start.mean())) if is_several and start is not None else scale
    return found


class SearchSpace:
    """The parameters of some wrappers that a search may move, as a vector relative to where it starts.

    ``wrappers`` maps module names to wrappers. Without ``search_clipping`` an entry is the factor of a scale (1 at the
    start), with it an end of a range, in units of the larger end; scales of single channels, which have no one range,
    stay scales. :meth:`set` puts a vector into the model, touching only what changed.
    """

    def __init__(self, wrappers: Mapping[str, OutputGrid], search_clipping: bool = False) -> None:
        self.search_clipping = search_clipping
        self._owners: dict[str, tuple[OutputGrid, str]] = {}
        self.start: OrderedDict[str, Tensor] = OrderedDict()
        for module, wrapper in wrappers.items():
            for own, value in self._searched(wrapper):
                name = f"{module}.{own}" if module else own
                self._owners[name] = wrapper, own
                self.start[name] = value.detach().clone()
        self.keys, self._origin = quant_params_dict2vec(self.start, search_clipping)
        self._units = self._unit_of_each()
        self._current: dict[str, Any] = {}

    def _searched(self, wrapper: OutputGrid) -> Iterable[tuple[str, Tensor]]:
        scales = [(o, value) for o, value in wrapper.named_linear_quant_params(filter=True) if o.endswith("_scale")]
        if not self.search_clipping:
            return scales
        return [*wrapper.named_clipping(filter=True), *((own, value) for own, value in scales if value.numel() > 1)]

    def _unit_of_each(self) -> Any:
        sizes = np.abs(self._origin)
        for index, key in enumerate(self.keys):
            if key.endswith(_ENDS[0]):
                sizes[index : index + 2] = sizes[index : index + 2].max()
        return np.where(sizes > 0, sizes, 1.0)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def origin(self) -> Any:
        """The vector of where the search starts."""
        return self._origin / self._units

    def as_dict(self, vector: Any) -> OrderedDict[str, Any]:
        """Scales or ranges by name."""
        values = np.asarray(vector, dtype=np.float64) * self._units
        return quant_params_vec2dict(self.keys, values, self.search_clipping, like=self.start)

    def set(self, vector: Any) -> OrderedDict[str, Any]:
        """Put ``vector`` into the model; what it means by name. Raises :class:`ArgumentError` for NaN."""
        if not np.isfinite(vector).all():
            raise ArgumentError("the search left the finite numbers: use another method, or another init_mode")
        wanted = self.as_dict(vector)
        for name, value in wanted.items():
            key = tuple(torch.as_tensor(value, dtype=torch.float64).reshape(-1).tolist())
            if self._current.get(name) == key:
                continue
            wrapper, own = self._owners[name]
            if self.search_clipping and not own.endswith("_scale"):
                wrapper.set_clipping(own, *key)
            else:
                wrapper.set_linear_quant_param(own, value)
            self._current[name] = key
        return wanted
