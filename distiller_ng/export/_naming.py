"""Names of the user's modules for the operators of a traced graph (layer 4)."""

from __future__ import annotations

from torch import fx

from distiller_ng.graph.trace import op_name
from distiller_ng.names import canonical_name

__all__ = ["layer_name", "place_of"]

#: What wrappers of ours add to the path of the module they hold.
_OURS = frozenset({"wrapped_module", "_traced_model", "fake_q", "inputs_quant", "input_quant", "output_quant"})


def layer_name(node: fx.Node) -> str:
    """The module an operator ran in, as the user knows it: ``layer1.0.conv1``; the operator itself outside of any."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [str(path) for path, _ in stack.values()]
    if not names:
        return node.name
    return ".".join(part for part in canonical_name(names[-1]).split(".") if part not in _OURS) or node.name


def place_of(node: fx.Node) -> str:
    """``'add' in module 'layer1.0'``: for messages."""
    name = layer_name(node)
    where = "the model's own forward" if name == node.name else f"module {name!r}"
    return f"{op_name(node)!r} in {where}"
