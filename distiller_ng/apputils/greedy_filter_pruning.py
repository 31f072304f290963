"""Greedy filter pruning: of all layers, shrink the one that hurts least, again and again (layer 5)."""

from __future__ import annotations

import argparse
import copy
import csv
import io
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distiller_ng.checkpoint import save_checkpoint
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import ArgumentError, DistillerError, GraphError
from distiller_ng.graph.cost import MacsCost, ParamsCost
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.graph.inputs import ExampleInputsLike
from distiller_ng.names import ParameterIndex, canonical_name, unwrap
from distiller_ng.ops.files import write_text_atomically
from distiller_ng.pruning._budget import Ranked, removals_of, select_by_count
from distiller_ng.pruning._families import Family, families_of
from distiller_ng.pruning._group_arguments import check_round_to, step_of
from distiller_ng.pruning.groups import channel_masks
from distiller_ng.pruning.importance import ImportanceLike, as_importance
from distiller_ng.thinning.apply import apply_plan
from distiller_ng.thinning.functions import example_inputs_for
from distiller_ng.thinning.plan import ThinningPlan

__all__ = ["FINETUNING_POLICIES", "GreedyFilterPruner", "GreedyStep", "greedy_pruner"]

logger = logging.getLogger(__name__)

#: ``constant``: every trial trains as long; ``linear-grow``: the longer, the more is gone.
FINETUNING_POLICIES = ("constant", "linear-grow")
#: ``test_fn(model=...) -> (top1, top5, loss)``.
TestFunction: TypeAlias = Callable[..., Sequence[float]]
#: ``train_fn(model=..., compression_scheduler=..., optimizer=..., epoch=...)``: one epoch.
TrainFunction: TypeAlias = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class GreedyStep:
    """One accepted step: which layer lost how many filters, and what the model achieves and costs afterwards.

    ``top1`` and ``top5`` in percent; densities are shares 0..1 of the first model's MACs and parameters.
    """

    iteration: int
    layer: str
    removed: int
    top1: float
    top5: float
    loss: float
    compute_density: float
    params_density: float
    macs: int


@dataclass(frozen=True, slots=True)
class _Trial:
    model: nn.Module
    family: Family
    removed: int
    scores: tuple[float, float, float]

    @property
    def worth(self) -> tuple[float, float, float]:
        top1, top5, loss = self.scores
        return top1, top5, -loss


class GreedyFilterPruner:
    """Shrinks a model layer by layer until its MACs are down to a share of what they were.

    Each iteration tries, for every layer of convolutions (layers whose outputs are added count as one), to remove the
    ``pruning_step`` (share, at least one) of its filters that matter least, fine-tunes the copy, tests it, and goes on
    with the best one: highest top-1, then top-5, then lowest loss. Models without convolutions are tried by their other
    layers. Nothing is known about architectures: the model is traced on ``example_inputs`` (default: by
    ``app_args.dataset``).

    ``target_density``: share of MACs to end at, 0..1. ``test_fn(model=...)`` returns (top1, top5, loss); ``train_fn``
    trains ``model=`` for one ``epoch=`` with ``optimizer=`` and ``compression_scheduler=`` (None: no fine-tuning). Of
    ``app_args`` are used, where present: ``arch``, ``dataset``, ``lr``, ``momentum``, ``weight_decay``,
    ``greedy_ft_epochs`` (1) and ``greedy_finetuning_policy`` (``constant``; with ``linear-grow`` the epochs grow from 1
    to that number while the model shrinks). ``importance``: any of :data:`distiller_ng.pruning.IMPORTANCES` that needs
    no training. ``output_dir``: where ``greedy.csv`` and a checkpoint of each step are written; None writes nothing.

    Source: the idea of "NetAdapt", T.-J. Yang et al., https://arxiv.org/abs/1804.03230, with filters in place of
    latency. Two layers of 10 filters, step 0.1: first two trials with 9 filters in one of them, the better is kept::

        pruner = GreedyFilterPruner(model, args, 0.5, 0.1, test_fn, train_fn, output_dir="logs/greedy")
        small = pruner.run()

    Raises :class:`ArgumentError` for shares out of range, :class:`GraphError` where the model cannot be traced.
    """

    def __init__(
        self,
        pruned_model: nn.Module,
        app_args: argparse.Namespace | None,
        target_density: float,
        pruning_step: float,
        test_fn: TestFunction,
        train_fn: TrainFunction | None = None,
        *,
        example_inputs: ExampleInputsLike | None = None,
        importance: ImportanceLike = "l1",
        round_to: int = 1,
        output_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        for name, value in (("fraction_to_prune", target_density), ("pruning_step", pruning_step)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
                raise ArgumentError(f"{name} is a share above 0 and below 1, got {value!r}", argument=(name,))
        self.args = app_args or argparse.Namespace()
        self.target_density, self.pruning_step = float(target_density), float(pruning_step)
        self.test_fn, self.train_fn = test_fn, train_fn
        self.importance = as_importance(importance)
        self.round_to = check_round_to(round_to)
        self.finetuning = getattr(self.args, "greedy_finetuning_policy", None) or FINETUNING_POLICIES[0]
        if self.finetuning not in FINETUNING_POLICIES:
            message = f"the fine-tuning policy is one of {', '.join(FINETUNING_POLICIES)}; got {self.finetuning!r}"
            raise ArgumentError(message, argument=("greedy_finetuning_policy",))
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.model = copy.deepcopy(unwrap(pruned_model))
        self.inputs = example_inputs_for(pruned_model, example_inputs, getattr(self.args, "dataset", None))
        #: Every accepted step, in order.
        self.history: list[GreedyStep] = []
        self._macs, self._params = MacsCost(), ParamsCost()
        self._refused: set[str] = set()  # families that cannot be thinned

    def run(self) -> nn.Module:
        """Shrink a copy of the model and return it; the given model is left as it was."""
        graph = DependencyGraph.trace(self.model, self.inputs)
        first = self._macs.of(graph), self._params.of(graph)
        if first[0] == 0:
            raise GraphError("the model has no multiply-accumulates to count on these example inputs")
        density = 1.0
        while density > self.target_density:
            best = self._best(graph, density)
            if best is None:
                logger.warning("greedy pruning stops at %.1f %% of the MACs: no layer can lose more", density * 100)
                break
            self.model = best.model
            graph = DependencyGraph.trace(self.model, self.inputs)
            density = self._macs.of(graph) / first[0]
            self._record(best, density, self._params.of(graph) / first[1], int(self._macs.of(graph)))
        return self.model

    # -- one iteration ----------------------------------------------------------------------------------------------

    def _best(self, graph: DependencyGraph, density: float) -> _Trial | None:
        families = self._candidates(graph)
        scores = self.importance.scores(graph, families=families)
        best: _Trial | None = None
        for family in families:
            trial = self._try(graph, family, scores, density)
            if trial is not None and (best is None or trial.worth > best.worth):
                best = trial
        return best

    def _candidates(self, graph: DependencyGraph) -> list[Family]:
        """Layers that can lose channels: those made by convolutions, without any all others."""
        kinds = {canonical_name(name): module for name, module in graph.model.named_modules()}

        def is_convolved(family: Family) -> bool:
            makers = (kinds.get(m.tensor.rpartition(".")[0]) for m in family.members if m.feeds)
            return any(isinstance(module, nn.modules.conv._ConvNd) for module in makers)

        families = [f for f in families_of(graph) if f.key not in self._refused and len(f) > 1]
        return [f for f in families if is_convolved(f)] or families

    def _try(self, graph: DependencyGraph, family: Family, scores: dict[int, float], density: float) -> _Trial | None:
        ranked = sorted((Ranked(c, 0, scores[c]) for c in family.channels.tolist()), key=lambda r: r.score)
        steps = removals_of(0, ranked, original=len(family), most=1.0, multiple=step_of(family, self.round_to))
        if not steps:
            return None
        chosen = select_by_count(steps, max(1, int(self.pruning_step * len(family)))) or steps[:1]
        channels = [channel for step in chosen for channel in step.channels]
        model = copy.deepcopy(self.model)
        try:
            plan = ThinningPlan.for_channels(graph, channels, asked_by=[family.name])
            _zero_(model, channel_masks(graph, channels))
            apply_plan(model, plan, self.inputs)
        except GraphError as error:
            logger.warning("greedy pruning leaves %s alone: %s", family.name, error)
            self._refused.add(family.key)
            return None
        try:
            self._finetune(model, density)
            top1, top5, loss = (float(score) for score in self.test_fn(model=model))
        except DistillerError as error:  # a trial that diverged is a bad one, not the end of the search
            logger.warning("greedy pruning: the trial without %d of %s failed: %s", len(channels), family.name, error)
            return None
        logger.info(
            "greedy trial: %s loses %d: top1 %.3f top5 %.3f loss %.4f", family.name, len(channels), top1, top5, loss
        )
        return _Trial(model, family, len(channels), (top1, top5, loss))

    def _finetune(self, model: nn.Module, density: float) -> None:
        if self.train_fn is None:
            return
        optimizer = self._optimizer(model)
        scheduler = CompressionScheduler(model, optimizer=optimizer)
        for epoch in range(self._epochs(density)):
            scheduler.on_epoch_begin(epoch, optimizer)
            self.train_fn(model=model, compression_scheduler=scheduler, optimizer=optimizer, epoch=epoch)
            scheduler.on_epoch_end(epoch, optimizer)
        scheduler.masks.detach()

    def _epochs(self, density: float) -> int:
        most = int(getattr(self.args, "greedy_ft_epochs", 1))
        if self.finetuning == "constant" or most == 0:
            return most
        gone = (1 - density) / (1 - self.target_density)
        return min(most, max(1, round(most * gone)))

    def _optimizer(self, model: nn.Module) -> Optimizer:
        return torch.optim.SGD(
            model.parameters(),
            lr=getattr(self.args, "lr", 0.1),
            momentum=getattr(self.args, "momentum", 0.9),
            weight_decay=getattr(self.args, "weight_decay", 1e-4),
        )

    # -- records ----------------------------------------------------------------------------------------------------

    def _record(self, best: _Trial, compute: float, params: float, macs: int) -> None:
        iteration = len(self.history) + 1
        step = GreedyStep(iteration, best.family.name, best.removed, *best.scores, compute, params, macs)
        self.history.append(step)
        logger.info(
            "greedy step %d: %s loses %d; top1 %.3f, %.1f %% of the MACs, %.1f %% of the parameters remain",
            iteration,
            step.layer,
            step.removed,
            step.top1,
            compute * 100,
            params * 100,
        )
        if self.output_dir is None:
            return
        text = io.StringIO()
        table = csv.DictWriter(text, [field.name for field in fields(GreedyStep)])
        table.writeheader()
        table.writerows(asdict(known) for known in self.history)
        write_text_atomically(self.output_dir / "greedy.csv", text.getvalue())
        name = f"greedy__{iteration:03d}__{compute * 100:.1f}__{step.top1:.1f}"
        save_checkpoint(0, getattr(self.args, "arch", None), self.model, name=name, dir=str(self.output_dir))


@torch.no_grad()
def _zero_(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Multiply parameters by their masks, in place: what is cut next must not change the outputs any more."""
    parameters = ParameterIndex(model)
    for name, mask in masks.items():
        parameters[name].mul_(mask)


def greedy_pruner(
    pruned_model: nn.Module,
    app_args: argparse.Namespace | None,
    fraction_to_prune: float,
    pruning_step: float,
    test_fn: TestFunction,
    train_fn: TrainFunction | None = None,
    **options: Any,
) -> nn.Module:
    """Distiller's function: run a :class:`GreedyFilterPruner` and return the small model.

    ``fraction_to_prune`` is, as there, the share of MACs to end at. ``options``: the keyword arguments of the class.
    ``greedy_pruner(model, args, 0.5, 0.1, test_fn, train_fn)`` halves the MACs in steps of a tenth of a layer.
    """
    return GreedyFilterPruner(
        pruned_model, app_args, fraction_to_prune, pruning_step, test_fn, train_fn, **options
    ).run()
