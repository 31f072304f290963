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


def fine_tune(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, lr: float = 0.05) -> None:
    """SGD with a one-cycle rate, batches of 128, shifted by up to 2 pixels and mirrored; the same order every time."""
    generator = torch.Generator().manual_seed(0)
    steps = len(images) // 128
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps * epochs, pct_start=0.1)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for step in range(steps):
            pick = order[step * 128 : (step + 1) * 128]
            x = images[pick]
            down, right = torch.randint(-2, 3, (2,), generator=generator).tolist()
            x = torch.roll(x, (down, right), (2, 3))
            if torch.rand(1, generator=generator).item() < 0.5:
                x = x.flip(3)
            loss = F.cross_entropy(model(x), labels[pick])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def ours(model: nn.Module, budget: float, images: Tensor, labels: Tensor) -> None:
    def calibrate(network: nn.Module) -> None:
        for start in range(0, 2048, 128):
            F.cross_entropy(network(images[start : start + 128]), labels[start : start + 128]).backward()

    model.eval()
    prune_structures(
        model, X, target={"macs": budget}, importance="taylor", max_layer_sparsity=0.6, calibrate=calibrate
    )


def accuracy(
    dense: Path, epochs: int, prune_theirs: Callable[..., Any]
) -> tuple[str, dict[str, Any], str, dict[str, Any], str, bool]:
    """Top-1 of both after fine-tuning, at the MACs the peer's uniform 50 % leaves, and ours at half the MACs."""
    images, labels = tensors("train")
    test = tensors("test")
    start = dense_model(dense)
    before = macs(start)
    found: dict[str, dict[str, float]] = {"dense": {"macs": 1.0, "top1": top1(start, *test)}}
    theirs = copy.deepcopy(start)
    prune_theirs(theirs, X, 0.5, uniform=True)
    budget = macs(theirs) / before
    small, half = copy.deepcopy(start), copy.deepcopy(start)
    ours(small, budget, images, labels)
    ours(half, 0.5, images, labels)
    for name, model in (("torch-pruning", theirs), ("ours", small), ("ours_half", half)):
        fine_tune(model, images, labels, epochs)
        found[name] = {"macs": round(macs(model) / before, 4), "top1": round(top1(model, *test), 2)}
        print(name, found[name], file=sys.stderr, flush=True)
    met = (
        found["ours"]["top1"] > found["torch-pruning"]["top1"]
        and found["ours_half"]["top1"] > found["dense"]["top1"] - 1
    )
    peers = {"torch-pruning": found["torch-pruning"], "dense": found["dense"]}
    value = {"same_macs": found["ours"], "half_macs": found["ours_half"], "epochs": epochs}
    goal = "more accurate than the peer at its MACs; at half the MACs less than 1 point below dense"
    return f"thinning.accuracy_{epochs}_epochs", value, "MACs ratio, top-1 %", peers, goal, met
