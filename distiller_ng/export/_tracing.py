"""The traced export form of a model, with a batch of any size where the model allows it (layer 4)."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from distiller_ng.errors import GraphError
from distiller_ng.graph._inlining import inline_regions
from distiller_ng.graph.inputs import ExampleInputs, batch_size, flat_tensors
from distiller_ng.graph.trace import exported_program
from distiller_ng.names import unwrap
from distiller_ng.quantization.exporting import exporting

__all__ = ["TracedForm", "fixed_size", "shapes_of", "trace_export_form"]

logger = logging.getLogger(__name__)
_WHY_FIXED = "the model does not run, or not alike, with others"


@dataclass(frozen=True, slots=True)
class TracedForm:
    """A functional graph module of ATen operators, called like the model.

    ``inputs`` are those it was traced with; ``dynamic_shapes`` is what ``torch.export`` was told, to tell it again.
    """

    module: fx.GraphModule
    inputs: ExampleInputs
    dynamic_shapes: Any
    notes: tuple[str, ...]


def trace_export_form(model: nn.Module, inputs: ExampleInputs, *, dynamic_batch: bool = True) -> TracedForm:
    """Trace ``model`` in its export form; nothing on it stays changed.

    With ``dynamic_batch`` the first dimension of every input that has as many samples as the first one may vary
    afterwards. Where the model does not allow that, the graph has the size of the example, and a note says so.
    Raises :class:`GraphError` when the model cannot be traced.
    """
    plain = unwrap(model)
    with torch.no_grad(), exporting(model):
        if not dynamic_batch or batch_size(inputs) is None:
            return TracedForm(_functional(exported_program(plain, inputs)), inputs, None, ())
        several = _at_least_two(inputs)
        for candidate, shapes in ((several, shapes_of(several)), (several, _some_shapes(several)), (inputs, None)):
            try:
                program = exported_program(plain, candidate, dynamic_shapes=shapes)
            except GraphError as error:
                if shapes is None:
                    raise
                logger.info("not every size can vary: %s", error)
            else:
                if not _varies(program) and batch_size(candidate) != batch_size(inputs):
                    continue  # the doubled batch was for nothing: the graph takes what the example is
                notes = () if _varies(program) else (f"the inputs' sizes are fixed, {_sizes(candidate)}: {_WHY_FIXED}",)
                return TracedForm(_functional(program), candidate, shapes if not notes else None, notes)
    raise GraphError("the model cannot be traced")  # the last candidate has raised or returned


def _sizes(inputs: ExampleInputs) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in _tensors(inputs))


def _varies(program: torch.export.ExportedProgram) -> bool:
    """Whether any size of an input may be another one."""
    inputs = [
        node.meta["val"]
        for node in program.graph.find_nodes(op="placeholder")
        if node.name in program.graph_signature.user_inputs and isinstance(node.meta.get("val"), Tensor)
    ]
    return any(fixed_size(size) is None for value in inputs for size in value.shape)


def fixed_size(size: Any) -> int | None:
    """A size of a traced tensor as a number; None where it may vary."""
    if isinstance(size, int):
        return size
    known = size.node.maybe_as_int()
    return None if known is None else int(known)


def _some_shapes(inputs: ExampleInputs) -> Any:
    """Of the first two sizes of each input those that the model leaves free: sequences may come first."""
    shapes: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for tensor in _tensors(inputs):
        shapes[tensor] = {
            place: torch.export.Dim.AUTO for place in range(min(tensor.dim(), 2)) if tensor.shape[place] > 1
        }
    return shapes


def shapes_of(inputs: ExampleInputs) -> Any:
    """``torch.export``'s dynamic shapes: the first dimension of everything that is as long as the batch."""
    batch = torch.export.Dim("batch", min=1)
    shapes: Any = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    for tensor in _tensors(inputs):
        if tensor.dim() and tensor.shape[0] == batch_size(inputs):
            shapes[tensor] = {0: batch}
    return shapes


def _tensors(inputs: ExampleInputs) -> list[Tensor]:
    return flat_tensors((inputs.args, dict(inputs.kwargs)))


def _at_least_two(inputs: ExampleInputs) -> ExampleInputs:
    """A batch of one would be taken for a constant: each sample twice then."""
    if batch_size(inputs) != 1:
        return inputs

    def doubled(value: Any) -> Any:
        return torch.cat([value, value]) if isinstance(value, Tensor) and value.dim() and value.shape[0] == 1 else value

    return ExampleInputs(pytree.tree_map(doubled, inputs.args), pytree.tree_map(doubled, dict(inputs.kwargs)))


def _functional(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """Without in-place operators; convolutions, linear layers and the like stay whole."""
    inline_regions(program.graph_module)
    with warnings.catch_warnings():  # what torch deprecates in its own calls
        warnings.simplefilter("ignore", FutureWarning)
        module = cast(fx.GraphModule, program.run_decompositions({}).module())
    for node in module.graph.find_nodes(op="call_module"):
        if not node.users:  # checks of the inputs' shapes
            module.graph.erase_node(node)
    _forget_unused(module)
    return module


def _forget_unused(module: fx.GraphModule) -> None:
    module.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    module.delete_all_unused_submodules()
    module.recompile()
