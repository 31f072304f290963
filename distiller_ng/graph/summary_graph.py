"""``SummaryGraph``: what operations a model consists of and how they are connected, with Distiller's queries (layer 1).

Built on :func:`distiller_ng.graph.trace.trace`, so that names are those of the model's modules and nothing about the
model changes. Operation types are ONNX's: Conv, Gemm, BatchNormalization, Relu, MaxPool, AveragePool, Add, Concat, ...
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from math import prod
from typing import Any, ClassVar, TypeAlias

from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.graph._adjacency import AdjacentsEntry, OpSimpleMetadata
from distiller_ng.graph._summary_ops import Edge, ModuleNames, SummaryBuilder
from distiller_ng.graph.inputs import ExampleInputs, ExampleInputsLike, as_example_inputs
from distiller_ng.graph.trace import trace
from distiller_ng.ops.modules import convert_tensors_recursively_to, has_children, model_device, normalize_module_name

__all__ = ["AdjacentsEntry", "OpSimpleMetadata", "SummaryGraph", "onnx_name_2_pytorch_name"]

_logger = logging.getLogger(__name__)

#: One operation: name, orig-name, module-name, type, inputs, outputs, params, attrs.
Op: TypeAlias = "dict[str, Any]"


def onnx_name_2_pytorch_name(name: str) -> str:
    """``"ResNet/Sequential[layer3]/BasicBlock[0]/ReLU[relu]"`` -> ``"layer3.0.relu"``; "" without brackets."""
    return ".".join(re.findall(r"\[(.*?)\]", name))


class SummaryGraph:
    """Operations and tensors of one evaluation-mode forward pass, in the order they run.

    ``model``: may be wrapped (DataParallel, torch.compile). ``dummy_input``: a tensor, a tuple of positional arguments
    or a mapping of keyword arguments; moved to the model's device. ``apply_scope_name_workarounds`` is accepted from
    Distiller's callers and changes nothing: names need no repair.

    - ``ops``: ``{name: operation}``. An operation is a dictionary with ``name``, ``orig-name``, ``module-name`` (as
      ``model.named_modules()`` says), ``type``, ``inputs``, ``outputs`` and ``params`` (names of tensors), ``attrs``.
      The first operation of a module has the module's name, further ones ``<module>_<Type>_<n>``; those of the model's
      own forward are ``top_level_op``, ``top_level_op_<Type>_<n>``. Dropout and copies are left out.
    - ``params``: ``{name: {"id", "shape"}}`` of the tensors: ``input.1`` is the model's first input, parameters and
      buffers have their names, results are ``<operation>:<number>``.
    - ``edges``: ``Edge(src, dst)`` from tensors to operations and from operations to tensors.
    - ``module_ops_map``: ``{module: [names of its operations]}``.
    - ``attrs`` hold the settings (``kernel_shape``, ``group``, ...), ``MACs`` as the compute summary counts them
      (products of two activations apart, as ``product_MACs``), and for Conv, ConvTranspose, Gemm and MaxPool
      ``footprint`` (values read and written, weights included), ``fm_vol``, ``weights_vol``, ``n_ifm``, ``n_ofm``
      (feature maps in and out) and ``ai`` (arithmetic intensity: MACs over footprint, rounded).

    Every query takes time linear in the size of the graph. Raises :class:`GraphError` where the model cannot be traced.
    Example: ``SummaryGraph(resnet20, x).successors_f("layer1.0.conv1", "Conv")`` -> ``["layer1.0.conv2"]``.
    """

    Edge: ClassVar[type[Edge]] = Edge

    def __init__(
        self, model: nn.Module, dummy_input: ExampleInputsLike, apply_scope_name_workarounds: bool = True
    ) -> None:
        inputs = as_example_inputs(dummy_input)
        args, kwargs = convert_tensors_recursively_to((inputs.args, dict(inputs.kwargs)), model_device(model))
        self.dummy_input: Any = args[0] if len(args) == 1 and not kwargs else (kwargs or args)
        self._model = model
        self._names = ModuleNames(model)
        built = SummaryBuilder(trace(model, ExampleInputs(args, kwargs)), self._names)
        self.ops: dict[str, Op] = built.ops
        self.params = built.params
        self.edges: list[Edge] = built.edges
        self.module_ops_map = built.module_ops_map
        self._calls, self._returned = built.calls, built.returned
        self._dropped, self._computed, self._inputs = built.dropped, built.computed, built.inputs
        self._before: dict[str, list[str]] = {}
        self._after: dict[str, list[str]] = {}
        for edge in self.edges:
            self._before.setdefault(edge.dst, []).append(edge.src)
            self._after.setdefault(edge.src, []).append(edge.dst)
        self._adjacency: dict[bool, dict[str, AdjacentsEntry]] = {}

    # -- looking up -------------------------------------------------------------------------------------------------

    def find_op(self, lost_op_name: str) -> Op | None:
        """The operation of that name, with or without the parts that wrappers add; None if there is none."""
        if not isinstance(lost_op_name, str):
            raise ArgumentError(
                f"an operation's name is text, e.g. 'conv1'; got {type(lost_op_name).__name__}",
                argument=("lost_op_name",),
            )
        name = self._plain(lost_op_name)
        return self.ops.get(name)

    def find_param(self, data_name: str) -> dict[str, Any] | None:
        """The tensor of that name, or None."""
        return self.params.get(data_name)

    def param_shape(self, param_id: str) -> tuple[int, ...]:
        """A tensor's shape."""
        shape: tuple[int, ...] = self.params[param_id]["shape"]
        return shape

    def param_volume(self, param_id: str) -> int:
        """The number of values in a tensor."""
        return self.volume(self.param_shape(param_id))

    @staticmethod
    def volume(dims: Collection[int]) -> int:
        """The product of sizes: ``(2, 3)`` -> 6."""
        return prod(dims)

    def get_attr(self, attr: str, f: Callable[[Op], bool] = lambda op: True) -> list[Any]:
        """One attribute of every operation that has it and for which ``f`` holds."""
        return [op["attrs"][attr] for op in self.get_ops(attr, f)]

    def get_ops(self, attr: str, f: Callable[[Op], bool] = lambda op: True) -> list[Op]:
        """The operations that have an attribute and for which ``f`` holds."""
        return [op for op in self.ops.values() if attr in op["attrs"] and f(op)]

    def named_params_layers(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        """(name of the layer, name of the parameter, parameter) of every parameter of the model."""
        for name, parameter in self._model.named_parameters():
            yield name.rpartition(".")[0], name, parameter

    # -- neighbours -------------------------------------------------------------------------------------------------

    def predecessors(
        self, node: Op | str, depth: int, done_list: list[str] | None = None, denorm_names: bool = True
    ) -> list[str]:
        """What lies exactly ``depth`` steps (at least 1) before an operation or tensor, on the shortest way.

        Operations and tensors alternate: 1 step gives the tensors it reads, 2 steps the operations right before it.
        Nothing in ``done_list`` is visited; what is visited is added to it. ``denorm_names``: names of modules as the
        model has them, with wrapper parts.
        """
        return self._at_depth(self._before, node, depth, done_list, denorm_names)

    def successors(
        self, node: Op | str, depth: int, done_list: list[str] | None = None, denorm_names: bool = True
    ) -> list[str]:
        """What lies exactly ``depth`` steps behind an operation or tensor; else as :meth:`predecessors`."""
        return self._at_depth(self._after, node, depth, done_list, denorm_names)

    def predecessors_f(
        self,
        node_name: str,
        predecessors_types: str | Collection[str],
        done_list: list[str] | None = None,
        logging: Any = None,
        denorm_names: bool = True,
    ) -> list[str]:
        """The nearest operations of some types before a node, through operations of all others.

        ``logging`` is accepted from Distiller's callers and not used. An unknown node has none; a warning is logged.
        """
        return self._nearest(self._before, node_name, predecessors_types, done_list, denorm_names)

    def successors_f(
        self,
        node_name: str,
        successors_types: str | Collection[str],
        done_list: list[str] | None = None,
        logging: Any = None,
        denorm_names: bool = True,
    ) -> list[str]:
        """The nearest operations of some types behind a node; else as :meth:`predecessors_f`."""
        return self._nearest(self._after, node_name, successors_types, done_list, denorm_names)

    # -- the whole graph --------------------------------------------------------------------------------------------

    def adjacency_map(self, dedicated_modules_only: bool = False) -> dict[str, AdjacentsEntry]:
        """``{operation: AdjacentsEntry}`` in the order they run, with names as the model has them.

        ``dedicated_modules_only`` leaves out every operation that is not all of one module: functional calls, tensor
        arithmetic, modules called more than once or with several operations.
        """
        only = bool(dedicated_modules_only)
        if only not in self._adjacency:
            kept = {name: None for name in self.ops if not only or self._is_dedicated(name)}
            self._adjacency[only] = {self._names.full(name): self._entry(name, kept) for name in kept}
        return dict(self._adjacency[only])

    def layers_topological_order(self, recurrent: bool = False) -> list[str]:
        """Modules sorted by the length of the longest way that leads to them from an input.

        ``recurrent`` is accepted from Distiller's callers: a traced graph has no loops.
        """
        rank: dict[str, int] = {}
        adjacency = self.adjacency_map()
        for name, entry in adjacency.items():
            rank[name] = max((rank[before.name] + 1 for before in entry.predecessors), default=0)
        modules = dict(self._model.named_modules(remove_duplicate=False))
        return sorted((name for name in rank if name in modules), key=rank.__getitem__)

    def top_level_ops(self) -> set[str]:
        """The operations that read no other operation's result."""
        return {name for name in self.ops if not self.predecessors(name, 2)}

    def missing_modules(self) -> list[str]:
        """The operations that are not all of one module (see :meth:`adjacency_map`)."""
        return [self._names.full(name) for name in self.ops if not self._is_dedicated(name)]

    # -- inside -----------------------------------------------------------------------------------------------------

    def _plain(self, name: str) -> str:
        """The key under which an operation or tensor of that name is kept."""
        for known in (name, self._names.plain(name), normalize_module_name(name)):
            if known in self.ops or known in self.params:
                return known
        return self._names.plain(name)

    def _full(self, names: list[str], denorm_names: bool) -> list[str]:
        return [self._names.full(name) if name in self.ops else name for name in names] if denorm_names else names

    def _at_depth(
        self,
        neighbours: Mapping[str, list[str]],
        node: Op | str,
        depth: int,
        done_list: list[str] | None,
        denorm_names: bool,
    ) -> list[str]:
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise ArgumentError(f"depth is a whole number of steps, 1 or more; got {depth!r}", argument=("depth",))
        done = [] if done_list is None else done_list
        visited = set(done)
        level = [self._plain(node["name"] if isinstance(node, Mapping) else node)]
        for _ in range(depth):
            further = dict.fromkeys(near for name in level for near in neighbours.get(name, ()))
            level = [name for name in further if name not in visited]
            if not level:
                return []
            visited.update(level)
            done += level
        return self._full(level, denorm_names)

    def _nearest(
        self,
        neighbours: Mapping[str, list[str]],
        node_name: str,
        types: str | Collection[str],
        done_list: list[str] | None,
        denorm_names: bool,
    ) -> list[str]:
        start = self._plain(node_name)
        if start not in self.ops and start not in self.params:
            _logger.warning("the graph has no operation or tensor %r", node_name)
            return []
        wanted = {types} if isinstance(types, str) else set(types)
        done = [] if done_list is None else done_list
        visited = set(done)
        found: list[str] = []
        pending = [start]
        while pending:  # depth first, in the order of the edges
            name = pending.pop()
            if name in visited:
                continue
            visited.add(name)
            done.append(name)
            if name != start and name in self.ops and self.ops[name]["type"] in wanted:
                found.append(name)
            else:
                pending += reversed(neighbours.get(name, []))
        return self._full(found, denorm_names)

    def _is_dedicated(self, name: str) -> bool:
        module_name = self.ops[name]["module-name"]
        return len(self.module_ops_map[module_name]) == 1 and not has_children(self._model.get_submodule(module_name))

    def _entry(self, name: str, kept: Collection[str]) -> AdjacentsEntry:
        def described(names: list[str]) -> list[OpSimpleMetadata]:
            return [OpSimpleMetadata(self._names.full(n), self.ops[n]["type"]) for n in names if n in kept]

        before = self.predecessors(name, 2, denorm_names=False)
        after = self.successors(name, 2, denorm_names=False)
        (itself,) = described([name])
        outputs, calls = self.ops[name]["outputs"], self._calls
        returned = not self._returned.isdisjoint(outputs)
        given = not self._inputs.isdisjoint(self.ops[name]["inputs"])
        return AdjacentsEntry(
            itself,
            described(before),
            described(after),
            module=self.ops[name]["module-name"],
            call=calls[name],
            shape=self.param_shape(outputs[0]) if outputs else (),
            escapes=returned or any(other not in kept for other in after),
            joined=given or any(other not in kept for other in before),
            dropped=not self._dropped.isdisjoint(outputs),
            shares=any(calls[other] != calls[name] for id_ in self.ops[name]["params"] for other in self._after[id_]),
            computed=name in self._computed,
        )
