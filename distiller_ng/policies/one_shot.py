"""Structured pruning in one call: choose, remove, compare (layer 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from torch import nn
from torch.optim import Optimizer

from distiller_ng.core.context import StepContext
from distiller_ng.core.masks import MaskRegistry
from distiller_ng.core.position import TrainPosition
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError
from distiller_ng.graph.inputs import ExampleInputsLike
from distiller_ng.graph.provider import ModelGraph
from distiller_ng.names import ALL_PRUNABLE, ParameterIndex
from distiller_ng.pruning.base import Scope
from distiller_ng.pruning.group_pruner import GroupPruner
from distiller_ng.pruning.importance.base import ImportanceLike
from distiller_ng.thinning.apply import ThinningReport, apply_plan
from distiller_ng.thinning.functions import optimizers_of, plan_thinning
from distiller_ng.thinning.plan import ThinningPlan

__all__ = ["Calibrate", "plan_structures", "prune_structures"]

#: Runs the model on data while an importance looks: forward, and backward (leaving gradients) where it looks at those.
Calibrate: TypeAlias = Callable[[nn.Module], object]


def plan_structures(
    model: nn.Module,
    example_inputs: ExampleInputsLike,
    *,
    target: Mapping[str, float] | None = None,
    sparsity: float | None = None,
    importance: ImportanceLike = "l1",
    weights: str | Sequence[str] = ALL_PRUNABLE,
    scope: Scope = "global",
    max_layer_sparsity: float | Mapping[str, float] | None = None,
    round_to: int = 1,
    calibrate: Calibrate | None = None,
    graph: ModelGraph | None = None,
) -> ThinningPlan:
    """What :func:`prune_structures` would remove; nothing is changed. ``graph`` reuses one that is traced already."""
    if calibrate is not None and not callable(calibrate):
        message = f"calibrate is a function that runs the model on some batches, got {calibrate!r}"
        raise ArgumentError(message, argument=("calibrate",))
    pruner = GroupPruner(
        "one_shot",
        importance=importance,
        weights=weights,
        sparsity=sparsity,
        target=target,
        scope=scope,
        max_layer_sparsity=max_layer_sparsity,
        round_to=round_to,
    )
    parameters = ParameterIndex(model)
    provider = graph or ModelGraph(model, example_inputs)
    masks = MaskRegistry(parameters)
    context = StepContext(
        model=model,
        parameters=parameters,
        masks=masks,
        window=PolicyWindow.from_range(0, 1, 1),
        position=TrainPosition(0),
        graph=provider,
    )
    pruner.bind(parameters)
    if calibrate is not None:
        with pruner.observing(model, example_inputs):
            calibrate(model)
    for group in pruner.groups(parameters):
        for name, mask in pruner.compute_masks(group, context).items():
            masks.set(name, mask, owner=pruner.owner, binary=True)
    return plan_thinning(model, example_inputs, masks, graph=provider.dependency())


def prune_structures(
    model: nn.Module,
    example_inputs: ExampleInputsLike,
    *,
    target: Mapping[str, float] | None = None,
    sparsity: float | None = None,
    importance: ImportanceLike = "l1",
    weights: str | Sequence[str] = ALL_PRUNABLE,
    scope: Scope = "global",
    max_layer_sparsity: float | Mapping[str, float] | None = None,
    round_to: int = 1,
    calibrate: Calibrate | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
) -> ThinningReport:
    """Make ``model`` smaller now, in place: the least important channels go, with everything that belongs to them.

    One of ``target`` (what remains: ``{"macs": 0.5}``, ``{"params": 0.3}``, or both) and ``sparsity`` (the share of
    channels that goes). ``importance``, ``weights``, ``scope``, ``max_layer_sparsity`` and ``round_to`` are those of
    :class:`~distiller_ng.pruning.GroupPruner`; importances that look at data need ``calibrate(model)``, which runs some
    batches, and backward for those that look at gradients. The state of ``optimizer`` (one or several) is cut too.
    Fine-tune the model afterwards.

    Raises :class:`ArgumentError` for a budget that cannot be met, :class:`GraphError` where the model cannot be
    followed or does not work without the channels; then nothing was changed. Example::

        report = prune_structures(model, torch.randn(1, 3, 224, 224), target={"macs": 0.5}, round_to=8)
        print(report)  # parameters 11,689,512 -> 4,012,880; relative error against the masked model 1.2e-06, ...
    """
    optimizers = optimizers_of(optimizer)
    plan = plan_structures(
        model,
        example_inputs,
        target=target,
        sparsity=sparsity,
        importance=importance,
        weights=weights,
        scope=scope,
        max_layer_sparsity=max_layer_sparsity,
        round_to=round_to,
        calibrate=calibrate,
    )
    return apply_plan(model, plan, example_inputs, optimizers=optimizers, warn=False)
