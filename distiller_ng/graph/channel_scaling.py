"""Which channels of a model can be multiplied by a factor without changing what the model computes (layer 1).

Operators such as ReLU, pooling, adding and zero padding commute with positive factors for each channel. So a factor
that goes into the rows of the layers that make a tensor can be taken out again in the columns of the layers that read
it, through all such operators in between, residual additions included.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torch.nn.utils import parametrize

from distiller_ng.graph._operator_macs import shape_of
from distiller_ng.graph.inputs import ExampleInputsLike
from distiller_ng.graph.trace import TracedModel, arguments, op_name, trace
from distiller_ng.names import canonical_name, unwrap

__all__ = ["ScalingGroup", "scaling_groups"]

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_HOMOGENEOUS = frozenset(
    {
        *(
            "relu",
            "leaky_relu",
            "prelu",
            "_prelu_kernel",
            "dropout",
            "feature_dropout",
            "contiguous",
            "detach",
            "alias",
        ),
        *("clone", "lift_fresh", "lift_fresh_copy", "to", "_to_copy", "type_as", "neg", "upsample_nearest2d"),
        *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d"),
        *("adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d"),
    }
)
_POOLS_FROM_2 = ("pool", "upsample")
_SUMS = frozenset({"add", "sub", "maximum", "minimum"})
_NORMS = frozenset({"batch_norm", "layer_norm"})


@dataclass(frozen=True)
class ScalingGroup:
    """Tensors that share one factor for each of their ``channels``.

    ``producers``: modules whose output channels are those (layers, and norms with weight and bias). ``consumers``: the
    layers that read them, each with how many of its inputs stand for one channel (more than 1 behind a flatten).
    ``limits``: modules that cut the channels off at values of their buffer ``channel_limits``, which have to be
    multiplied, too. ``only_relu``: there is one producer and nothing but one ReLU between it and its readers.
    """

    channels: int
    producers: tuple[str, ...]
    consumers: tuple[tuple[str, int], ...]
    limits: tuple[str, ...] = ()
    only_relu: bool = False


def scaling_groups(model: nn.Module, example_inputs: ExampleInputsLike) -> list[ScalingGroup]:
    """All groups of an evaluation-mode model, in the order they run.

    Producers: Linear, Conv1d to Conv3d, and batch and layer norms. A depthwise convolution reads one group and makes
    another. A group is left out when anything else reads or makes one of its tensors: the model's inputs and outputs,
    other operators (ReLU6, sigmoid, softmax, concatenation, products, ...), layers whose weight is tied, parametrized
    or used twice, modules with forward hooks. ``conv1 -> relu -> conv2``: producers ``conv1``, consumers
    ``(("conv2", 1),)``.

    Raises :class:`GraphError` when the model cannot be traced.
    """
    return _Finder(trace(model, example_inputs)).groups()


@dataclass
class _Class:
    """Tensors that share factors; merged into one as operators connect them."""

    channels: int
    producers: dict[str, None] = field(default_factory=dict)
    consumers: dict[tuple[str, int], None] = field(default_factory=dict)
    limits: dict[str, None] = field(default_factory=dict)
    frozen: bool = False
    between: list[str] = field(default_factory=list)  # the operators that connect its tensors


@dataclass(frozen=True)
class _Place:
    """Where a tensor's channels are: dimension ``axis``, each repeated ``repeat`` times in a row."""

    key: int
    axis: int
    repeat: int = 1


class _Finder:
    def __init__(self, traced: TracedModel) -> None:
        self.traced = traced
        model = unwrap(traced.model)
        self.modules = {canonical_name(name): module for name, module in model.named_modules()}
        self.classes: list[_Class] = []
        self.parent: list[int] = []
        self.places: dict[fx.Node, _Place] = {}
        self.uses = Counter(
            self.traced.tensors[source]
            for node in traced.nodes
            for source in node.all_input_nodes
            if source in self.traced.tensors
        )
        registered = [id(p) for module in model.modules() for p in module._parameters.values() if p is not None]
        self.tied = {id_ for id_, count in Counter(registered).items() if count > 1}

    def groups(self) -> list[ScalingGroup]:
        for node in self.traced.nodes:
            self._visit(node)
        for node in self.traced.outputs:
            self._freeze(node)
        found = []
        for key, one in enumerate(self.classes):
            if self._root(key) == key and not one.frozen and one.producers and one.consumers:
                only_relu = one.between == ["relu"] and len(one.producers) == 1
                parts = (tuple(one.producers), tuple(one.consumers), tuple(one.limits))
                found.append(ScalingGroup(one.channels, *parts, only_relu))
        return found

    # -- operators -----------------------------------------------------------------------------------------------

    def _visit(self, node: fx.Node) -> None:
        name = op_name(node).rstrip("_")
        read = [source for source in node.all_input_nodes if source not in self.traced.tensors]
        layer = self._layer_of(node, name)
        owner = self.traced.module_of(node)
        limited = owner if "channel_limits" in getattr(self.modules.get(owner), "_buffers", ()) else ""
        if layer and read and len(read) == 1:
            self._consume(read[0], layer)
            self._produce(node, layer)
        elif name in _NORMS and (norm := self._norm_of(node)):
            self._freeze(*read)
            self._produce(node, norm)
        elif self._is_homogeneous(node, name, read):
            self._join(node, read[0], name)
        elif limited and read and read[0] in self.places and self.places[read[0]].axis == 1:
            self._join(node, read[0], name)
            self._of(node).limits[limited] = None
        elif name in _SUMS and len(read) == 2 and len(node.all_input_nodes) == 2 and self._are_alike(node, read):
            self._join(node, read[0], name)
            self._merge(read[0], read[1])
        elif name in ("flatten", "view", "reshape") and len(read) == 1 and self._flattens(node, read[0]):
            place = self.places[read[0]]
            repeat = shape_of(node)[1] // shape_of(read[0])[1] * place.repeat
            self.places[node] = _Place(place.key, 1, repeat)
            self._of(node).between.append(name)
        else:
            self._freeze(*read)

    def _is_homogeneous(self, node: fx.Node, name: str, read: list[fx.Node]) -> bool:
        if len(read) != 1 or read[0] not in self.places:
            return False
        place = self.places[read[0]]
        if name == "mean" or name == "sum":
            rank = len(shape_of(read[0]))
            dims = {int(dim) % rank for dim in arguments(node).get("dim") or ()}
            return place.axis == 1 and bool(dims) and dims.isdisjoint((0, 1))
        if name in ("pad", "constant_pad_nd"):
            args = arguments(node)
            pads = args.get("pad") or []
            zeros = args.get("mode", "constant") == "constant" and not args.get("value")
            return place.axis == 1 and zeros and len(pads) <= 2 * (len(shape_of(read[0])) - 2)
        if any(part in name for part in _POOLS_FROM_2):
            return name in _HOMOGENEOUS and place.axis == 1
        if name in ("to", "_to_copy", "type_as"):
            return shape_of(node) == shape_of(read[0]) and node.meta["val"].is_floating_point()
        if name == "neg" or (name == "leaky_relu" and arguments(node).get("negative_slope", 0.01) < 0):
            return name == "neg"
        return name in _HOMOGENEOUS

    def _flattens(self, node: fx.Node, source: fx.Node) -> bool:
        """``[N, C, ...]`` to ``[N, C * rest]``."""
        place = self.places.get(source)
        before, after = shape_of(source), shape_of(node)
        return (
            place is not None
            and place.axis == 1
            and len(before) >= 2
            and len(after) == 2
            and before[0] == after[0]
            and after[1] % before[1] == 0
        )

    def _are_alike(self, node: fx.Node, read: list[fx.Node]) -> bool:
        if any(source not in self.places for source in read):
            return False
        first, second = (self.places[source] for source in read)
        rank = len(shape_of(node))
        same = shape_of(read[0])[-rank:] == shape_of(read[1])[-rank:] == shape_of(node)
        return same and first.axis == second.axis and first.repeat == second.repeat

    # -- modules -------------------------------------------------------------------------------------------------

    def _layer_of(self, node: fx.Node, name: str) -> str:
        """The convolution or linear layer an operator is the whole computation of; "" if none."""
        if name not in ("conv1d", "conv2d", "conv3d", "convolution", "linear"):
            return ""
        return self._owner(node, _LAYERS)

    def _norm_of(self, node: fx.Node) -> str:
        owner = self._owner(node, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm))
        module = self.modules.get(owner)
        if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) != 1:
            return ""
        return owner if owner and module is not None and module.bias is not None else ""

    def _owner(self, node: fx.Node, kinds: tuple[type[nn.Module], ...]) -> str:
        args = arguments(node)
        weight, bias = args.get("weight"), args.get("bias")
        if not isinstance(weight, fx.Node) or weight not in self.traced.tensors:
            return ""
        name, _, last = self.traced.tensors[weight].rpartition(".")
        module = self.modules.get(name)
        if last != "weight" or not isinstance(module, kinds) or parametrize.is_parametrized(module):
            return ""
        if self.uses[f"{name}.weight"] != 1 or any(id(p) in self.tied for p in module._parameters.values()):
            return ""
        if isinstance(bias, fx.Node) and self.traced.tensors.get(bias) != f"{name}.bias":
            return ""
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.padding_mode != "zeros":
            return ""  # the padding is an operator of its own then, and is judged as that
        return "" if module._forward_hooks or module._forward_pre_hooks else name

    # -- classes -------------------------------------------------------------------------------------------------

    def _produce(self, node: fx.Node, module: str) -> None:
        shape = shape_of(node)
        layer = self.modules[module]
        is_last = isinstance(layer, nn.Linear | nn.LayerNorm)
        axis = len(shape) - 1 if is_last else 1
        if not is_last and isinstance(layer, _LAYERS) and len(shape) != layer.weight.dim():
            return  # a sample without a batch dimension
        self.places[node] = _Place(len(self.classes), axis)
        self.parent.append(len(self.classes))
        self.classes.append(_Class(shape[axis], {module: None}))

    def _consume(self, source: fx.Node, module: str) -> None:
        place = self.places.get(source)
        if place is None:
            return
        layer = self.modules[module]
        rank = len(shape_of(source))
        wanted = rank - 1 if isinstance(layer, nn.Linear) else 1
        if place.axis != wanted or (place.repeat > 1 and not isinstance(layer, nn.Linear)):
            self._freeze(source)
            return
        weight: Any = layer.weight
        if weight.shape[1] * getattr(layer, "groups", 1) != self._of(source).channels * place.repeat:
            self._freeze(source)
            return
        self._of(source).consumers[(module, place.repeat)] = None

    def _join(self, node: fx.Node, source: fx.Node, name: str) -> None:
        place = self.places[source]
        self._of(source).between.append(name)
        self.places[node] = _Place(place.key, place.axis, place.repeat)

    def _merge(self, first: fx.Node, second: fx.Node) -> None:
        kept, gone = self._root(self.places[first].key), self._root(self.places[second].key)
        if kept == gone:
            return
        kept, gone = min(kept, gone), max(kept, gone)
        one, other = self.classes[kept], self.classes[gone]
        one.producers.update(other.producers)
        one.consumers.update(other.consumers)
        one.frozen |= other.frozen or one.channels != other.channels
        one.limits.update(other.limits)
        one.between += other.between
        self.parent[gone] = kept

    def _freeze(self, *sources: fx.Node) -> None:
        for source in sources:
            if source in self.places:
                self._of(source).frozen = True

    def _of(self, node: fx.Node) -> _Class:
        return self.classes[self._root(self.places[node].key)]

    def _root(self, key: int) -> int:
        while self.parent[key] != key:
            key = self.parent[key]
        return key
