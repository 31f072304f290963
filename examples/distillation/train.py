"""Knowledge distillation on Fashion-MNIST, measured: every experiment runs with and without a teacher.

    python train.py student     # small networks learn from a large one through its stored logits
    python train.py pruned      # a network pruned to 95 % recovers with its own dense self as the teacher

prints a line for each run and, at the end, mean and range over the seeds. README.md has the results. Teachers and dense
networks are trained on ``--teacher-images`` training images, what learns from them sees the first ``--images`` of these
only. Nothing is augmented; all are measured on the 10,000 test images.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import distiller_ng as distiller
from distiller_ng.apputils.datasets.fashion_mnist import FashionMnist
from distiller_ng.knowledge_distillation import DistillationLossWeights, WithSampleIds, cache_teacher
from distiller_ng.policies import LRPolicy, PruningPolicy
from distiller_ng.policies.knowledge_distillation import KnowledgeDistillationPolicy
from distiller_ng.pruning import AutomatedGradualPruner

Data = tuple[WithSampleIds, tuple[Tensor, Tensor]]
Results = dict[str, float]


def network(width: int) -> nn.Module:
    """Three convolutions with ``width``, ``2 * width`` and ``4 * width`` filters, and a classifier."""
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(2 * width, 4 * width, 3, padding=1, bias=False), nn.BatchNorm2d(4 * width), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10)),
    )


def load_data(args: argparse.Namespace) -> tuple[Data, Data]:
    """Many and few training images, with sample ids, and the test images with their labels."""
    source = FashionMnist(args.data, augment=False)
    train, test = source.train_set(), source.test_set()
    images = train.transform(train.images[: args.teacher_images])
    tested = test.transform(test.images), test.labels
    many, few = (WithSampleIds(TensorDataset(images[:n], train.labels[:n])) for n in (len(images), args.images))
    return (many, tested), (few, tested)


def make_loader(data: Data, seed: int) -> DataLoader[Any]:
    """Shuffled batches of 64, in the same order for every run of a seed."""
    return DataLoader(data[0], batch_size=64, shuffle=True, generator=torch.Generator().manual_seed(seed))


def train(
    model: nn.Module,
    data: Data,
    *,
    seed: int,
    epochs: int,
    lr: float = 0.05,
    add_policies: Callable[[distiller.CompressionScheduler], None] | None = None,
    cached: Any = None,
) -> float:
    """An ordinary loop, the same with and without distillation; top-1 on the test images at its end."""
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    scheduler = distiller.CompressionScheduler(model, optimizer=optimizer)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    scheduler.add_policy(LRPolicy(cosine), starting_epoch=0, ending_epoch=epochs, frequency=1)
    if add_policies is not None:
        add_policies(scheduler)
    loader, criterion = make_loader(data, seed), nn.CrossEntropyLoss()
    # With stored logits the batches' ids say which of them to read; without, the ids are not needed.
    batches = loader if cached is None else cached.batches(loader)
    for _ in scheduler.epochs(epochs):
        model.train()
        for images, labels, *_ids in scheduler.minibatches(batches):
            optimizer.zero_grad()
            scheduler.backward(criterion(model(images), labels))
            optimizer.step()
    return top1(model, *data[1])


@torch.no_grad()
def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Accuracy in percent."""
    model.eval()
    right = sum(
        int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(1000), labels.split(1000), strict=True)
    )
    return 100.0 * right / len(labels)


def distilled(student: nn.Module, teacher: nn.Module, data: Data, args: argparse.Namespace, seed: int) -> float:
    """Train ``student`` on the logits of ``teacher``, which runs once and never again."""
    with tempfile.TemporaryDirectory() as folder:
        cached = cache_teacher(teacher, DataLoader(data[0], batch_size=500), Path(folder) / "logits.bin")
        weights = DistillationLossWeights(args.distill, 1 - args.distill)

        def add_policies(scheduler: distiller.CompressionScheduler) -> None:
            policy = KnowledgeDistillationPolicy(student, cached, args.temperature, weights)
            scheduler.add_policy(policy, starting_epoch=0, ending_epoch=args.epochs, frequency=1)

        return train(student, data, seed=seed, epochs=args.epochs, add_policies=add_policies, cached=cached)


def new(width: int, seed: int) -> nn.Module:
    """A network with the same first weights in every run of a seed."""
    torch.manual_seed(seed)
    return network(width)


def pruned(many: Data, few: Data, args: argparse.Namespace, seed: int) -> Results:
    """95 % of the convolutions' weights go in the first half of a fine-tuning, with and without the dense teacher."""
    dense = new(16, seed)
    results = {"dense": train(dense, many, seed=seed, epochs=args.teacher_epochs)}
    for name, has_teacher in (("pruned, labels alone", False), ("pruned, dense self as teacher", True)):
        model = copy.deepcopy(dense)

        def add_policies(scheduler: distiller.CompressionScheduler, has_teacher: bool = has_teacher) -> None:
            weights = [name for name, parameter in scheduler.parameters.items() if parameter.dim() == 4]
            pruner = AutomatedGradualPruner("gradual", 0.5, 0.95, weights)
            scheduler.add_policy(PruningPolicy(pruner), starting_epoch=0, ending_epoch=args.epochs // 2, frequency=1)
            if has_teacher:  # "self": a frozen copy of the model as it is when the policy begins
                shares = DistillationLossWeights(args.distill, 1 - args.distill)
                policy = KnowledgeDistillationPolicy(scheduler.model, "self", args.temperature, shares)
                scheduler.add_policy(policy, starting_epoch=0, ending_epoch=args.epochs, frequency=1)

        results[name] = train(model, few, seed=seed, epochs=args.epochs, lr=0.02, add_policies=add_policies)
    return results


def student(many: Data, few: Data, args: argparse.Namespace, seed: int) -> Results:
    """Students of width 8 and 4 from a teacher of width 24, the small one also through an assistant of width 10."""
    teacher, assistant = new(24, seed + 10), new(10, seed + 20)
    results = {"teacher, width 24": train(teacher, many, seed=seed, epochs=args.teacher_epochs)}
    for width in (8, 4):
        name = f"student of width {width}, "
        results[name + "labels alone"] = train(new(width, seed), few, seed=seed, epochs=args.epochs)
        results[name + "teacher"] = distilled(new(width, seed), teacher, few, args, seed)
    results["assistant of width 10, teacher"] = distilled(assistant, teacher, few, args, seed)
    results["student of width 4, assistant"] = distilled(new(4, seed), assistant, few, args, seed)
    return results


EXPERIMENTS = {"pruned": pruned, "student": student}


def main() -> None:
    """Run one experiment for every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("data", nargs="?", help="folder of Fashion-MNIST's four files (default: the installed ones)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--teacher-epochs", type=int, default=5)
    parser.add_argument("--teacher-images", type=int, default=12000)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--distill", type=float, default=0.9, help="weight of the teacher; the labels have the rest")
    args = parser.parse_args()

    torch.set_num_threads(1)
    many, few = load_data(args)
    table: dict[str, list[float]] = {}
    for seed in args.seeds:
        begun = time.perf_counter()
        for name, value in EXPERIMENTS[args.experiment](many, few, args, seed).items():
            table.setdefault(name, []).append(value)
            print(f"seed {seed}  {name}: {value:.2f}", flush=True)
        print(f"seed {seed} took {time.perf_counter() - begun:.0f} s", flush=True)
    print(f"\ntop-1 in percent on 10,000 test images, seeds {args.seeds}")
    for name, values in table.items():
        print(f"{name:32} mean {statistics.mean(values):6.2f}   from {min(values):.2f} to {max(values):.2f}")


if __name__ == "__main__":
    main()
