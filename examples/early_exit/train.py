"""A network with two early exits on handwritten digits (BranchyNet): easy images leave it early.

    python train.py

trains the network and its exits together, then shows, for several thresholds, how many images leave where, what that
costs in accuracy, and what it saves. The decision is made by entropy, without labels. README.md has the results.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from distiller_ng.apputils.datasets.digits import Digits
from distiller_ng.early_exit import EarlyExitMgr, choose_exits, early_exit_loss, run_with_exits
from distiller_ng.models import create_model
from distiller_ng.ops.timing import interleave
from distiller_ng.reports.compute import layer_costs

THRESHOLDS = (0.0, 0.02, 0.1, 0.3, 0.6)


def branch(channels: int) -> nn.Module:
    """An exit: the mean over four regions of the feature map, and a classifier."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 10))


def build() -> tuple[nn.Module, EarlyExitMgr]:
    """The network of the schedules with exits after its first and its second convolution."""
    model, manager = create_model(False, "digits", "digits_cnn"), EarlyExitMgr()
    manager.attach_exits(model, [("relu1", branch(32)), ("pool", branch(64))])
    return model, manager


def train(model: nn.Module, manager: EarlyExitMgr, loader: DataLoader[Any], epochs: int) -> None:
    """All exits learn together: their losses weigh 0.2 and 0.3, that of the network's end 0.5."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    criterion = nn.CrossEntropyLoss()
    for _ in range(epochs):
        model.train()
        for images, labels in loader:
            final = model(images)
            outputs = [*manager.get_exits_outputs(model), final]
            optimizer.zero_grad()
            early_exit_loss(outputs, labels, criterion, [0.2, 0.3]).backward()
            optimizer.step()
        rates.step()


@torch.no_grad()
def outputs_of(model: nn.Module, manager: EarlyExitMgr, images: Tensor) -> list[Tensor]:
    """The logits of every exit and of the network's end."""
    final = model.eval()(images)
    return [*manager.get_exits_outputs(model), final]


def macs_until(model: nn.Module) -> list[int]:
    """Multiply-accumulates of one image that leaves at each exit (its classifiers included), the network's end last."""
    costs = {cost.name: cost.macs for cost in layer_costs(model, torch.zeros(1, 1, 8, 8))}
    exits = {n: m for n, m in costs.items() if "branch" in n and "branched_module" not in n}
    first, second = exits.values()
    conv = [costs[name] for name in ("conv1", "conv2", "conv3")]
    return [conv[0] + first, sum(conv[:2]) + first + second, sum(conv) + first + second + costs["fc"]]


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Train, and print the table; the same as a list of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=3.0, help="for timing one image at a time")
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    data = Digits()
    model, manager = build()
    train(model, manager, DataLoader(data.train_set(), batch_size=64, shuffle=True), args.epochs)
    images, labels = next(iter(DataLoader(data.test_set(), batch_size=360)))
    outputs = outputs_of(model, manager, images)
    right = [100 * float((one.argmax(1) == labels).float().mean()) for one in outputs]
    print(f"top-1 of exit 1, exit 2 and the end, each for all images: {', '.join(f'{r:.2f}' for r in right)}\n")

    def through(threshold: float) -> None:
        for image in images[:40].split(1):
            run_with_exits(model, image, thresholds=[threshold, threshold])

    times = interleave({str(t): (lambda t=t: through(t)) for t in THRESHOLDS}, args.seconds, least=2)
    cost, rows = macs_until(model), []
    print("entropy below   leave at exit 1   exit 2   the end    top-1    MACs   time, one by one")
    for threshold in THRESHOLDS:
        choice = choose_exits(outputs, [threshold, threshold])
        shares = choice.fractions()
        row = {
            "threshold": threshold,
            "shares": shares,
            "top1": 100 * float((choice.logits.argmax(1) == labels).float().mean()),
            "macs": sum(s * c for s, c in zip(shares, cost, strict=True)) / cost[-1],
            "time": statistics.median(times[str(threshold)]) / statistics.median(times[str(THRESHOLDS[0])]),
        }
        rows.append(row)
        print(f"{threshold:13.2f}   {shares[0]:15.1%}   {shares[1]:6.1%}   {shares[2]:7.1%}   {row['top1']:6.2f}   "
              f"{row['macs']:5.1%}   {row['time']:16.1%}")  # fmt: skip
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
