"""Accuracy after the same fine-tuning: ResNet-20 on Fashion-MNIST, thinned by us and by Torch-Pruning."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_ng.apputils.datasets.fashion_mnist import FashionMnist
from distiller_ng.models import create_model
from distiller_ng.policies.one_shot import prune_structures
from distiller_ng.reports.compute import layer_costs

X = torch.zeros(1, 1, 28, 28)


def tensors(split: str) -> tuple[Tensor, Tensor]:
    images, labels = FashionMnist().read(split)
    return (images.float().reshape(-1, 1, 28, 28) / 255 - 0.2860) / 0.3530, labels.long()


def dense_model(path: Path) -> nn.Module:
    model = create_model(False, "fashion-mnist", "resnet20_cifar")
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


def macs(model: nn.Module) -> int:
    return sum(cost.macs for cost in layer_costs(model, X))


@torch.no_grad()
def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True))
    return 100.0 * right / len(labels)


class FineTuning:
    """SGD with a one-cycle rate, batches of 128, shifted by up to 2 pixels and mirrored; the same order every time."""

    def __init__(self, images: Tensor, labels: Tensor, epochs: int, lr: float = 0.05) -> None:
        self.images, self.labels, self.lr = images, labels, lr
        self.steps_per_epoch = len(images) // 128
        self.epochs = epochs

    def __call__(self, model: nn.Module, before_step: Callable[[int, int, Any], None] | None = None) -> None:
        """Train; ``before_step(step, steps, optimizer)`` may make the model smaller."""
        generator = torch.Generator().manual_seed(0)
        steps = self.steps_per_epoch * self.epochs
        optimizer = torch.optim.SGD(model.parameters(), lr=self.lr, momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps, pct_start=0.1)
        order = torch.zeros(0)
        for step in range(steps):
            if step % self.steps_per_epoch == 0:
                order = torch.randperm(len(self.images), generator=generator)
            if before_step is not None:
                before_step(step, steps, optimizer)
            model.train()
            start = (step % self.steps_per_epoch) * 128
            pick = order[start : start + 128]
            x = self.images[pick]
            down, right = torch.randint(-2, 3, (2,), generator=generator).tolist()
            x = torch.roll(x, (down, right), (2, 3))
            if torch.rand(1, generator=generator).item() < 0.5:
                x = x.flip(3)
            loss = F.cross_entropy(model(x), self.labels[pick])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def at_once(model: nn.Module, budget: float, images: Tensor, labels: Tensor, optimizer: Any = None) -> None:
    """Down to ``budget`` of the MACs the model has now, by the Taylor scores of 2,048 images."""

    def calibrate(network: nn.Module) -> None:
        for start in range(0, 2048, 128):
            F.cross_entropy(network(images[start : start + 128]), labels[start : start + 128]).backward()

    model.eval()
    model.zero_grad()
    target = {"macs": budget}
    prune_structures(
        model, X, target=target, importance="taylor", max_layer_sparsity=0.6, calibrate=calibrate, optimizer=optimizer
    )


def gradually(
    model: nn.Module, budget: float, images: Tensor, labels: Tensor, share: float = 0.4, times: int = 8
) -> Callable[[int, int, Any], None]:
    """The same in ``times`` removals along a cubic curve over the first ``share`` of the fine-tuning steps."""
    dense = macs(model)

    def before_step(step: int, steps: int, optimizer: Any) -> None:
        due = [int(steps * share * k / times) for k in range(times)]
        if step in due:
            progress = (due.index(step) + 1) / times
            wanted = 1.0 - (1.0 - budget) * (1.0 - (1.0 - progress) ** 3)
            at_once(model, min(dense * wanted / macs(model), 1.0), images, labels, optimizer)

    return before_step


def accuracy(
    dense: Path, epochs: int, prune_theirs: Callable[..., Any]
) -> tuple[str, dict[str, Any], str, dict[str, Any], str, bool]:
    """Top-1 of both after fine-tuning, at the MACs the peer's uniform 50 % leaves, and ours at half the MACs."""
    images, labels = tensors("train")
    test = tensors("test")
    train = FineTuning(images, labels, epochs)
    start = dense_model(dense)
    before = macs(start)
    found: dict[str, dict[str, float]] = {"dense": {"macs": 1.0, "top1": top1(start, *test)}}
    theirs = copy.deepcopy(start)
    prune_theirs(theirs, X, 0.5, uniform=True)
    budget = macs(theirs) / before
    ours, once, half = copy.deepcopy(start), copy.deepcopy(start), copy.deepcopy(start)
    at_once(once, budget, images, labels)
    runs = {
        "torch-pruning": (theirs, None),
        "ours": (ours, gradually(ours, budget, images, labels)),
        "ours_at_once": (once, None),
        "ours_half": (half, gradually(half, 0.5, images, labels)),
    }
    for name, (model, before_step) in runs.items():
        train(model, before_step)
        found[name] = {"macs": round(macs(model) / before, 4), "top1": round(top1(model, *test), 2)}
        print(name, found[name], file=sys.stderr, flush=True)
    met = (
        found["ours"]["top1"] > found["torch-pruning"]["top1"]
        and found["ours_half"]["top1"] > found["dense"]["top1"] - 1
    )
    peers = {"torch-pruning": found["torch-pruning"], "dense": found["dense"]}
    value = {
        "same_macs": found["ours"],
        "same_macs_at_once": found["ours_at_once"],
        "half_macs": found["ours_half"],
        "epochs": epochs,
    }
    goal = "more accurate than the peer at its MACs; at half the MACs less than 1 point below dense"
    return f"thinning.accuracy_{epochs}_epochs", value, "MACs ratio, top-1 %", peers, goal, met
