"""Removing pruned filters and channels from a model: Distiller's functions, on any traced model (layer 2)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from torch import nn
from torch.optim import Optimizer

from distiller_ng.core.masker import ParameterMasker
from distiller_ng.errors import ArgumentError
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.graph.inputs import ExampleInputs, ExampleInputsLike, as_example_inputs
from distiller_ng.names import unwrap
from distiller_ng.ops.dummy_inputs import get_dummy_input
from distiller_ng.ops.modules import model_device
from distiller_ng.thinning.apply import ThinningReport, apply_plan
from distiller_ng.thinning.conflicts import first_wins
from distiller_ng.thinning.plan import ThinningPlan
from distiller_ng.thinning.zeros import Structures, Wish, silent_channels, wishes

__all__ = [
    "Conflict",
    "contract_model",
    "example_inputs_for",
    "optimizers_of",
    "plan_thinning",
    "remove_channels",
    "remove_filters",
]

logger = logging.getLogger(__name__)

#: ``group``: coupled layers lose the channels they agree on. ``first``: Distiller's lossy rule.
Conflict: TypeAlias = Literal["group", "first"]
Masks: TypeAlias = Mapping[str, ParameterMasker]
Optimizers: TypeAlias = Optimizer | Sequence[Optimizer] | None


def remove_filters(
    model: nn.Module,
    zeros_mask_dict: Masks | None = None,
    arch: str | None = None,
    dataset: str | None = None,
    optimizer: Optimizers = None,
    *,
    example_inputs: ExampleInputsLike | None = None,
    conflict: Conflict = "group",
    round_to: int = 1,
    verify: bool = True,
) -> ThinningReport:
    """Physically remove every filter (output channel, row of a Linear layer, hidden unit) whose weights are all zero.

    Everything coupled goes with it: biases, norms, the next layers' inputs, gradients, masks and the state of
    ``optimizer`` (one or several). The model is changed in place and parameters stay the same objects. ``arch`` is
    ignored; ``dataset`` gives the input's shape when ``example_inputs`` is not given. ``round_to``: remaining widths
    are multiples of it where the zeros allow (some zero filters stay). See :func:`plan_thinning` for ``conflict`` and
    :func:`~distiller_ng.thinning.apply.apply_plan` for ``verify``.

    Raises :class:`GraphError` (a ``ValueError``) where a layer would be left empty or the result does not agree with
    the model it came from; then nothing was changed. Nothing to remove is no error: it is logged.

    >>> conv1 of 16 filters, 3 of them zero: afterwards conv1.out_channels == 13 == the next layer's in_channels
    """
    options = {"conflict": conflict, "round_to": round_to}
    return _remove(model, zeros_mask_dict, dataset, optimizer, example_inputs, ("filters",), options, verify)


def remove_channels(
    model: nn.Module,
    zeros_mask_dict: Masks | None = None,
    arch: str | None = None,
    dataset: str | None = None,
    optimizer: Optimizers = None,
    *,
    example_inputs: ExampleInputsLike | None = None,
    conflict: Conflict = "group",
    round_to: int = 1,
    verify: bool = True,
) -> ThinningReport:
    """Physically remove every input channel that a layer multiplies by zeros only, with the filters that made it.

    Arguments and errors as for :func:`remove_filters`.
    """
    options = {"conflict": conflict, "round_to": round_to}
    return _remove(model, zeros_mask_dict, dataset, optimizer, example_inputs, ("channels",), options, verify)


def contract_model(
    model: nn.Module,
    zeros_mask_dict: Masks | None = None,
    arch: str | None = None,
    dataset: str | None = None,
    optimizer: Optimizers = None,
    *,
    example_inputs: ExampleInputsLike | None = None,
    conflict: Conflict = "group",
    round_to: int = 1,
    verify: bool = True,
) -> ThinningReport:
    """:func:`remove_filters`, then :func:`remove_channels`."""
    options = {"conflict": conflict, "round_to": round_to}
    steps: tuple[Structures, ...] = ("filters", "channels")
    return _remove(model, zeros_mask_dict, dataset, optimizer, example_inputs, steps, options, verify)


def plan_thinning(
    model: nn.Module,
    example_inputs: ExampleInputsLike,
    masks: Masks | None = None,
    *,
    structures: Structures = "filters",
    conflict: Conflict = "group",
    round_to: int = 1,
    graph: DependencyGraph | None = None,
) -> ThinningPlan:
    """What :func:`remove_filters` or :func:`remove_channels` would remove; nothing is changed.

    ``conflict``, for coupled layers (their outputs are added, so their channels are the same) with different zeros:
    "group" removes what all of them that have zeros agree on and notes the rest; "first" is Distiller's rule, by which
    each loses its own filters and the layers behind lose those of the first: the same sizes, but another function.

    Raises :class:`GraphError` where the model cannot be traced or a layer would be left empty.
    """
    if conflict not in ("group", "first"):
        raise ArgumentError(f"conflict is 'group' or 'first', got {conflict!r}", argument=("conflict",))
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise ArgumentError(f"round_to is a whole number from 1, got {round_to!r}", argument=("round_to",))
    graph = graph or DependencyGraph.trace(model, example_inputs)
    wish = wishes(graph, masks, structures)
    if conflict == "first" and structures == "filters":
        return first_wins(graph, wish)
    if conflict == "first":
        wish.channels = _of_the_first(graph, wish)
    channels = _rounded(graph, wish.channels, round_to)
    silent = silent_channels(graph, masks)
    return ThinningPlan.for_channels(graph, channels, notes=wish.notes, asked_by=wish.asked_by, silent=silent)


def example_inputs_for(
    model: nn.Module, example_inputs: ExampleInputsLike | None, dataset: str | None
) -> ExampleInputs:
    """The example inputs a user gave, or zeros of the shape of ``dataset``, or of ``model.input_shape``.

    Raises :class:`ArgumentError` where nothing says what the model is called with.
    """
    if example_inputs is not None:
        return as_example_inputs(example_inputs)
    shape = getattr(unwrap(model), "input_shape", None)
    if dataset is None and shape is None:
        raise ArgumentError(
            "thinning follows the model's data flow, so it must know what the model is called with: give "
            "example_inputs=(x,), or dataset= one of imagenet, cifar10, mnist",
            argument=("example_inputs",),
        )
    return as_example_inputs(get_dummy_input(dataset, model_device(model), shape))


def optimizers_of(optimizer: Any) -> list[Optimizer]:
    """One optimizer, several or none as a list; raises :class:`ArgumentError` for anything else."""
    several = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    found = [one for one in several if one is not None]
    for one in found:
        if not isinstance(one, Optimizer):
            raise ArgumentError(
                f"optimizer is a torch optimizer whose state is to be cut, or a list of them; got {one!r}",
                argument=("optimizer",),
            )
    return found


def _remove(
    model: nn.Module,
    masks: Masks | None,
    dataset: str | None,
    optimizer: Optimizers,
    example_inputs: ExampleInputsLike | None,
    steps: Sequence[Structures],
    options: Mapping[str, Any],
    verify: bool,
) -> ThinningReport:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module, got {type(model).__name__}", argument=("model",))
    optimizers = optimizers_of(optimizer)
    inputs = example_inputs_for(model, example_inputs, dataset)
    report = ThinningReport()
    for structures in steps:
        plan = plan_thinning(model, inputs, masks, structures=structures, **options)
        for note in plan.notes:
            logger.warning("thinning: %s", note)
        if not plan:
            logger.error("no zero %s to remove; the model is as it was", structures)
            continue
        done = apply_plan(model, plan, inputs, optimizers=optimizers, masks=masks, verify=verify)
        report = done if not report else _joined(report, done)
    return report


def _joined(first: ThinningReport, second: ThinningReport) -> ThinningReport:
    return ThinningReport(
        (first.parameters[0], second.parameters[1]),
        max(first.error, second.error),
        max(first.jump, second.jump),
        {**first.integers, **second.integers},
        (*first.folded, *second.folded),
        (*first.notes, *second.notes),
    )


def _of_the_first(graph: DependencyGraph, wish: Wish) -> set[int]:
    """Channels the first of several coupled layers asks for."""
    decided: set[int] = set()
    chosen: set[int] = set()
    for key, zero in wish.zeros.items():
        numbers = graph.axes[key]
        if decided & set(numbers.tolist()):
            continue
        decided |= set(numbers.tolist())
        chosen |= set(numbers[zero].tolist())
    return chosen


def _rounded(graph: DependencyGraph, channels: set[int], round_to: int) -> set[int]:
    """Fewer channels, so that the widths that stay are multiples of ``round_to``."""
    if round_to == 1 or not channels:
        return channels
    left = set(channels)
    for (tensor, dim), numbers in graph.axes.items():
        if not graph.feeds(tensor, dim) or graph.dims_of(tensor) < 2:
            continue
        mine = [c for c in dict.fromkeys(numbers.tolist()) if c in left]
        sizes = {c: int((numbers == c).sum()) for c in mine}
        kept = numbers.size - sum(sizes.values())
        while mine and kept % round_to:
            kept += sizes[mine[-1]]
            left.discard(mine.pop())
    return left
