"""Which channels of a model can only be removed together: the channel-dependency graph (layer 1)."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from distiller_ng.errors import GraphError, TargetError, did_you_mean, listed
from distiller_ng.graph.inputs import ExampleInputs, ExampleInputsLike
from distiller_ng.graph.labels import FIXED, LabelArray
from distiller_ng.graph.resizing import Resized, resized
from distiller_ng.graph.trace import TracedModel, trace
from distiller_ng.graph.walker import RULES, Axis, Value, Walker
from distiller_ng.names import canonical_name

__all__ = ["ChannelGroup", "DependencyGraph", "Member"]


@dataclass(frozen=True, slots=True)
class Member:
    """Entries of one dimension of one parameter or buffer that belong to a channel.

    ``feeds``: they produce the channel (filter, bias, norm); else they read it (the next layer's input).
    """

    tensor: str
    dim: int
    indices: tuple[int, ...]
    feeds: bool = True


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels that are removed together, and everything that goes with them.

    ``channels``: their numbers in the graph. ``members``: entries of parameters and buffers, in model order.
    """

    channels: tuple[int, ...]
    members: tuple[Member, ...]

    def __str__(self) -> str:
        return ", ".join(f"{m.tensor}[dim {m.dim}: {_ranges(m.indices)}]" for m in self.members)


class DependencyGraph:
    """The channels of a model and what they are made of.

    Build it with :meth:`trace`. ``channels_of(tensor, dim)`` gives the number of the channel each index belongs to;
    indices with one number go together, in this tensor and everywhere else.

    Time is linear in the number of operators and channels. Example::

        graph = DependencyGraph.trace(model, torch.zeros(1, 3, 32, 32))
        print(graph.group("conv1", 0, [3]))  # conv1.weight[dim 0: 3], bn1.weight[dim 0: 3], ..., conv2.weight[dim 1: 3]
    """

    def __init__(self, traced: TracedModel, walker: Walker) -> None:
        self.traced = traced
        self._axes = _merged(walker.axes)
        self._roots = walker.coupling.roots
        self._fixed = int(self._roots[FIXED])
        self._partitions = walker.partitions
        self._reasons = walker.coupling.reasons
        self._walker = walker

    @classmethod
    def trace(cls, model: nn.Module, example_inputs: ExampleInputsLike) -> DependencyGraph:
        """Trace ``model`` and follow its channels; the model is left as it was.

        Raises :class:`GraphError` where tracing fails, naming the source line.
        """
        return cls.of(trace(model, example_inputs))

    @classmethod
    def of(cls, traced: TracedModel) -> DependencyGraph:
        """Follow the channels of an already traced model."""
        _load_rules()
        walker = Walker(traced, _fallback)
        walker.walk()
        return cls(traced, walker)

    @property
    def model(self) -> nn.Module:
        """The traced model, unwrapped."""
        return self.traced.model

    @property
    def inputs(self) -> ExampleInputs:
        """What it was traced with."""
        return self.traced.inputs

    @property
    def axes(self) -> Mapping[tuple[str, int], LabelArray]:
        """``{(tensor, dim): channel number of each index}`` of everything that has channels."""
        return self._channels

    @cached_property
    def _channels(self) -> dict[tuple[str, int], LabelArray]:
        return {key: self._roots[axis.labels] for key, axis in self._axes.items()}

    @cached_property
    def frozen(self) -> frozenset[int]:
        """Channels that can never be removed: those of outputs, of buffers alone, and the last of a dimension."""
        found = {self._fixed}
        learned: set[int] = set()
        for (tensor, _), channels in self._channels.items():
            if (channels == channels[0]).all():
                found.add(int(channels[0]))
            if tensor in self._learned:
                learned.update(channels.tolist())
        every = {int(channel) for channels in self._channels.values() for channel in channels}
        return frozenset(found | (every - learned))

    @cached_property
    def _learned(self) -> frozenset[str]:
        return frozenset(canonical_name(name) for name, _ in self.model.named_parameters(remove_duplicate=False))

    def channels_of(self, tensor: str, dim: int) -> LabelArray:
        """Channel number of each index of a dimension.

        Raises :class:`TargetError` for a tensor the model does not have, :class:`GraphError` for a dimension whose
        entries are no channels.
        """
        name = canonical_name(tensor)
        if (name, dim) not in self._channels:
            self._refuse_axis(tensor, name, dim)
        return self._channels[(name, dim)]

    def removable(self, tensor: str, dim: int) -> NDArray[np.bool_]:
        """Whether each index of a dimension can be removed at all, as a boolean array."""
        return np.asarray(~self.flags(self.frozen)[self.channels_of(tensor, dim)])

    def flags(self, channels: Iterable[int]) -> NDArray[np.bool_]:
        """Whether each channel number is among ``channels``: ``flags(gone)[channels_of(tensor, dim)]`` is quick."""
        found = np.zeros(int(self._roots.max()) + 1, bool)
        found[np.fromiter(channels, np.int64)] = True
        return found

    def feeds(self, tensor: str, dim: int) -> bool:
        """Whether the entries of a dimension produce their channels (else they read them)."""
        return self._axes[(canonical_name(tensor), dim)].feeds

    def dims_of(self, tensor: str) -> int:
        """How many dimensions a parameter or buffer has."""
        return self._ranks[tensor]

    @cached_property
    def _ranks(self) -> dict[str, int]:
        named = (*self.model.named_parameters(), *self.model.named_buffers())
        return {canonical_name(name): tensor.dim() for name, tensor in named}

    def group(self, layer: str, axis: int, indices: Iterable[int]) -> ChannelGroup:
        """Everything that goes when ``indices`` of a layer's outputs (``axis=0``) or inputs (``axis=1``) go.

        ``layer`` is a module's name (its ``weight`` is meant) or a parameter's own. Raises :class:`GraphError` when one
        of them can never be removed, and says why.
        """
        name = self._parameter(layer)
        channels = self.channels_of(name, self._dim(layer, name, axis))
        chosen = sorted({int(channels[i]) for i in indices})
        self.check(chosen, name)
        return self.group_of(chosen)

    def group_of(self, channels: Sequence[int]) -> ChannelGroup:
        """The group of channels given by their numbers."""
        members = []
        wanted = self.flags(channels)
        for (tensor, dim), numbers in self._channels.items():
            hit = np.flatnonzero(wanted[numbers])
            if hit.size:
                members.append(Member(tensor, dim, tuple(hit.tolist()), self._axes[(tensor, dim)].feeds))
        return ChannelGroup(tuple(channels), tuple(members))

    def check(self, channels: Iterable[int], tensor: str = "") -> None:
        """Raise :class:`GraphError` for channels that can never be removed, or that would empty a dimension.

        ``tensor``: whose channels they are, for the message (default: the first that has one).
        """
        wanted = set(channels)
        lost = wanted & self.frozen
        tensor = tensor or next((m.tensor for m in self.group_of(sorted(lost or wanted)[:1]).members), "")
        if lost:
            raise GraphError(
                f"channels of {tensor!r} cannot be removed: {self.why_frozen(lost)}. Leave {tensor!r} out of the "
                "targets (weights: [...]), or change what holds them"
            )
        flags = self.flags(wanted)
        for (name, dim), numbers in self._channels.items():
            if flags[numbers].all():
                raise GraphError(
                    f"removing these channels of {tensor!r} would leave nothing of {name!r} (dimension {dim}); "
                    "keep at least one"
                )

    def why_frozen(self, channels: Iterable[int]) -> str:
        """What keeps these channels from being removed, in words."""
        wanted = set(channels)
        found = [text for label, text in self._reasons if int(self._roots[label]) in wanted]
        if not found and self._fixed not in wanted:
            return "they are all tied to each other, so that only the whole layer could go"
        return listed(dict.fromkeys(found), limit=3) or "they are tied to the model's inputs or outputs"

    def label_axes(self) -> Mapping[tuple[str, int], Axis]:
        """The same dimensions with the labels they had before coupled channels were made one."""
        return self._axes

    def resized(self, channels: Iterable[int]) -> list[Resized]:
        """Where sizes written in the code meet tensors that get smaller when ``channels`` go."""
        return resized(self._walker, self._roots, channels)

    def partitions(self) -> list[tuple[str, LabelArray]]:
        """(weight, channel numbers of shape (groups, members)) of every operator that works in groups."""
        return [(p.weight.name, self._roots[p.labels]) for p in self._partitions]

    # -- names ------------------------------------------------------------------------------------------------------

    def _parameter(self, layer: str) -> str:
        name = canonical_name(layer)
        if any(key[0] == name for key in self._channels):
            return name
        weight = f"{name}.weight" if name else "weight"
        if any(key[0] == weight for key in self._channels):
            return weight
        known = sorted({key[0] for key in self._channels})
        raise TargetError(f"no layer or parameter called {layer!r} has channels. {did_you_mean(layer, known)}")

    def _dim(self, layer: str, name: str, axis: int) -> int:
        """``axis`` 0 means outputs; transposed convolutions and embeddings hold them in dimension 1."""
        if canonical_name(layer) == name:
            return axis
        outputs = [dim for (tensor, dim), a in self._axes.items() if tensor == name and a.feeds]
        inputs = [dim for (tensor, dim), a in self._axes.items() if tensor == name and not a.feeds]
        wanted = outputs if axis == 0 else inputs
        return wanted[0] if wanted else axis

    def _refuse_axis(self, tensor: str, name: str, dim: int) -> None:
        names = {canonical_name(n) for n, _ in (*self.model.named_parameters(), *self.model.named_buffers())}
        if name not in names:
            raise TargetError(f"the model has no parameter {tensor!r}. {did_you_mean(name, names)}")
        used = any(tensor == name and node.users for node, tensor in self.traced.tensors.items())
        what = (
            f"the entries of its dimension {dim} are not channels that could be removed"
            if used
            else "it takes no part in the forward pass on the example inputs"
        )
        raise GraphError(f"{tensor!r}: {what}. Leave it out of the targets (weights: [...])")


def _merged(axes: Sequence[Axis]) -> dict[tuple[str, int], Axis]:
    """One axis for each dimension; one use that feeds channels makes it feed them."""
    found: dict[tuple[str, int], Axis] = {}
    for axis in axes:
        first = found.setdefault((axis.tensor, axis.dim), axis)
        if axis.feeds and not first.feeds:
            found[(axis.tensor, axis.dim)] = axis
    return found


def _fallback(walker: Walker, node: fx.Node, args: dict[str, Any]) -> Value | None:
    """Point-wise operators by torch's own mark; nothing that goes into any other may lose channels."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags:
        return RULES["*pointwise*"](walker, node, args)
    return RULES["*unknown*"](walker, node, args)


def _load_rules() -> None:
    from distiller_ng.graph import rules

    for module in pkgutil.iter_modules(rules.__path__):
        importlib.import_module(f"{rules.__name__}.{module.name}")


def _ranges(indices: Sequence[int]) -> str:
    """``(0, 1, 2, 5)`` -> ``0-2, 5``."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
