"""Reading a traced model into Distiller's dictionaries: operations, tensors and the edges between them (layer 1)."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from distiller_ng.graph._onnx_types import is_passed_through, onnx_attributes, onnx_type
from distiller_ng.graph._operator_macs import independent_of_inputs, is_product_of_activations, products_of, shape_of
from distiller_ng.graph.trace import TracedModel, arguments, op_name

__all__ = ["Edge", "ModuleNames", "SummaryBuilder"]

_TOP_LEVEL = "top_level_op"
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm")


class Edge(NamedTuple):
    """From a tensor to the operation that reads it, or from an operation to a tensor it makes."""

    src: str
    dst: str


class ModuleNames:
    """Names of a model's modules with and without the parts that wrappers (DataParallel, torch.compile) add.

    A module of the user's own that is called ``module`` keeps its name; one registered twice has its first name.
    """

    def __init__(self, model: nn.Module) -> None:
        self._plain: dict[str, str] = {"": ""}
        self._full: dict[str, str] = {}
        modules = dict(model.named_modules(remove_duplicate=False))
        first: dict[int, str] = {}
        for name, module in modules.items():
            parent, _, last = name.rpartition(".")
            known = first.setdefault(id(module), name)
            if known != name:
                self._plain[name] = self._plain[known]
                continue
            if name:
                above = self._plain[parent]
                added = last == "_orig_mod" or (last == "module" and _is_wrapper(modules[parent]))
                self._plain[name] = above if added else f"{above}.{last}".lstrip(".")
            self._full[self._plain[name]] = name

    def __contains__(self, name: str) -> bool:
        return name in self._plain

    def plain(self, name: str) -> str:
        """``"module.conv1"`` -> ``"conv1"`` for a model inside DataParallel; an unknown name as it is."""
        return self._plain.get(name, name)

    def full(self, name: str) -> str:
        """``"conv1"`` -> ``"module.conv1"`` for a model inside DataParallel; an unknown name as it is."""
        return self._full.get(name, name)


def _is_wrapper(module: nn.Module) -> bool:
    return isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel)


class SummaryBuilder:
    """Walks the traced operators once; its public attributes are the result."""

    def __init__(self, traced: TracedModel, names: ModuleNames) -> None:
        self._traced = traced
        self._names = names
        self._own_names = ModuleNames(traced.model)
        self._fixed = independent_of_inputs(traced)
        self._named = frozenset(traced.tensors.values())
        self._tensors: dict[fx.Node, list[str]] = {}
        self.ops: dict[str, dict[str, Any]] = {}
        self.params: dict[str, dict[str, Any]] = {}
        self.edges: list[Edge] = []
        self.module_ops_map: dict[str, list[str]] = {}
        self.calls: dict[str, str] = {}  # operation -> which call of which module it belongs to
        self.dropped: set[str] = set()  # tensors that a dropout reads
        self.computed: set[str] = set()  # operations that read what is computed from parameters
        for position, node in enumerate(traced.user_inputs):
            self._tensors[node] = [f"input.{position + 1}"]
        self.inputs = {id_ for ids in self._tensors.values() for id_ in ids}
        for node in traced.nodes:
            self._read(node)
        for node in (*traced.user_inputs, *traced.outputs):
            self._describe(node)
        self.returned = {id_ for node in traced.outputs for id_ in self._ids(node)}

    def _read(self, node: fx.Node) -> None:
        sources = node.all_input_nodes
        if node in self._fixed:
            # A weight made of several parameters is those; what has no inputs (zeros, arange) is a constant. Neither
            # may take the name of the module it is computed in.
            if sources:
                self._tensors[node] = list(dict.fromkeys(id_ for source in sources for id_ in self._ids(source)))
                for source in sources:
                    self._describe(source)
        elif op_name(node) == "getitem":
            ids = self._ids(sources[0])
            index = node.args[1]
            self._tensors[node] = [ids[index]] if isinstance(index, int) and len(ids) > 1 else ids
        elif is_passed_through(node):
            self._tensors[node] = self._ids(sources[0])
            if "dropout" in op_name(node):
                self.dropped.update(self._tensors[node])
        else:
            self._add(node, sources)

    def _ids(self, node: fx.Node) -> list[str]:
        """The tensors a node holds; parameters and constants are named when they are first read."""
        if node not in self._tensors:
            self._tensors[node] = [self._traced.tensors.get(node, f"constant.{node.name}")]
        return self._tensors[node]

    def _add(self, node: fx.Node, sources: list[fx.Node]) -> None:
        kind = onnx_type(node)
        stack = node.meta.get("nn_module_stack") or {}
        call, path = next(((key, str(value[0])) for key, value in reversed(stack.items())), ("", ""))
        while path not in self._own_names:  # tracing may put the model inside another module
            path = path.partition(".")[2]
        module = self._own_names.plain(path)
        full = self._names.full(module)
        name = self._unused(module, kind, len(self.module_ops_map.setdefault(full, [])))
        self.module_ops_map[full].append(name)
        self.calls[name] = call
        if any(source in self._fixed and source.op == "call_function" and source.all_input_nodes for source in sources):
            self.computed.add(name)
        ids = list(dict.fromkeys(id_ for source in sources for id_ in self._ids(source)))
        for source in sources:
            self._describe(source)
        outputs = self._outputs(node, name)
        if op_name(node).endswith("_") and isinstance(node.args[0], fx.Node):
            self._tensors[node.args[0]] = outputs  # it was changed in place: who reads it later reads the result
        self.ops[name] = {
            "name": name,
            "orig-name": path,
            "module-name": full,
            "type": kind,
            "inputs": ids,
            "outputs": outputs,
            "params": [id_ for id_ in ids if id_ in self._named],
            "attrs": {**onnx_attributes(node), **_costs(node, kind, self._fixed)},
        }
        self.edges += [Edge(id_, name) for id_ in ids] + [Edge(name, id_) for id_ in outputs]

    def _unused(self, module: str, kind: str, count: int) -> str:
        base = module or _TOP_LEVEL
        name = base if count == 0 else f"{base}_{kind}_{count}"
        while name in self.ops:
            count += 1
            name = f"{base}_{kind}_{count}"
        return name

    def _outputs(self, node: fx.Node, name: str) -> list[str]:
        shapes = list(_shapes(node))
        ids = [f"{name}:{position}" for position in range(len(shapes))]
        self._tensors[node] = ids
        for id_, shape in zip(ids, shapes, strict=True):
            self.params[id_] = {"id": id_, "shape": shape}
        return ids

    def _describe(self, node: fx.Node) -> None:
        for id_, shape in zip(self._ids(node), _shapes(node), strict=False):
            self.params.setdefault(id_, {"id": id_, "shape": shape})


def _shapes(node: fx.Node) -> Iterator[tuple[int, ...]]:
    value = node.meta.get("val")
    for item in value if isinstance(value, tuple | list) else [value]:
        yield tuple(int(size) for size in item.shape) if isinstance(item, Tensor) else ()


def _costs(node: fx.Node, kind: str, fixed: set[fx.Node]) -> dict[str, Any]:
    """MACs and sizes, in numbers of values. Products of two activations are counted apart, as ``product_MACs``."""
    products = products_of(node)
    macs = sum(prod(f if isinstance(f, int) else shape_of(f[0])[f[1]] for f in product) for product in products)
    of_activations = bool(products) and is_product_of_activations(node, fixed)
    found: dict[str, Any] = {"MACs": 0 if of_activations else macs}
    if of_activations:
        found["product_MACs"] = macs
    found["footprint"] = 0
    if kind in (*_WEIGHTED, "MaxPool"):
        found |= _footprint(node, kind)
    footprint = found["footprint"]
    # Rounded to the nearest whole number.
    found["ai"] = int((found["MACs"] + 0.5 * footprint) // footprint) if footprint else 0
    return found


def _footprint(node: fx.Node, kind: str) -> dict[str, int]:
    args = arguments(node)
    weight = args.get("weight", args.get("mat2"))
    data = args.get("input", args.get("mat1", args.get("self")))
    before, after = shape_of(data), shape_of(node)
    volume = prod(before) + prod(after)
    if kind == "MaxPool":
        return {"footprint": volume}
    shape = shape_of(weight)
    rank = 1 if kind == "Gemm" else len(shape) - 1  # channels come before the kernel's dimensions
    return {
        "n_ifm": before[-rank],
        "n_ofm": after[-rank],
        "footprint": volume + prod(shape),
        "fm_vol": volume,
        "weights_vol": prod(shape),
    }
