"""Recipes on Fashion-MNIST, measured: sparse from scratch, and a sparse network that learns a new task.

    python train.py scratch gradual.yaml obs.yaml acdc.yaml movement.yaml   # each from the same first weights
    python train.py transfer                                                # gradual.yaml, then sparse_transfer.md

prints a line for each run and, at the end, mean and range over the seeds. README.md has the results. Networks learn
from the first ``--images`` training images only, nothing is augmented; all are measured on the 10,000 test images (of
the new task: those of its classes).
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import distiller_ng as distiller
from distiller_ng.apputils.datasets.fashion_mnist import FashionMnist

HERE = Path(__file__).parent
Split = tuple[Tensor, Tensor]
Data = tuple[Split, Split]
Results = dict[str, float]


def network(classes: int, width: int = 16) -> nn.Module:
    """Three convolutions with ``width``, ``2 * width`` and ``4 * width`` filters, and a classifier; 24,000 weights."""
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(2 * width, 4 * width, 3, padding=1, bias=False), nn.BatchNorm2d(4 * width), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes)),
    )


def load_data(folder: str | None, images: int) -> Data:
    """The first training images and all test images, ready to be fed to a network."""
    source = FashionMnist(folder, augment=False)
    train, test = source.train_set(), source.test_set()
    return (train.transform(train.images[:images]), train.labels[:images]), (test.transform(test.images), test.labels)


def of_classes(data: Data, first: int, last: int) -> Data:
    """The images of some classes, numbered from 0."""

    def part(split: Split) -> Split:
        wanted = (split[1] >= first) & (split[1] <= last)
        return split[0][wanted], split[1][wanted] - first

    return part(data[0]), part(data[1])


def train(
    model: nn.Module,
    data: Data,
    recipe: Path | str,
    *,
    seed: int,
    args: argparse.Namespace,
    teachers: Mapping[str, nn.Module] | None = None,
    recipe_args: Mapping[str, float] | None = None,
) -> float:
    """An ordinary loop; the recipe says for how long, and all the rest. Top-1 on the test images at its end."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    scheduler = distiller.file_config(
        model, optimizer, recipe, teachers=teachers, recipe_args=recipe_args, example_inputs=data[0][0][:2]
    )
    epochs = round(max(window.end for _, window in scheduler.schedule if window.end != float("inf")))
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(TensorDataset(*data[0]), args.batch_size, shuffle=True, generator=generator)
    criterion = nn.CrossEntropyLoss()
    for _ in scheduler.epochs(epochs):
        model.train()
        for images, labels in scheduler.minibatches(loader):
            optimizer.zero_grad()
            scheduler.backward(criterion(model(images), labels))
            optimizer.step()
    return top1(model, *data[1])


@torch.no_grad()
def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Accuracy in percent."""
    model.eval()
    batches = zip(images.split(1000), labels.split(1000), strict=True)
    return 100.0 * sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / len(labels)


def sparsity(model: nn.Module) -> float:
    """The share of zeros among the weights of convolutions and of the classifier, in percent."""
    weights = [m._parameters["weight"] for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    zeros = sum(int((w == 0).sum()) for w in weights if w is not None)
    return 100.0 * zeros / sum(w.numel() for w in weights if w is not None)


def scratch(data: Data, args: argparse.Namespace, seed: int) -> Results:
    """Every recipe from the same first weights, and the same training without pruning."""
    results: Results = {}
    plain = (HERE / "gradual.yaml").read_text().split("pruning_modifiers:")[0]
    for name, recipe in [("dense", plain), *((Path(text).stem, HERE / text) for text in args.recipes)]:
        torch.manual_seed(seed)
        model = network(10)
        known = {"num_epochs": args.epochs} if args.epochs else None
        results[name] = train(model, data, recipe, seed=seed, args=args, recipe_args=known)
        results[f"{name}, % zeros"] = sparsity(model)
    return results


def transfer(data: Data, args: argparse.Namespace, seed: int) -> Results:
    """Sparse on five classes of clothes, then on the other five; its teacher is dense and knows only those."""
    first, second = of_classes(data, 0, 4), of_classes(data, 5, 9)
    known = {"num_epochs": args.epochs} if args.epochs else None
    torch.manual_seed(seed)
    sparse, teacher = network(5), network(5)
    results = {
        "sparse, first task": train(sparse, first, HERE / "gradual.yaml", seed=seed, args=args, recipe_args=known)
    }
    plain = (HERE / "gradual.yaml").read_text().split("pruning_modifiers:")[0]
    results["dense teacher, second task"] = train(teacher, second, plain, seed=seed, args=args, recipe_args=known)
    text = (HERE / "sparse_transfer.md").read_text()
    alone = text.replace(text[text.index("distillation_modifiers:") : text.index("quantization_modifiers:")], "")
    for name, recipe in (("sparse, 8 bits, labels alone", alone), ("sparse, 8 bits, with the teacher", text)):
        model = copy.deepcopy(sparse)
        nn.init.kaiming_uniform_(model[-1].weight)  # type: ignore[index, union-attr]
        results[name] = train(
            model, second, recipe, seed=seed, args=args, teachers={"teacher": teacher}, recipe_args=known
        )
        results[f"{name}, % zeros"] = sparsity(model)
    return results


def main() -> None:
    """Run one experiment for every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=("scratch", "transfer"))
    parser.add_argument("recipes", nargs="*", default=["gradual.yaml", "obs.yaml", "acdc.yaml", "movement.yaml"])
    parser.add_argument("--data", help="folder of Fashion-MNIST's four files (default: the installed ones)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=float, help="replaces num_epochs of every recipe")
    args = parser.parse_args()

    torch.set_num_threads(1)
    data = load_data(args.data, args.images)
    table: dict[str, list[float]] = {}
    for seed in args.seeds:
        begun = time.perf_counter()
        run = scratch if args.experiment == "scratch" else transfer
        for name, value in run(data, args, seed).items():
            table.setdefault(name, []).append(value)
            print(f"seed {seed}  {name}: {value:.2f}", flush=True)
        print(f"seed {seed} took {time.perf_counter() - begun:.0f} s", flush=True)
    print(f"\ntop-1 in percent on the test images, seeds {args.seeds}")
    for name, values in table.items():
        print(f"{name:42} mean {statistics.mean(values):6.2f}   from {min(values):.2f} to {max(values):.2f}")


if __name__ == "__main__":
    main()
