"""A schedule's structured pruning and removal, tried on a copy of the model without training it (layer 4)."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils._pytree import tree_map_only

from distiller_ng.core.entries import Entry
from distiller_ng.core.hooks import HookDriver
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.core.window import OPEN_END, PolicyWindow
from distiller_ng.graph.inputs import ExampleInputs, flat_tensors, with_batch
from distiller_ng.names import canonical_name, unwrap
from distiller_ng.policies.layer_pruning import LayerPruning
from distiller_ng.policies.layer_thinning import LayerThinning
from distiller_ng.policies.low_rank_thinning import LowRankThinning
from distiller_ng.policies.pruning import PruningPolicy
from distiller_ng.policies.structure_remover import StructureRemover
from distiller_ng.reports.compute import layer_costs

__all__ = ["Snapshot", "buffer_bytes", "is_structural", "macs_of", "rehearse", "sizes_of"]

_STEPS = 4  # minibatches of a rehearsed epoch; the first two run the model
_EPOCHS = 12  # at most so many are rehearsed
_BATCH = 4


@dataclass(frozen=True, slots=True)
class Snapshot:
    """After ``epoch``: values and zeros (masked by structure) of every parameter; MACs of one input, if it is known.

    ``buffers``: bytes of what is in the model beside parameters, such as running statistics.
    """

    epoch: float
    numel: Mapping[str, int]
    zeros: Mapping[str, int]
    macs: int | None
    buffers: int

    @property
    def parameters(self) -> int:
        """All values."""
        return sum(self.numel.values())


def is_structural(entry: Entry) -> bool:
    """Whether a policy prunes whole channels, removes what was pruned, or leaves layers out."""
    policy = entry.policy
    if isinstance(policy, PruningPolicy):
        pruner = policy.pruner
        return pruner.follows_channels or any(pruner.structure_dim(name) is not None for name in pruner.names)
    return isinstance(policy, StructureRemover | LayerThinning | LayerPruning | LowRankThinning)


def rehearse(
    scheduler: HookDriver,
    model: nn.Module,
    epochs: int,
    example: ExampleInputs | None,
    *,
    also: Collection[int] = (),
    redrawn: bool = False,
) -> tuple[list[Snapshot], Snapshot]:
    """Run the structural policies in their decisive epochs; what they leave after each, and at the end of training.

    The policies are copies, on a copy of ``model``; no weight is trained. ``also``: other epochs to look at.
    ``redrawn``: with other, random weights, to see what depends on them. Raises whatever a policy raises that does not
    work on this model.
    """
    entries = [entry for entry in scheduler.entries if is_structural(entry)]
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clone = copy.deepcopy(unwrap(model)).cpu()
        if redrawn:
            _redraw_(clone)
        return _Rehearsal(scheduler, clone, example).run(entries, epochs, also)


def sizes_of(model: nn.Module) -> dict[str, int]:
    """Number of values of every parameter."""
    return {canonical_name(name): parameter.numel() for name, parameter in unwrap(model).named_parameters()}


def buffer_bytes(model: nn.Module) -> int:
    """Bytes of all buffers."""
    return sum(buffer.numel() * buffer.element_size() for buffer in unwrap(model).buffers())


def macs_of(model: nn.Module, example: ExampleInputs | None) -> int | None:
    """MACs of one example; None where it is not known what the model is called with."""
    if example is None:
        return None
    one = with_batch(example, 1)
    return sum(cost.macs for cost in layer_costs(model, one))


class _Rehearsal:
    def __init__(self, scheduler: HookDriver, clone: nn.Module, example: ExampleInputs | None) -> None:
        self.origin, self.model, self.example = scheduler, clone, example
        self.optimizer = SGD(clone.parameters(), lr=0.0)
        self.driver = CompressionScheduler(
            clone, optimizer=self.optimizer, example_inputs=example, compat=scheduler.compat
        )
        self._last: Snapshot | None = None

    def run(self, entries: Sequence[Entry], epochs: int, also: Collection[int]) -> tuple[list[Snapshot], Snapshot]:
        for entry in entries:
            memo = {id(self.origin.model): self.model, id(unwrap(self.origin.model)): self.model}
            self.driver.add_policy(copy.deepcopy(entry.policy, memo), **_arguments(entry.window))
        found = []
        for epoch in sorted({*_decisive(entries, epochs), *(at for at in also if at < epochs)}):
            self._epoch(epoch)
            found.append(self._snapshot(epoch))
        self.driver.finish()
        return found, self._snapshot(epochs)

    def _epoch(self, epoch: int) -> None:
        driver, optimizer = self.driver, self.optimizer
        driver.on_epoch_begin(epoch, optimizer)
        for step in range(_STEPS):
            driver.on_minibatch_begin(epoch, step, _STEPS, optimizer)
            loss = self._loss() if step < 2 else None
            if loss is not None:
                torch.autograd.backward(loss)
            driver.before_parameter_optimization(epoch, step, _STEPS, optimizer)
            optimizer.step()
            driver.on_minibatch_end(epoch, step, _STEPS, optimizer)
            optimizer.zero_grad()
        driver.on_epoch_end(epoch, optimizer)

    def _loss(self) -> Tensor | None:
        """Of random inputs like the example's: some scores need features and gradients to look at."""
        if self.example is None:
            return None
        leaves = flat_tensors(_batch_of(self.example).call(self.model))
        parts = [leaf.float().square().mean() for leaf in leaves if leaf.requires_grad]
        return torch.stack(parts).sum() if parts else None

    def _snapshot(self, epoch: float) -> Snapshot:
        numel = sizes_of(self.model)
        zeros = {name: int((mask == 0).sum()) for name, mask in self.driver.masks.masked().items()}
        last = self._last
        macs = last.macs if last is not None and last.numel == numel else macs_of(self.model, self.example)
        self._last = Snapshot(epoch, numel, zeros, macs, buffer_bytes(self.model))
        return self._last


def _decisive(entries: Sequence[Entry], epochs: int) -> set[int]:
    """First and last epoch of every policy (and the one before, where it wants to see it), removals all of them."""
    wanted: set[int] = set()
    for entry in entries:
        active = [epoch for epoch in entry.window.active_epochs(until=epochs) if epoch < epochs]
        if isinstance(entry.policy, LayerThinning):
            wanted |= {math.floor(at) for at in entry.policy.update_epochs if at < epochs}
        elif isinstance(entry.policy, StructureRemover | LowRankThinning):
            wanted |= {*active[: _EPOCHS // 2], *active[-1:]}
        else:
            ends = {*active[:1], *active[-1:]}
            wanted |= ends | ({at - 1 for at in ends if at > 0} if entry.policy.observes_preceding_epoch else set())
    return wanted


def _arguments(window: PolicyWindow) -> dict[str, Any]:
    if window.epochs is not None:
        return {"epochs": list(window.epochs)}
    return {
        "starting_epoch": window.start,
        "ending_epoch": OPEN_END if math.isinf(window.end) else window.end,
        "frequency": window.frequency,
        "trigger": window.trigger,
    }


def _redraw_(model: nn.Module) -> None:
    """Weights of another spread in every layer and filter, so that other channels look unimportant.

    Biases and norms keep theirs, so that the model goes on computing numbers.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.dim() > 1:
                spread = float(parameter.float().std().nan_to_num()) or 1.0
                by_filter = torch.randn(parameter.shape[0], *[1] * (parameter.dim() - 1))
                scale = spread * torch.exp(torch.randn(()) + 0.5 * by_filter)
                parameter.copy_(torch.randn(parameter.shape) * scale)


@contextmanager
def _quiet() -> Iterator[None]:
    """What a rehearsal would warn of is about made-up data."""
    ours = logging.getLogger("distiller_ng")
    level = ours.level
    ours.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ours.setLevel(level)


def _batch_of(example: ExampleInputs) -> ExampleInputs:
    """Random values in the example's shapes; integers (tokens) as they are."""
    many = with_batch(example, _BATCH)

    def drawn(tensor: Tensor) -> Tensor:
        tensor = tensor.cpu()
        return torch.randn_like(tensor) if tensor.is_floating_point() else tensor

    args, kwargs = tree_map_only(Tensor, drawn, (many.args, dict(many.kwargs)))
    return ExampleInputs(args, kwargs)
