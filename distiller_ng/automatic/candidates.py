"""A compressed copy of a model from one choice a parameter, and what it will cost without making it.

The building block of everything automatic: ``init`` compares levels with it, the search makes its candidates with it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distiller_ng.automatic._filters import RankedFilters
from distiller_ng.automatic._tensors import output_axes, rounded, stored_buffers
from distiller_ng.errors import ArgumentError, TargetError, did_you_mean
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.graph.inputs import ExampleInputsLike, as_example_inputs
from distiller_ng.names import ParameterIndex, canonical_name, unwrap
from distiller_ng.ops.linear_quantization import check_bits
from distiller_ng.ops.masks import create_mask_level_criterion
from distiller_ng.pruning._families import Floats
from distiller_ng.pruning.importance.base import ImportanceLike
from distiller_ng.reports.compute import layer_costs
from distiller_ng.thinning.apply import apply_plan
from distiller_ng.thinning.plan import ThinningPlan

__all__ = ["COST_NAMES", "GROUPS", "Candidates", "LayerChoice", "PredictedCost", "compressed_copy", "predicted_cost"]

#: What goes: single weights, which become zero, or whole filters, which are removed.
GROUPS = ("element", "filter")
#: What :meth:`PredictedCost.of` knows.
COST_NAMES = ("macs", "size", "params")
_FLOAT = 32
_SCALE_BITS = 32  # each output channel of a quantized parameter has a float32 scale


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """What happens to one parameter.

    ``sparsity``: the fraction, from 0 to below 1, of its weights (group "element") or of its filters (group "filter")
    that goes. ``bits``: 2 to 8, or 32 for floating point as it is. Raises :class:`ArgumentError` for anything else.
    """

    sparsity: float = 0.0
    bits: int = _FLOAT

    def __post_init__(self) -> None:
        number = isinstance(self.sparsity, int | float) and not isinstance(self.sparsity, bool)
        if not number or not 0 <= self.sparsity < 1:
            message = f"a sparsity is a number from 0 to below 1, got {self.sparsity!r}"
            raise ArgumentError(message, argument=("sparsity",))
        if self.bits != _FLOAT or isinstance(self.bits, bool):
            try:
                check_bits(self.bits, low=2, high=8, argument="bits")
            except ArgumentError as error:
                raise ArgumentError(f"{error}, or 32 for floating point", argument=("bits",)) from None


@dataclass(frozen=True, slots=True)
class PredictedCost:
    """What a compressed model will cost.

    ``parameters``: number of values its parameters have. ``nonzero``: how many of them are not zero. ``macs``:
    multiply-accumulates of one forward pass of the example inputs, by weights that are not zero: runtimes that do not
    skip zeros compute more under group "element". ``size_bytes``: parameters and persistent buffers as they are stored,
    quantized ones with a float32 scale for each output channel, sparse ones as a bit for each weight and the values
    that are not zero (where that is smaller).
    """

    parameters: int
    nonzero: int
    macs: float
    size_bytes: float

    def of(self, name: str) -> float:
        """One of :data:`COST_NAMES`: "macs", "size" (bytes) or "params" (those that are not zero)."""
        return {"macs": self.macs, "size": self.size_bytes, "params": float(self.nonzero)}[name]


Choices = Mapping[str, LayerChoice]


class Candidates:
    """Makes and prices compressed copies of one model, which stays as it is; filters are ranked once.

    ``group``: "element" or "filter". ``importance`` ranks filters (:data:`distiller_ng.pruning.importance.IMPORTANCES`,
    without those that need data). Parameters may be left out of the choices: they stay as they are, except that coupled
    filters follow. Of coupled parameters that are named with different sparsities the lowest counts, as in a schedule
    with a ``GroupPruner``.

    Raises :class:`ArgumentError` for another group, :class:`GraphError` where channels cannot be followed ("filter").
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: ExampleInputsLike,
        *,
        group: str = "element",
        importance: ImportanceLike = "l1",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ArgumentError(f"model must be a torch.nn.Module, got {type(model).__name__}", argument=("model",))
        if group not in GROUPS:
            raise ArgumentError(f"unknown group {group!r}. {did_you_mean(str(group), GROUPS)}", argument=("group",))
        self.model = unwrap(model)
        self.group, self.importance = group, importance
        self.example_inputs = as_example_inputs(example_inputs)
        self.parameters = ParameterIndex(self.model)
        self._tensors: dict[str, Tensor] = {**self.parameters, **stored_buffers(self.model)}
        self._zeros = {name: int((p == 0).sum()) for name, p in self.parameters.items()}
        self._ranked: RankedFilters | None = None
        if group == "filter":
            self._ranked = RankedFilters(DependencyGraph.trace(self.model, self.example_inputs), importance)
            self._layer_macs: list[tuple[float, list[str]]] = []
        else:
            self._layer_macs = self._measured_macs()

    @property
    def coupled(self) -> list[tuple[str, ...]]:
        """Prunable parameters that share one sparsity, in model order: coupled filters together, others alone."""
        prunable = self.parameters.prunable()
        if self._ranked is None:
            return [(name,) for name in prunable]
        mine = (tuple(name for name in names if name in prunable) for names in self._ranked.coupled())
        return [names for names in mine if names]

    def width(self, name: str) -> int:
        """How many things a sparsity of a parameter counts: its weights, or the channels that it makes."""
        return self.parameters[name].numel() if self._ranked is None else self._ranked.width(name)

    def scores(self, name: str) -> Floats:
        """What the choice of a parameter's weights (magnitudes) or filters goes by, lowest first.

        Those of filters are relative to their mean, so that layers compare.
        """
        if self._ranked is not None:
            return np.asarray(self._ranked.orders(name), np.float64)
        return np.sort(self.parameters[name].detach().abs().double().flatten().cpu().numpy())

    def build(self, choices: Choices) -> nn.Module:
        """A compressed copy, in the mode (training or evaluation) of the model.

        Raises :class:`TargetError` for parameters that are not there, :class:`ArgumentError` for a model that cannot be
        copied, :class:`GraphError` for filters that cannot go.
        """
        wanted = self.checked(choices)
        try:
            made = copy.deepcopy(self.model)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ArgumentError(f"the model cannot be copied: {error}", argument=("model",)) from error
        if self._ranked is not None:
            removed = self._removed(wanted)
            plan = ThinningPlan.for_channels(self._ranked.graph, removed)
            apply_plan(made, plan, self.example_inputs, warn=False)
        index, axes = ParameterIndex(made), output_axes(made)
        with torch.no_grad():
            for name, choice in wanted.items():
                parameter = index[name]
                if self._ranked is None and choice.sparsity > 0:
                    parameter.mul_(create_mask_level_criterion(parameter, choice.sparsity))
                if choice.bits != _FLOAT:
                    parameter.copy_(rounded(parameter, choice.bits, axes.get(name, 0)))
        return made

    def cost(self, choices: Choices) -> PredictedCost:
        """What :meth:`build` gives costs, without making it; errors as there."""
        wanted = self.checked(choices)
        shapes, gone = self._shapes(wanted)
        left = {name: self._nonzero(name, wanted.get(name), shapes[name], gone) for name in self.parameters}
        return PredictedCost(
            parameters=sum(math.prod(shapes[name]) for name in self.parameters),
            nonzero=sum(left.values()),
            macs=self._macs(wanted, left, gone),
            size_bytes=sum(self._bits(name, wanted.get(name), shapes[name], left.get(name)) for name in shapes) / 8,
        )

    def checked(self, choices: Choices) -> dict[str, LayerChoice]:
        """The choices under canonical names, in model order. Raises :class:`TargetError` for unknown names."""
        found: dict[str, LayerChoice] = {}
        for name, choice in choices.items():
            canonical = self.parameters.find(name)
            if canonical is None:
                hint = did_you_mean(name, self.parameters)
                raise TargetError(f"{name!r} is no parameter of the model. {hint}", argument=("choices", name))
            if not isinstance(choice, LayerChoice):
                message = f"a choice is a LayerChoice(sparsity, bits), got {choice!r} for {name!r}"
                raise ArgumentError(message, argument=("choices", name))
            if not self.parameters[canonical].is_floating_point():
                raise TargetError(f"{name!r} holds no floating point numbers", argument=("choices", name))
            found[canonical] = choice
        return {name: found[name] for name in self.parameters if name in found}

    def __getstate__(self) -> dict[str, Any]:
        """Copies, and other processes, trace and rank for themselves."""
        names = ("model", "example_inputs", "group", "importance")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        settings = dict(state)
        Candidates.__init__(self, settings.pop("model"), settings.pop("example_inputs"), **settings)

    # -- prices -----------------------------------------------------------------------------------------------------

    def _removed(self, wanted: Choices) -> frozenset[int]:
        if self._ranked is None:
            return frozenset()
        return self._ranked.removed({name: choice.sparsity for name, choice in wanted.items()})

    def _shapes(self, wanted: Choices) -> tuple[dict[str, list[int]], frozenset[int]]:
        """Shapes of parameters and buffers without the channels that go, and their numbers."""
        shapes = {name: list(tensor.shape) for name, tensor in self._tensors.items()}
        gone = self._removed(wanted)
        if self._ranked is not None and gone:
            flags = self._ranked.graph.flags(gone)
            for (name, dim), numbers in self._ranked.graph.axes.items():
                if name in shapes:
                    shapes[name][dim] -= int(flags[numbers].sum())
        return shapes, gone

    def _nonzero(self, name: str, choice: LayerChoice | None, shape: list[int], gone: frozenset[int]) -> int:
        """Values of a parameter that are not zero afterwards; those that rounding makes zero are not foreseen."""
        count = math.prod(shape)
        if self._ranked is None:
            pruned = int(choice.sparsity * count) if choice is not None else 0  # zeros are the first that go
            return count - max(pruned, self._zeros[name])
        if not self._zeros[name] or not gone:
            return count - self._zeros[name]
        graph, left = self._ranked.graph, self.parameters[name].detach()
        for dim in range(left.dim()):
            if (name, dim) in graph.axes:
                kept = np.flatnonzero(~graph.flags(gone)[graph.axes[(name, dim)]])
                left = left.index_select(dim, torch.from_numpy(kept).to(left.device))
        return int(left.count_nonzero())

    def _bits(self, name: str, choice: LayerChoice | None, shape: list[int], nonzero: int | None) -> float:
        count = math.prod(shape)
        bits, scales = 8 * self._tensors[name].element_size(), 0
        if choice is not None and choice.bits != _FLOAT:
            bits, scales = choice.bits, _SCALE_BITS * (shape[0] if len(shape) > 1 else 1)
        weights = nonzero is not None and len(shape) > 1  # biases and norms are never stored with a mask
        packed = min(count * bits, (nonzero or 0) * bits + count) if weights else count * bits
        return packed + scales

    def _macs(self, wanted: Choices, left: Mapping[str, int], gone: frozenset[int]) -> float:
        if self._ranked is not None:
            return sum(self._ranked.macs(gone).values())
        return sum(
            macs * (sum(left[name] for name in names) / sum(self.parameters[name].numel() for name in names))
            if names
            else macs
            for macs, names in self._layer_macs
        )

    def _measured_macs(self) -> list[tuple[float, list[str]]]:
        """The multiply-accumulates of each layer, and the weights that make them."""
        found: dict[str, float] = {}
        for cost in layer_costs(self.model, self.example_inputs):
            found[cost.name] = found.get(cost.name, 0.0) + cost.macs
        return [(macs, self._weights_of(layer)) for layer, macs in found.items()]

    def _weights_of(self, layer: str) -> list[str]:
        below = {id(p) for name, p in self.model.named_parameters(remove_duplicate=False) if _is_of(name, layer)}
        return [name for name, p in self.parameters.items() if id(p) in below and p.dim() > 1]


def compressed_copy(
    model: nn.Module, example_inputs: ExampleInputsLike, choices: Choices, *, group: str = "element"
) -> nn.Module:
    """A new model with ``choices`` made; the given one is untouched.

    ``group="element"``: the weights of lowest magnitude become zero. ``group="filter"``: the filters of lowest L1 norm
    (over everything coupled with them) are removed with all that belongs to them. Weights with fewer than 32 bits are
    rounded to a symmetric grid, one scale for each output channel. ::

        smaller = compressed_copy(model, (x,), {"conv1.weight": LayerChoice(0.5, bits=8)}, group="filter")
        smaller.conv1.out_channels  # 16 of 32

    Raises what :class:`Candidates` and :meth:`Candidates.build` do.
    """
    return Candidates(model, example_inputs, group=group).build(choices)


def predicted_cost(
    model: nn.Module, example_inputs: ExampleInputsLike, choices: Choices, *, group: str = "element"
) -> PredictedCost:
    """What :func:`compressed_copy` would cost, without making it; ``choices={}`` gives the model's own cost.

    ``nn.Linear(4, 3)`` with ``{"weight": LayerChoice(0.5, bits=8)}``: 15 parameters, 9 of them not zero, 6 MACs, and
    6 values of 8 bits + 12 mask bits + 3 scales + 3 biases = 31.5 bytes.
    """
    return Candidates(model, example_inputs, group=group).cost(choices)


def _is_of(parameter: str, layer: str) -> bool:
    return not layer or canonical_name(parameter).startswith(f"{layer}.")
