"""Grids for activations that training left in floating point, observed on data when a model is exported (layer 4).

Quantization-aware training in Distiller's way rounds what ReLUs return. Runtimes whose integer convolutions round their
output need more: a grid between a convolution and the addition behind it, behind an average pooling. Those are found
as in post-training quantization: https://arxiv.org/abs/1712.05877, section 3.1, with the smallest and largest value.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from distiller_ng.errors import CalibrationError, ExportError
from distiller_ng.export._dequantize import FAKE_QUANTIZE
from distiller_ng.export._missing_grids import MissingGrids
from distiller_ng.export._naming import layer_name
from distiller_ng.export._tracing import fixed_size
from distiller_ng.export._weights import CONVOLUTIONS, LINEAR
from distiller_ng.export.quantized_graph import QuantizedGraph, clean_, drop_needless_, layer_nodes
from distiller_ng.export.verification import agreement_of
from distiller_ng.graph._failures import MODEL_FAILURES
from distiller_ng.graph.inputs import flat_tensors
from distiller_ng.graph.trace import op_name
from distiller_ng.names import unwrap
from distiller_ng.ops.linear_quantization import LinearQuantMode, QuantizationParameters
from distiller_ng.quantization.calibration_batches import CalibrationBatches, ModelInputs
from distiller_ng.quantization.exporters import Agreement
from distiller_ng.quantization.range_linear_output import OutputGrid

__all__ = ["with_missing_grids"]

_BATCH = 64  # samples that run together when one tensor holds all of them
_COMPARED = 256  # samples whose outputs are kept
_SHOWN = 6


def with_missing_grids(
    graph: QuantizedGraph,
    model: nn.Module,
    data: Any = None,
    *,
    conv_outputs: bool = True,
    tolerance: float | None = None,
) -> QuantizedGraph:
    """The graph with a uint8 grid for each activation whose lack keeps a quantized layer in floating point.

    ``data``: one tensor of samples, a ``DataLoader`` or a list of batches; it runs through the graph once, and each
    grid spans the smallest to the largest value (asymmetric; -1 .. 3 gives steps of 4/255 and the zero point 64).
    Without data the graph comes back with a note that says how many layers would gain. ``conv_outputs``: round what
    convolutions return, too. ``tolerance``: the largest accepted noise of the outputs (see :class:`OnnxOptions`).

    ``added_grids`` of the result and a note tell the ranges and what they do to the outputs. The graph is changed in
    place. Raises :class:`CalibrationError` for data that is empty, not finite or of another shape than the example,
    :class:`ArgumentError` for what is no data, :class:`ExportError` above the tolerance.
    """
    missing = MissingGrids(graph, conv_outputs=conv_outputs)
    if data is None:
        if not missing.layers or any(isinstance(module, OutputGrid) for module in unwrap(model).modules()):
            return graph  # post-training quantizers looked at every activation: what they left is meant so
        note = (
            f"{_counted(len(missing.layers), 'layer')} with integer weights would compute with integers if "
            "activations around them were quantized: calibration_data=images (or batches; in a "
            "shell: distiller-ng quantize --loader) adds 8-bit grids there"
        )
        return dataclasses.replace(graph, notes=(*graph.notes, note))
    batches = [_leaves(graph, batch, number) for number, batch in enumerate(_batches(graph, model, data))]
    if not missing.places:
        return dataclasses.replace(graph, notes=(*graph.notes, "calibration_data: no activation lacked a grid"))
    observer = _Observer(graph.module, missing.places)
    expected = [observer.outputs(batch) for batch in batches]
    added = {name: observer.range_of(place, name) for name, place in _named(missing.places).items()}
    readers = [missing.readers(place) for place in missing.places]
    for place, limits, own in zip(missing.places, added.values(), readers, strict=True):
        _round(graph, place, own, limits)
    drop_needless_(graph.module, graph.constants)
    clean_(graph.module)
    after = _Observer(graph.module, ())
    kept = [outputs for outputs in expected if outputs]
    agreement = agreement_of(_stacked(kept), _stacked([after.outputs(one) for one in batches[: len(kept)]]))
    _check(agreement, tolerance)
    notes = (*graph.notes, _told(added, agreement))
    graph = dataclasses.replace(graph, notes=notes, added_grids=added)
    return dataclasses.replace(graph, layers=tuple(layer for _, layer in layer_nodes(graph)))


class _Observer(fx.Interpreter):
    """Runs a graph and remembers the smallest and the largest value of some of its tensors."""

    def __init__(self, module: fx.GraphModule, places: Sequence[fx.Node]) -> None:
        super().__init__(module)
        self._ranges = dict.fromkeys(places, (math.inf, -math.inf))
        self._kept = 0

    def run_node(self, n: fx.Node) -> Any:
        """Run one operator and look at what it returns."""
        result = super().run_node(n)
        if n in self._ranges:
            low, high = self._ranges[n]
            smallest, largest = (float(one) for one in torch.aminmax(result))
            # Not min() and max(): they lose NaN.
            bad = math.isnan(smallest) or math.isnan(largest)
            self._ranges[n] = (math.nan, math.nan) if bad else (min(low, smallest), max(high, largest))
        return result

    def outputs(self, leaves: Sequence[Any]) -> list[Tensor]:
        """The graph's outputs on one batch; none any more once enough samples were kept."""
        try:
            with torch.no_grad():
                found = flat_tensors(self.run(*leaves, enable_io_processing=False))
        except MODEL_FAILURES as error:
            raise CalibrationError(f"calibration_data: the model does not run on it: {error}") from error
        enough = self._kept >= _COMPARED
        self._kept += max([len(one) for one in leaves if isinstance(one, Tensor) and one.dim()], default=1)
        return [] if enough else found

    def range_of(self, place: fx.Node, name: str) -> tuple[float, float]:
        """Raises :class:`CalibrationError` for values that are not finite."""
        low, high = self._ranges[place]
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CalibrationError(
                f"calibration_data: {name!r} became {low} .. {high}, and no grid can be made of that"
            )
        return low, high


def _batches(graph: QuantizedGraph, model: nn.Module, data: Any) -> CalibrationBatches:
    if isinstance(data, Tensor):
        fixed = next((fixed_size(one.shape[0]) for one in _expected(graph).values() if one.dim()), None)
        parts = list(torch.split(data, fixed or _BATCH)) if data.dim() and len(data) else []
        if fixed is not None and len(parts) > 1:
            parts[-1] = data[-fixed:]  # begins earlier: the last batch must be whole
        data = parts
    return CalibrationBatches.of([data] if isinstance(data, Mapping) else data, model)


def _leaves(graph: QuantizedGraph, batch: ModelInputs, number: int) -> list[Any]:
    """The graph's inputs; raises :class:`CalibrationError` for others than those it was traced with."""
    where, wanted = f"batch {number} of calibration_data", graph.inputs
    given = (len(batch.args), sorted(batch.kwargs))
    if given != (len(wanted.args), sorted(wanted.kwargs)):
        raise CalibrationError(
            f"{where} calls the model with {_call(*given)}, the example inputs with "
            f"{_call(len(wanted.args), sorted(wanted.kwargs))}. Batches are tensors, (inputs..., target) or mappings"
        )
    leaves, spec = pytree.tree_flatten((batch.args, {key: batch.kwargs[key] for key in wanted.kwargs}))
    expected = _expected(graph)
    if spec != pytree.tree_flatten((wanted.args, dict(wanted.kwargs)))[1]:
        raise CalibrationError(f"{where} nests its inputs in another way than the example inputs")
    for node, leaf in zip(graph.module.graph.find_nodes(op="placeholder"), leaves, strict=True):
        if node in expected:
            _check_input(where, node, leaf, expected[node])
    return leaves


def _check_input(where: str, node: fx.Node, leaf: Any, expected: Tensor) -> None:
    sizes = [fixed_size(size) for size in expected.shape]
    shape = list(leaf.shape) if isinstance(leaf, Tensor) else None
    fits = shape is not None and len(shape) == len(sizes)
    if not fits or not all(want in (None, size) for want, size in zip(sizes, shape or [], strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in sizes)
        got = type(leaf).__name__ if shape is None else f"shape {tuple(shape)}"
        raise CalibrationError(f"{where}: input {node.name!r} has {got}, and the model was traced with ({wanted})")
    if leaf.dtype != expected.dtype:
        raise CalibrationError(
            f"{where}: input {node.name!r} has {leaf.dtype}, the model was traced with {expected.dtype}"
        )
    if not leaf.numel():
        raise CalibrationError(f"{where}: input {node.name!r} holds no samples, its shape is {tuple(leaf.shape)}")


def _expected(graph: QuantizedGraph) -> dict[fx.Node, Tensor]:
    nodes = graph.module.graph.find_nodes(op="placeholder")
    return {node: node.meta["val"] for node in nodes if isinstance(node.meta.get("val"), Tensor)}


def _call(args: int, kwargs: Sequence[str]) -> str:
    return f"{_counted(args, 'positional argument')}" + (f" and {', '.join(kwargs)}" if kwargs else "")


def _round(graph: QuantizedGraph, place: fx.Node, readers: Sequence[fx.Node], limits: tuple[float, float]) -> None:
    """Put a rounding between a tensor and its readers."""
    after = place.next
    while after.op == "placeholder":
        after = after.next
    grid = QuantizationParameters.of_range(*limits, 8, LinearQuantMode.ASYMMETRIC_UNSIGNED)
    values = {"scale": grid.scale.float().reshape(()), "zero_point": grid.zero_point.reshape(())}
    device = place.meta["val"].device
    parts = [graph.constants.add(f"{place.name}_{key}", value.to(device), after) for key, value in values.items()]
    with graph.module.graph.inserting_before(after):
        arguments = (place, *parts, None, grid.qmin, grid.qmax)
        node = graph.module.graph.call_function(FAKE_QUANTIZE, arguments)
    node.meta.update({key: place.meta[key] for key in ("val", "nn_module_stack", "stack_trace") if key in place.meta})
    for reader in readers:
        reader.replace_input_with(place, node)


def _named(places: Sequence[fx.Node]) -> dict[str, fx.Node]:
    """Names for reports: ``layer1.0.conv2``, ``layer1.0.add`` for what a forward computes itself, ``x``: an input."""
    found: dict[str, fx.Node] = {}
    for place in places:
        name, operator = layer_name(place), op_name(place) if place.op == "call_function" else ""
        if operator and place.target not in CONVOLUTIONS | LINEAR and name != place.name:
            name = name if name.rpartition(".")[2] == operator else f"{name}.{operator}"
        unique, number = name, 1
        while unique in found:
            unique, number = f"{name}_{number}", number + 1
        found[unique] = place
    return found


def _stacked(rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Outputs of several batches one behind another; only the first batch's where their shapes differ."""
    columns = list(zip(*rows, strict=True))
    if columns and all(one.dim() and one.shape[1:] == column[0].shape[1:] for column in columns for one in column):
        return [torch.cat(column) for column in columns]
    return list(rows[0]) if rows else []


def _check(agreement: Agreement, tolerance: float | None) -> None:
    if tolerance is not None and agreement.noise > tolerance:
        raise ExportError(
            f"the grids that calibration_data adds change the outputs by a noise of {agreement.noise:.3g}, allowed "
            f"{tolerance:g} ({agreement}). Give more data like that of training, leave calibration_data out (layers "
            "without grids then compute in floating point), or raise tolerance"
        )


def _told(added: Mapping[str, tuple[float, float]], agreement: Agreement) -> str:
    shown = [f"{name} ({low:.3g} .. {high:.3g})" for name, (low, high) in list(added.items())[:_SHOWN]]
    more = f", and {len(added) - _SHOWN} more" if len(added) > _SHOWN else ""
    return (
        f"calibration_data added {_counted(len(added), 'grid')} of 8 bits: {', '.join(shown)}{more}; with them against "
        f"the simulation: {agreement}"
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
