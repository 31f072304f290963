"""What every exporter starts from: the traced model with integer weights and every grid written down (layer 4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from distiller_ng.errors import ExportError, GraphError
from distiller_ng.export._constants import Constants
from distiller_ng.export._dequantize import DEQUANTIZE, FAKE_QUANTIZE
from distiller_ng.export._grids import Grids, bits_of, same_grid
from distiller_ng.export._naming import layer_name, place_of
from distiller_ng.export._tracing import trace_export_form
from distiller_ng.export._weights import CONVOLUTIONS, LINEAR, fold_norms, lookup_integers, store_integers
from distiller_ng.graph.inputs import ExampleInputs, ExampleInputsLike, as_example_inputs
from distiller_ng.graph.trace import exported_program, op_name
from distiller_ng.ops.linear_quantization import QuantizationParameters
from distiller_ng.quantization.exporters import LayerPrecision

__all__ = ["CLAMPS", "QuantizedGraph", "clean_", "drop_needless_", "layer_nodes", "quantized_graph"]

_aten = torch.ops.aten
_PRODUCTS = {_aten.matmul.default, _aten.bmm.default, _aten.mm.default}
_RECURRENT = {_aten.lstm.input, _aten.gru.input, _aten.rnn_tanh.input, _aten.rnn_relu.input}
#: Operators that a grid's ends can do.
CLAMPS = {
    _aten.relu.default,
    _aten.hardtanh.default,
    _aten.clamp.default,
    _aten.relu6.default,
    _aten.clamp_min.default,
}
_LARGEST = 3.0e38


@dataclass(frozen=True)
class QuantizedGraph:
    """A graph module of ATen operators, ``distiller_ng::fake_quantize`` (activations) and ``distiller_ng::dequantize``
    (weights), callable like the model it was made from.

    ``inputs`` are the example inputs it was traced with (a batch of one was doubled), ``dynamic_shapes`` what
    ``torch.export`` needs to keep the batch free (None: it is fixed). ``layers``: every layer with weights and what it
    computes with; ``notes``: what could not be done exactly. ``added_grids``: ranges of activations that got their grid
    from data at export, by name. ``constants`` and ``grids`` answer for its nodes.
    """

    module: fx.GraphModule
    inputs: ExampleInputs
    dynamic_shapes: Any
    layers: tuple[LayerPrecision, ...]
    notes: tuple[str, ...]
    added_grids: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @cached_property
    def constants(self) -> Constants:
        """Values of the graph that depend on no input."""
        return Constants(self.module)

    @cached_property
    def grids(self) -> Grids:
        """The grid that each node's values lie on; after changing nodes ask :meth:`renewed`."""
        return Grids(self.constants)

    def renewed(self) -> QuantizedGraph:
        """The same module without what nothing uses any more, looked at anew."""
        clean_(self.module)
        return dataclasses.replace(self)

    def program(self) -> torch.export.ExportedProgram:
        """The graph as it is now, exported again. Raises :class:`ExportError`."""
        try:
            return exported_program(self.module, self.inputs, dynamic_shapes=self.dynamic_shapes)
        except GraphError as error:
            raise ExportError(str(error)) from error


def quantized_graph(
    model: nn.Module, example_inputs: ExampleInputsLike, *, dynamic_batch: bool = True
) -> QuantizedGraph:
    """The graph of a quantized model, ready to be written for a runtime; ``model`` is not changed.

    - weights (and quantized tables) are constants of int8, uint8, ... and ``dequantize(w, scale, zero_point, axis)``;
    - batch norms behind convolutions are folded: factors into the scales of each channel, signs into the integers,
      shifts into the bias;
    - one ``fake_quantize`` for each activation grid: a tensor that already lies on the grid (behind a ReLU, a max
      pooling, a reshape) is not rounded again, and a ReLU that the grid's lower end does is gone.

    It computes what the model computes in eval mode, up to rounding of the accumulators. A floating point model comes
    out as it is, batch norms folded. Raises :class:`ExportError` when the model cannot be traced.
    """
    inputs = as_example_inputs(example_inputs)
    try:
        traced = trace_export_form(model, inputs, dynamic_batch=dynamic_batch)
    except GraphError as error:
        raise ExportError(str(error)) from error
    constants = Constants(traced.module)
    grids = Grids(constants)
    store_integers(constants, grids)
    notes = [*traced.notes, *fold_norms(constants, grids)]
    lookup_integers(constants, grids)
    drop_needless_(traced.module, constants)
    clean_(traced.module)
    graph = QuantizedGraph(traced.module, traced.inputs, traced.dynamic_shapes, (), tuple(notes))
    return dataclasses.replace(graph, layers=tuple(layer for _, layer in layer_nodes(graph)))


def layer_nodes(graph: QuantizedGraph) -> list[tuple[fx.Node, LayerPrecision]]:
    """Every operator with a weight or two factors, and what it computes with."""
    is_quantized = any(node.target in (FAKE_QUANTIZE, DEQUANTIZE) for node in graph.module.graph.nodes)
    found = []
    for node in graph.module.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in CONVOLUTIONS | LINEAR | _PRODUCTS:
            found.append((node, _precision(node, graph.grids)))
        elif node.target in _RECURRENT:
            reason = "recurrent layers are quantized as DistillerLSTM only: see convert_model_to_distiller_lstm"
            found.append((node, LayerPrecision(layer_name(node), op_name(node), None, None, reason)))
        elif node.target is _aten.embedding.default:
            found.append((node, _table(node, graph.grids)))
    if is_quantized:
        return found
    return [(node, dataclasses.replace(layer, reason="the model is not quantized")) for node, layer in found]


def drop_needless_(module: fx.GraphModule, constants: Constants) -> None:
    """Rounding of tensors that lie on the grid already, and clamps that the grid does."""
    for node in list(module.graph.find_nodes(op="call_function", target=FAKE_QUANTIZE)):
        grids = Grids(constants)  # anew: what was found before may be gone
        own, earlier = grids.written(node), grids.of(node.args[0])
        if own is not None and earlier is not None and same_grid(own, earlier):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
            continue
        source = node.args[0]
        if own is None or own.axis is not None or not isinstance(source, fx.Node):
            continue
        if source.target in CLAMPS and len(source.users) == 1:
            qmin, qmax = _within(own, *_limits_of(source))
            if qmin < qmax:
                node.args = (source.args[0], *node.args[1:4], qmin, qmax)
                module.graph.erase_node(source)


def _within(grid: QuantizationParameters, low: float | None, high: float | None) -> tuple[int, int]:
    """The range of the grid after clamping to ``low .. high``: rounding keeps the order, so this is the same."""
    step, zero = float(grid.scale), int(grid.zero_point)
    ends = [None if end is None else _rounded(end, step) + zero for end in (low, high)]
    lowest = grid.qmin if ends[0] is None else min(max(grid.qmin, ends[0]), grid.qmax)
    return lowest, grid.qmax if ends[1] is None else max(min(grid.qmax, ends[1]), grid.qmin)


def _rounded(value: float, step: float) -> int:
    """As float32 rounds it, in which activations are computed."""
    return int(torch.round(torch.tensor(value, dtype=torch.float32) / torch.tensor(step, dtype=torch.float32)))


def _limits_of(clamp: fx.Node) -> tuple[float | None, float | None]:
    if clamp.target is _aten.relu.default:
        return 0.0, None
    if clamp.target is _aten.relu6.default:
        return 0.0, 6.0
    ends = [*clamp.args[1:], None, None][:2]
    if clamp.target is _aten.hardtanh.default:
        ends = [-1.0 if ends[0] is None else ends[0], 1.0 if ends[1] is None else ends[1]]
    low, high = (None if end is None or abs(float(end)) > _LARGEST else float(end) for end in ends)  # type: ignore[arg-type]
    return low, high


def clean_(module: fx.GraphModule) -> None:
    """Drop nodes and constants that nothing uses."""
    module.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    used = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    for name in [name for name, _ in [*module.named_parameters(), *module.named_buffers()] if name not in used]:
        owner, _, leaf = name.rpartition(".")
        delattr(module.get_submodule(owner), leaf)
    module.delete_all_unused_submodules()
    module.graph.lint()
    module.recompile()


def _precision(node: fx.Node, grids: Grids) -> LayerPrecision:
    values, weight = grids.of(node.args[0]), grids.of(node.args[1])
    second = "weight" if node.target not in _PRODUCTS else "second factor"
    reason = ""
    for what, argument, grid in (("input", node.args[0], values), (second, node.args[1], weight)):
        if grid is None:
            made = isinstance(argument, fx.Node) and argument.op == "call_function" and second != what
            origin = f" (made by {place_of(argument)})" if made and isinstance(argument, fx.Node) else ""
            reason = reason or f"its {what} is in floating point{origin}"
        elif bits_of(grid) > 8:
            reason = reason or f"its {what} has {bits_of(grid)} bits, and integer kernels have 8"
    bits = [None if grid is None else bits_of(grid) for grid in (weight, values)]
    return LayerPrecision(layer_name(node), op_name(node), bits[0], bits[1], reason)


def _table(node: fx.Node, grids: Grids) -> LayerPrecision:
    reader = next((user for user in node.users if user.target is DEQUANTIZE), None)
    grid = None if reader is None else grids.written(reader)
    reason = "" if grid is not None else "its table is in floating point"
    bits = None if grid is None else bits_of(grid)
    return LayerPrecision(layer_name(node), "embedding", bits, None, reason)
