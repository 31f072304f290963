"""What a scheduled training step costs over the plain loop, against a floor and peers measured in the same run.

    python benchmarks/step_overhead.py [--quick] [--output benchmarks/results/step_overhead.json]

The floor is the plain step plus one bare ``torch._foreach_mul_`` over the same tensors. Variants are interleaved in one
process and compared by medians of process CPU time on one thread, so that other load on the machine matters little.
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from _measuring import interleave, ratio, run_benchmark
from torch import nn
from torch.nn.utils import parametrize, prune

from distiller_ng.config import file_config
from distiller_ng.core.policy import Policy
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.models import create_model
from distiller_ng.policies.pruning import PruningPolicy
from distiller_ng.policies.regularization import RegularizationPolicy
from distiller_ng.pruning import MagnitudePruner, SparsityLevelParameterPruner


class Transformer(nn.Module):
    """A 6-layer encoder of width 256."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.head = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x).mean(1))


def mlp() -> nn.Module:
    """1.3 M parameters."""
    return nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet20_b128": (lambda: create_model(False, "cifar10", "resnet20_cifar"), (128, 3, 32, 32)),
    "resnet20_b8": (lambda: create_model(False, "cifar10", "resnet20_cifar"), (8, 3, 32, 32)),
    "mlp_b32": (mlp, (32, 784)),
    "transformer_b8": (Transformer, (8, 16, 256)),
}


def prunable(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, module) of every convolution and linear layer whose weight all variants can mask.

    Attention's projections stay dense in all of them: torch's own pruning crashes on those in training.
    """
    attention = {id(m.out_proj) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    kinds = (nn.Conv2d, nn.Linear)
    return [(n, m) for n, m in model.named_modules() if isinstance(m, kinds) and id(m) not in attention]


def half_mask(weight: torch.Tensor) -> torch.Tensor:
    """A random mask of 50 %."""
    return (torch.rand_like(weight) < 0.5).to(weight.dtype)


class Plain:
    """The user's own loop."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        self.model = copy.deepcopy(model)
        self.prepare()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9)
        self.x, self.y = torch.randn(shape), torch.randint(0, 10, (shape[0],))

    def prepare(self) -> None:
        """What the variant does to the model before training."""

    def loss(self) -> torch.Tensor:
        return nn.functional.cross_entropy(self.model(self.x), self.y)

    def __call__(self) -> None:
        # Cleared between forward and backward in every variant: when gradients are freed moves times by percents.
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Floor(Plain):
    """The plain step and one bare fused multiplication."""

    def prepare(self) -> None:
        self.weights = [module.weight for _, module in prunable(self.model)]
        self.masks = [half_mask(w) for w in self.weights]

    def __call__(self) -> None:
        super().__call__()
        with torch.no_grad():
            torch._foreach_mul_(self.weights, self.masks)


class Scheduled(Plain):
    """Our scheduler with masks held on the same tensors, all hooks called."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__(model, shape)
        self.scheduler = CompressionScheduler(self.model, optimizer=self.optimizer)
        names = [f"{name}.weight" for name, _ in prunable(self.model)]
        pruner = SparsityLevelParameterPruner("half", dict.fromkeys(names, 0.5))
        self.scheduler.add_policy(PruningPolicy(pruner, None), starting_epoch=0, ending_epoch=-1, frequency=1)
        self.scheduler.on_epoch_begin(0)
        self.now = self.minibatch = 0

    def __call__(self) -> None:
        scheduler, epoch, i, n = self.scheduler, self.now, self.minibatch, 10**9
        scheduler.on_minibatch_begin(epoch, i, n, self.optimizer)
        loss = scheduler.before_backward_pass(epoch, i, n, self.loss(), self.optimizer)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        scheduler.before_parameter_optimization(epoch, i, n, self.optimizer)
        self.optimizer.step()
        scheduler.on_minibatch_end(epoch, i, n, self.optimizer)
        self.minibatch += 1


class Recipe(Scheduled):
    """A recipe's modifier on all weights, in ``epoch``, with all hooks called."""

    TEXT = "modifiers:\n  - !{tag} {{params: __ALL_PRUNABLE__{settings}}}\n"
    tag, settings, epoch = "", "", 0

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        Plain.__init__(self, model, shape)
        text = self.TEXT.format(tag=self.tag, settings=self.settings)
        self.scheduler = file_config(self.model, self.optimizer, text)
        for epoch in range(self.epoch + 1):
            self.now, self.minibatch = epoch, 0
            self.scheduler.on_epoch_begin(epoch)
            if epoch < self.epoch:
                self()
                self.scheduler.on_epoch_end(epoch)


class Constant(Recipe):
    """Half of the weights are zero and stay so."""

    tag = "ConstantPruningModifier"

    def prepare(self) -> None:
        for _, module in prunable(self.model):
            module.weight.data.mul_(half_mask(module.weight))


class Acdc(Recipe):
    """In a compressed phase."""

    tag, epoch = "ACDCPruningModifier", 1
    settings = ", compression_sparsity: 0.5, start_epoch: 0, end_epoch: 10, update_frequency: 1"


class Movement(Recipe):
    """Between two decisions: scores are summed up in every step."""

    tag = "MovementPruningModifier"
    settings = ", init_sparsity: 0.5, final_sparsity: 0.9, start_epoch: 0, end_epoch: 10, update_frequency: 1"


class TorchPrune(Plain):
    """``torch.nn.utils.prune`` with the same sparsity."""

    def prepare(self) -> None:
        for _, module in prunable(self.model):
            prune.custom_from_mask(module, "weight", half_mask(module.weight))


class _Masked(nn.Module):
    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.mask


class Parametrized(Plain):
    """``torch.nn.utils.parametrize`` with a mask."""

    def prepare(self) -> None:
        for _, module in prunable(self.model):
            parametrize.register_parametrization(module, "weight", _Masked(half_mask(module.weight)))


VARIANTS: dict[str, type[Plain]] = {
    "plain": Plain,
    "floor": Floor,
    "distiller_ng": Scheduled,
    "torch.nn.utils.prune": TorchPrune,
    "torch.nn.utils.parametrize": Parametrized,
}


def held_masks(seconds: float, rounds: int = 5) -> Iterator[dict[str, Any]]:
    """A held mask against the floor and the peers, for each model, over at least so many rounds."""
    for case, (make, shape) in CASES.items():
        torch.manual_seed(0)
        model = make()
        times = interleave({name: kind(model, shape) for name, kind in VARIANTS.items()}, seconds, rounds)
        peers = {name: round(ratio(times, name, "floor"), 4) for name in VARIANTS if name != "distiller_ng"}
        value = ratio(times, "distiller_ng", "floor")
        rivals = [peers["torch.nn.utils.prune"], peers["torch.nn.utils.parametrize"]]
        yield {
            "metric": f"held_masks_over_floor/{case}",
            "value": round(value, 4),
            "unit": "ratio of CPU time per step",
            "peers": {**peers, "plain_ms": round(1e3 * statistics.median(times["plain"]), 3)},
            "goal": "<= 1.02 and below torch.nn.utils.prune and torch.nn.utils.parametrize",
            "met": value <= 1.02 and value < min(rivals),
        }


#: Modifier, most of the plain step, and what SparseML took on the same network (another machine).
RECIPES: dict[str, tuple[type[Recipe], float, float]] = {
    "constant": (Constant, 1.2, 4.5),
    "acdc_compressed": (Acdc, 1.2, 1.4),
    "movement": (Movement, 1.35, 2.5),
}


def recipes(seconds: float, rounds: int = 5) -> Iterator[dict[str, Any]]:
    """Modifiers of recipes that act in every step, on the MLP, against the plain step and a held mask."""
    torch.manual_seed(0)
    make, shape = CASES["mlp_b32"]
    model = make()
    kinds: dict[str, type[Plain]] = {"plain": Plain, "held": Scheduled}
    kinds.update({name: kind for name, (kind, _, _) in RECIPES.items()})
    times = interleave({name: kind(model, shape) for name, kind in kinds.items()}, seconds, rounds)
    for name, (_, most, sparseml) in RECIPES.items():
        value = ratio(times, name, "plain")
        yield {
            "metric": f"recipe_step_over_plain/{name}/mlp_b32",
            "value": round(value, 4),
            "unit": "ratio of CPU time per step",
            "peers": {
                "a held mask of ours": round(ratio(times, "held", "plain"), 4),
                "SparseML (other machine)": sparseml,
            },
            "goal": f"<= {most}",
            "met": value <= most,
        }


def _five_policies(scheduler: CompressionScheduler) -> list[Policy]:
    from distiller_ng.pruning.agp import AutomatedGradualPruner
    from distiller_ng.pruning.lp_ranked import L1RankedStructureParameterPruner
    from distiller_ng.regularization.l1 import L1Regularizer

    convs = [n for n in scheduler.parameters.prunable() if scheduler.parameters[n].dim() == 4]
    quarter = len(convs) // 4
    pruners = [
        SparsityLevelParameterPruner("level", dict.fromkeys(convs[:quarter], 0.5)),
        AutomatedGradualPruner("agp", 0.05, 0.8, convs[quarter : 2 * quarter]),
        L1RankedStructureParameterPruner("filters", "Filters", 0.3, convs[2 * quarter : 3 * quarter]),
        AutomatedGradualPruner("agp2", 0.05, 0.8, convs[3 * quarter :]),
    ]
    regularizer = L1Regularizer("l1", scheduler.model, {"fc.weight": 1e-5})
    return [*(PruningPolicy(p, None) for p in pruners), RegularizationPolicy(regularizer)]


def five_policies(seconds: float) -> dict[str, Any]:
    """Milliseconds a minibatch that five policies on ResNet-56 add, projection included."""
    model = create_model(False, "cifar10", "resnet56_cifar")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scheduler = CompressionScheduler(model, optimizer=optimizer)
    for policy in _five_policies(scheduler):
        scheduler.add_policy(policy, starting_epoch=0, ending_epoch=10, frequency=1)
    scheduler.on_epoch_begin(0)
    loss, state = torch.tensor(1.0), {"i": 0}

    def hooks() -> None:
        i, n = state["i"], 10**9
        scheduler.on_minibatch_begin(0, i, n, optimizer)
        scheduler.before_backward_pass(0, i, n, loss, optimizer)
        scheduler.before_parameter_optimization(0, i, n, optimizer)
        optimizer.step()  # no gradients: only the hook's projection remains
        scheduler.on_minibatch_end(0, i, n, optimizer)
        state["i"] += 1

    bare = torch.optim.SGD(model.parameters(), lr=0.0)
    times = interleave({"hooks": hooks, "bare": lambda: bare.step()}, seconds, least=50)
    value = 1e3 * (statistics.median(times["hooks"]) - statistics.median(times["bare"]))
    return {
        "metric": "five_policies_resnet56",
        "value": round(value, 4),
        "unit": "ms per minibatch",
        "peers": {"Distiller (published study, other machine)": 21.7},
        "goal": "< 1",
        "met": value < 1.0,
    }


def mask_update(seconds: float, *, pruned: bool) -> dict[str, Any]:
    """A policy's global decision over 22 M weights against ``np.partition`` on a copy of the scores.

    ``pruned``: on weights of which 80 % were pruned before, as in every gradual schedule.
    """
    torch.manual_seed(0)
    model = nn.ModuleList(nn.Linear(1024, 1024, bias=False) for _ in range(21))
    if pruned:
        for parameter in model.parameters():
            parameter.data.mul_(torch.rand_like(parameter) < 0.2)
    scheduler = CompressionScheduler(model)
    pruner = MagnitudePruner("global", ["__ALL_PRUNABLE__"], sparsity=0.9, scope="global")
    scheduler.add_policy(PruningPolicy(pruner, None), starting_epoch=0, ending_epoch=-1)
    scores = [parameter.detach().abs().numpy().ravel() for parameter in model.parameters()]
    k = int(0.9 * sum(s.size for s in scores))
    state = {"epoch": 0}

    def update() -> None:
        scheduler.on_epoch_begin(state["epoch"])
        scheduler.on_epoch_end(state["epoch"])  # applies the masks too
        state["epoch"] += 1

    def partition() -> None:
        np.concatenate(scores).partition(k)

    times = interleave({"ours": update, "np.partition": partition}, seconds)
    value = ratio(times, "ours", "np.partition")
    return {
        "metric": f"global_mask_update_22M{'_pruned_before' if pruned else ''}",
        "value": round(value, 3),
        "unit": "ratio of CPU time to np.partition on a copy, decision and masking of the weights",
        "peers": {"np.partition_ms": round(1e3 * statistics.median(times["np.partition"]), 1)},
        "goal": "< 3",
        "met": value < 3.0,
    }


def measured(quick: bool) -> Iterator[dict[str, Any]]:
    """Everything, one after the other."""
    seconds, rounds = (4.0, 5) if quick else (40.0, 60)
    yield from held_masks(seconds, rounds)
    yield from recipes(seconds, rounds)
    for measure in (five_policies, partial(mask_update, pruned=False), partial(mask_update, pruned=True)):
        yield measure(seconds / 2)


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__, measured))
