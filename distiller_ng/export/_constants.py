"""Values of a traced graph that do not depend on the inputs (layer 4)."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["Constants"]


class Constants:
    """Computes what parameters and buffers alone determine, and adds new constants to the graph.

    Nothing is computed before it is asked for, and everything once.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self._values: dict[fx.Node, Any] = {}
        self._added: set[str] = set()

    def tensor(self, argument: Any) -> Tensor | None:
        """The tensor an operator's argument stands for; None where it depends on the inputs."""
        value = self._value(argument)
        return value if isinstance(value, Tensor) else None

    def add(self, name: str, value: Tensor, before: fx.Node) -> fx.Node:
        """A node for a new constant, ``name`` made unique."""
        plain = re.sub(r"\W+", "_", name).strip("_") or "constant"
        unique, number = plain, 1
        while unique in self._added or hasattr(self.module, unique):
            unique, number = f"{plain}_{number}", number + 1
        self._added.add(unique)
        self.module.register_buffer(unique, value.detach().contiguous().clone())
        with self.module.graph.inserting_before(before):
            node = self.module.graph.get_attr(unique)
        node.meta["val"] = value.detach()
        self._values[node] = value.detach()
        return node

    def _value(self, argument: Any) -> Any:
        if not isinstance(argument, fx.Node):
            return argument
        if argument not in self._values:
            self._values[argument] = self._computed(argument)
        return self._values[argument]

    def _computed(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return None if _is_written(node) else _attribute(self.module, str(node.target))
        if node.op != "call_function" or not _is_pure(node.target):
            return None
        inputs = [self._value(one) for one in node.all_input_nodes]
        if not inputs or any(value is None for value in inputs):
            return None
        known = dict(zip(node.all_input_nodes, inputs, strict=True))
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), known.__getitem__)
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]


def _is_pure(target: Any) -> bool:
    if isinstance(target, torch._ops.OpOverload):
        return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags
    return getattr(target, "__name__", "") == "getitem"


def _is_written(node: fx.Node) -> bool:
    """Whether an operator changes the tensor in place: a buffer that counts."""
    for user in node.users:
        if isinstance(user.target, torch._ops.OpOverload) and user.target._schema.is_mutable and user.args[0] is node:
            return True
    return False


def _attribute(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module.detach() if isinstance(module, Tensor) else None
