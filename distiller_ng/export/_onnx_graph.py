"""Reading and editing the graph of an ONNX model: constants, producers, consumers (layer 4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distiller_ng.ops.optional import require

__all__ = ["OnnxGraph"]

_FOLDED = frozenset(
    {
        *("Constant", "Identity", "Cast", "CastLike", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Flatten"),
        *("Add", "Sub", "Mul", "Div", "Neg", "Clip", "Concat", "Shape", "Gather", "Expand", "ConstantOfShape"),
    }
)


class OnnxGraph:
    """The main graph of a model, edited in place.

    ``constants`` maps the names of initializers, and of everything computed from them alone, to arrays.
    """

    def __init__(self, model: Any) -> None:
        self.onnx: Any = require("onnx", "onnx", "reading ONNX files")
        self.model, self.graph = model, model.graph
        arrays = self.onnx.numpy_helper.to_array
        self.constants: dict[str, NDArray[Any]] = {one.name: arrays(one) for one in self.graph.initializer}
        self.outputs = {one.name for one in self.graph.output}
        self._fold()

    @property
    def nodes(self) -> list[Any]:
        """The operators, in the order they run."""
        return list(self.graph.node)

    def producers(self) -> dict[str, Any]:
        """The operator behind each tensor."""
        return {name: node for node in self.graph.node for name in node.output}

    def consumers(self, name: str) -> list[Any]:
        """The operators that read a tensor."""
        return [node for node in self.graph.node if name in node.input]

    def attributes(self, node: Any) -> dict[str, Any]:
        """An operator's attributes as Python values."""
        return {one.name: self.onnx.helper.get_attribute_value(one) for one in node.attribute}

    def add_constant(self, name: str, value: NDArray[Any]) -> str:
        """A new initializer, its name made unique."""
        unique, number = name, 1
        while unique in self.constants:
            unique, number = f"{name}_{number}", number + 1
        self.constants[unique] = np.ascontiguousarray(value).reshape(np.shape(value))
        self.graph.initializer.append(self.onnx.numpy_helper.from_array(self.constants[unique], unique))
        return unique

    def add_node(self, before: Any, kind: str, inputs: Iterable[str], output: str, **attributes: Any) -> Any:
        """A new operator in front of another one."""
        node = self.onnx.helper.make_node(kind, list(inputs), [output], name=f"{output}_node", **attributes)
        self.graph.node.insert(self.nodes.index(before), node)
        return node

    def remove(self, nodes: Iterable[Any]) -> None:
        """Drop operators."""
        for node in nodes:
            self.graph.node.remove(node)

    def replace_input(self, node: Any, old: str, new: str) -> None:
        """Let an operator read another tensor."""
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new

    def clean(self) -> None:
        """Drop operators and initializers that nothing reads."""
        while True:
            read = {name for node in self.graph.node for name in node.input} | self.outputs
            idle = [node for node in self.graph.node if not read.intersection(node.output)]
            self.remove(idle)
            if not idle:
                break
        kept = [one for one in self.graph.initializer if one.name in read]
        inputs = [one for one in self.graph.input if one.name not in {c.name for c in self.graph.initializer}]
        for field, values in ((self.graph.initializer, kept), (self.graph.input, inputs)):
            del field[:]
            field.extend(values)
        del self.graph.value_info[:]

    def _fold(self) -> None:
        """Compute what depends on constants alone, but for rounding to grids."""
        reference: Any = require("onnx.reference", "onnx", "reading ONNX files")
        for node in self.nodes:
            known = [name in self.constants for name in node.input if name]
            if node.op_type not in _FOLDED or not all(known) or self.outputs.intersection(node.output):
                continue
            single = self.onnx.helper.make_graph(
                [node],
                "one",
                [],
                [self.onnx.helper.make_empty_tensor_value_info(name) for name in node.output],
                [self.onnx.numpy_helper.from_array(self.constants[name], name) for name in set(node.input) if name],
            )
            made = self.onnx.helper.make_model(single, opset_imports=self.model.opset_import)
            values = reference.ReferenceEvaluator(made).run(None, {})
            self.remove([node])
            for name, value in zip(node.output, values, strict=True):
                self.constants[name] = np.asarray(value)
                self.graph.initializer.append(self.onnx.numpy_helper.from_array(np.asarray(value), name))
