"""Regions of a traced graph that run under another mode (no_grad, autocast) become part of the graph (layer 1)."""

from __future__ import annotations

from typing import Any

from torch import fx

__all__ = ["inline_regions"]

#: How many arguments come before the region, by the operator's name.
_BEFORE = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}


def inline_regions(module: fx.GraphModule) -> None:
    """Replace every call of a region by the operators inside it, in place; regions inside regions too."""
    for node in list(module.graph.nodes):
        before = _BEFORE.get(getattr(node.target, "__name__", "")) if node.op == "call_function" else None
        if before is None or not isinstance(node.args[before], fx.Node):
            continue
        region = getattr(module, str(node.args[before].target))
        inline_regions(region)
        _inline(module.graph, node, region, list(node.args[before + 1 :]))
    module.graph.eliminate_dead_code(is_impure_node=lambda node: node.op != "get_attr")


def _inline(graph: fx.Graph, call: fx.Node, region: fx.GraphModule, arguments: list[Any]) -> None:
    inside: dict[fx.Node, Any] = dict(zip(region.graph.find_nodes(op="placeholder"), arguments, strict=True))
    result: Any = None
    with graph.inserting_before(call):
        for node in region.graph.nodes:
            if node.op == "output":
                result = fx.map_arg(node.args[0], inside.__getitem__)
            elif node.op != "placeholder":
                inside[node] = graph.node_copy(node, inside.__getitem__)
    for user in list(call.users):
        if isinstance(result, tuple | list) and getattr(user.target, "__name__", "") == "getitem":
            user.replace_all_uses_with(result[int(str(user.args[1]))])
            graph.erase_node(user)
    if not isinstance(result, tuple | list):
        call.replace_all_uses_with(result)
    graph.erase_node(call)
