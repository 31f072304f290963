"""Prune a model in a training loop of your own, without any YAML: the scheduler's API in code.

    python prune_with_scheduler.py --epochs 12 --sparsity 0.8

trains a small convolutional network on scikit-learn's handwritten digits. Everything about compression is in
``make_scheduler`` and in the four marked lines of ``train``.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import distiller_ng as distiller
from distiller_ng.policies import LRPolicy, PruningPolicy
from distiller_ng.pruning import AutomatedGradualPruner

TEST_IMAGES = 360


def make_model() -> nn.Module:
    """Two convolutions and a classifier for ``[N, 1, 8, 8]`` images."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Flatten()),
        nn.Linear(64 * 4 * 4, 10),
    )


def make_scheduler(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, epochs: int, sparsity: float
) -> distiller.CompressionScheduler:
    """Gradual pruning of every weight in the middle half of the run, and a learning rate that falls at three quarters.

    The same in a schedule file would be a pruner, a learning-rate scheduler and two policies.
    """
    weights = [name for name, parameter in model.named_parameters() if parameter.dim() > 1]
    pruner = AutomatedGradualPruner("gradual", 0.05, sparsity, weights)
    decay = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[3 * epochs // 4], gamma=0.2)

    scheduler = distiller.CompressionScheduler(model, optimizer=optimizer)
    first, last = epochs // 4, 3 * epochs // 4
    scheduler.add_policy(PruningPolicy(pruner), starting_epoch=first, ending_epoch=last, frequency=1)
    scheduler.add_policy(LRPolicy(decay), starting_epoch=0, ending_epoch=epochs, frequency=1)
    return scheduler


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: distiller.CompressionScheduler,
    loader: DataLoader[tuple[Tensor, ...]],
    test_set: tuple[Tensor, Tensor],
    epochs: int,
) -> None:
    """An ordinary training loop, in the scheduler's short form."""
    criterion = nn.CrossEntropyLoss()
    for epoch in scheduler.epochs(epochs):  # instead of range(epochs)
        model.train()
        for images, labels in scheduler.minibatches(loader):  # instead of the loader
            optimizer.zero_grad()
            loss = scheduler.backward(criterion(model(images), labels))  # instead of loss.backward()
            optimizer.step()
        zeros = distiller.model_sparsity(model)
        print(f"epoch {epoch:2d}  loss {loss:.4f}  top1 {top1(model, *test_set):6.2f}  sparsity {zeros:5.2f} %")
    print(scheduler.finish())  # what was planned, and what was achieved


@torch.no_grad()
def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Accuracy in percent."""
    model.eval()
    return 100.0 * (model(images).argmax(dim=1) == labels).float().mean().item()


def digits() -> tuple[TensorDataset, tuple[Tensor, Tensor]]:
    """Training set and test tensors; pixels scaled to 0..1."""
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(bunch.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train_part, test_part = order[TEST_IMAGES:], order[:TEST_IMAGES]
    return TensorDataset(images[train_part], labels[train_part]), (images[test_part], labels[test_part])


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--sparsity", type=float, default=0.8, help="fraction of weights to remove")
    args = parser.parse_args()

    distiller.set_deterministic(0)
    train_set, test_set = digits()
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = make_scheduler(model, optimizer, epochs=args.epochs, sparsity=args.sparsity)
    loader = DataLoader(train_set, batch_size=64, shuffle=True)
    train(model, optimizer, scheduler, loader, test_set, args.epochs)


if __name__ == "__main__":
    main()
