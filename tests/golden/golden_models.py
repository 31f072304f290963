"""Which model each golden schedule is for. ImageNet models keep their widths; those we do not have are toys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from torch import nn

from distiller_ng.models import RNNModel, create_model

SCHEDULES = Path(__file__).parent / "schedules"
#: Files whose names lead to a model of tens of millions of weights.
HEAVY = ("alexnet_agp", "alexnet_sensitivity", "resnet50")


def toy(names: list[str]) -> nn.Module:
    """A model with just these parameter names (wrapper parts left out): 8x8 convolutions of size 1."""
    root = nn.Module()
    for name in names:
        *path, last, _ = [part for part in name.split(".") if part != "module"]
        parent = root
        for part in path:
            if part not in dict(parent.named_children()):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(last, nn.Conv2d(8, 8, 1, bias=False))
    return root


def named_weights(path: Path) -> list[str]:
    """Every parameter a file's pruners name."""
    pruners = yaml.safe_load(path.read_text()).get("pruners", {})
    lists = [p["weights"] if isinstance(p["weights"], list) else [p["weights"]] for p in pruners.values()]
    return [name for names in lists for name in names]


def language_model() -> nn.Module:
    """Two LSTM layers whose decoder is tied to the embedding."""
    return RNNModel("LSTM", 60, 16, 16, 2, tie_weights=True)


def small() -> nn.Module:
    """For schedules that only set learning rates."""
    return nn.Linear(3, 2)


def zoo(dataset: str, arch: str) -> Callable[[], nn.Module]:
    """A model of the zoo."""
    return lambda: create_model(False, dataset, arch)


def builder(name: str) -> Callable[[], nn.Module]:
    """What builds the model of the golden schedule ``name``."""
    path = SCHEDULES / f"{name}.yaml"
    content = yaml.safe_load(path.read_text())
    if not content.get("pruners") and not content.get("regularizers"):
        return small
    if name.startswith(("resnext101", "maskrcnn", "vgg19")):
        return lambda: toy(named_weights(path))
    if name.startswith("language_model"):
        return language_model
    if name == "resnet50_pruning_for_accuracy":
        return zoo("imagenet", "resnet18")
    first = name.split("_")[0]
    known = {
        "alexnet": zoo("imagenet", "alexnet"),
        "mobilenet": zoo("imagenet", "mobilenet"),
        "resnet18": zoo("imagenet", "resnet18"),
        "resnet50": zoo("imagenet", "resnet50"),
        "resnet20": zoo("cifar10", "resnet20_cifar"),
        "resnet56": zoo("cifar10", "resnet56_cifar"),
        "plain20": zoo("cifar10", "plain20_cifar"),
        "vgg16": zoo("cifar10", "vgg16_cifar"),
        "simplenet": zoo("mnist", "simplenet_mnist"),
    }
    return known[first]


def example_inputs(name: str) -> tuple[torch.Tensor]:
    """One small input for the models that must really run."""
    side = 64 if name.startswith("resnet50") else 32
    return (torch.randn(1, 3, side, side),)
