"""Reference pages of what is registered but has no section of its own in a schedule, for ``docs/generate.py``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from formatting import arguments_table, markdown_of, source_link

import distiller_ng
from distiller_ng.apputils.datasets import DATASETS
from distiller_ng.checkpoint.record import TRANSFORMS
from distiller_ng.cli.base import COMMANDS
from distiller_ng.config.classes import ComponentClass
from distiller_ng.config.frontends.base import FRONTENDS
from distiller_ng.config.signatures import arguments_of
from distiller_ng.data_loggers.observers.base import OBSERVERS
from distiller_ng.graph.walker import RULES
from distiller_ng.knowledge_distillation import DISTILLATION_LOSSES
from distiller_ng.knowledge_distillation.distiller import DISTILLERS
from distiller_ng.learning_rate.base import LR_SCHEDULERS
from distiller_ng.models import _zoo, create_model
from distiller_ng.ops.clipping import CLIPPINGS
from distiller_ng.policies.extensions import EXTENSIONS
from distiller_ng.pruning.base import PRUNERS
from distiller_ng.pruning.importance import IMPORTANCES
from distiller_ng.pruning.sparsity_schedules import SPARSITY_SCHEDULES
from distiller_ng.quantization.base import QUANTIZERS
from distiller_ng.quantization.exporters import EXPORTERS
from distiller_ng.registry import Registered, Registry
from distiller_ng.regularization.base import REGULARIZERS
from distiller_ng.reports.compute import layer_costs

__all__ = ["PAGES", "PLACES", "every_registry", "registered_here"]

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Place:
    """Where a registry's classes are described, and where it is told how to add one."""

    registry: Registry[Any]
    where: str
    page: str
    how_to: str


PLACES = (
    Place(PRUNERS, "distiller_ng.pruning:PRUNERS", "pruners.md", "how-to/write-a-pruner.md"),
    Place(IMPORTANCES, "distiller_ng.pruning:IMPORTANCES", "importances.md", "how-to/write-an-importance.md"),
    Place(
        SPARSITY_SCHEDULES,
        "distiller_ng.pruning.sparsity_schedules:SPARSITY_SCHEDULES",
        "pruners.md#sparsity-schedules",
        "how-to/write-a-sparsity-schedule.md",
    ),
    Place(
        REGULARIZERS, "distiller_ng.regularization:REGULARIZERS", "regularizers.md", "how-to/write-a-regularizer.md"
    ),
    Place(
        LR_SCHEDULERS,
        "distiller_ng.learning_rate:LR_SCHEDULERS",
        "learning-rates.md",
        "how-to/write-a-learning-rate-scheduler.md",
    ),
    Place(QUANTIZERS, "distiller_ng.quantization:QUANTIZERS", "quantizers.md", "how-to/write-a-quantizer.md"),
    Place(DISTILLERS, "distiller_ng.knowledge_distillation:DISTILLERS", "distillers.md", "how-to/write-a-distiller.md"),
    Place(
        DISTILLATION_LOSSES,
        "distiller_ng.knowledge_distillation:DISTILLATION_LOSSES",
        "distillation-losses.md",
        "how-to/write-a-distillation-loss.md",
    ),
    Place(EXTENSIONS, "distiller_ng.config:EXTENSIONS", "extensions.md", "how-to/write-a-policy.md"),
    Place(OBSERVERS, "distiller_ng.data_loggers:OBSERVERS", "observers.md", "how-to/write-an-observer.md"),
    Place(CLIPPINGS, "distiller_ng.ops.clipping:CLIPPINGS", "clippings.md", "how-to/write-a-clipping.md"),
    Place(EXPORTERS, "distiller_ng.quantization.exporters:EXPORTERS", "exporters.md", "how-to/write-an-exporter.md"),
    Place(COMMANDS, "distiller_ng.cli.base:COMMANDS", "reference-command.md", "how-to/write-a-command.md"),
    Place(DATASETS, "distiller_ng.apputils.datasets:DATASETS", "data-sets.md", "how-to/add-a-dataset.md"),
    Place(
        TRANSFORMS,
        "distiller_ng.checkpoint:TRANSFORMS",
        "registries.md#changes-of-structure-in-checkpoints",
        "how-to/change-a-models-structure.md",
    ),
    Place(
        FRONTENDS,
        "distiller_ng.config:FRONTENDS",
        "registries.md#front-ends",
        "how-to/read-another-file-format.md",
    ),
)  # fmt: skip


def every_registry() -> dict[str, Registry[Any]]:
    """Every registry that some module of the library defines, by what it holds."""
    found: dict[str, Registry[Any]] = {}
    for module in pkgutil.walk_packages(distiller_ng.__path__, "distiller_ng."):
        if module.name.endswith("__main__") or ".compat." in module.name:
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, Registry):
                found[value.kind] = value
    return found


def registered_here(registry: Registry[Any]) -> dict[type, list[str]]:
    """The library's own classes of a registry with their names; what a user's program registers is not on a page."""
    names: dict[type, list[str]] = {}
    for entry in registry:
        if entry.cls.__module__.startswith(("distiller_ng.", "torch.")):
            names.setdefault(entry.cls, []).append(entry.name)
    return names


def _sections(registry: Registry[Any], level: str = "##") -> str:
    """One section a class: its names, docstring, arguments and file."""
    parts = []
    for cls, names in sorted(registered_here(registry).items(), key=lambda pair: pair[1][0].lower()):
        entry = registry.get(names[0])
        aliases = f"Also called {', '.join(f'`{name}`' for name in names[1:])}." if names[1:] else ""
        section = [
            f"{level} {names[0]}",
            aliases,
            markdown_of(cls),
            arguments_table(_component(entry)),
            source_link(cls),
        ]
        parts.append("\n\n".join(part for part in section if part))
    return "\n\n".join(parts)


def _component(entry: Registered[Any]) -> ComponentClass:
    arguments = {name: a for name, a in arguments_of(entry.cls).items() if name not in (*entry.injected, "data_dir")}
    return ComponentClass(entry.name, entry.cls, MappingProxyType(arguments), source=entry.cls)


def data_sets() -> str:
    """Every data set with its sizes, read from the classes."""
    parts = ["| name | channels x height x width | classes |", "|---|---|---|"]
    for entry in DATASETS:
        if entry.cls.__module__.startswith("distiller_ng."):
            source = entry.cls()
            shape = " x ".join(map(str, source.image_shape))
            parts.append(f"| [`{entry.name}`](#{entry.name}) | {shape} | {source.num_classes:,} |")
    return "\n".join(parts) + "\n\n" + _sections(DATASETS)


def models() -> str:
    """Every architecture with its cost on the data set it was designed for; nothing is allocated."""
    by_home: dict[str, list[str]] = {}
    for name in _zoo.zoo_names():
        entry = _zoo._ARCHITECTURES[name]
        by_home.setdefault(entry.home, []).append(name)
    parts = []
    for home in sorted(by_home, key=lambda home: _costs(by_home[home][0])[2]):
        shape = _costs(by_home[home][0])[1]
        parts += [f"## For {home}", f"Costs for one input of {shape}."]
        rows = ["| architecture | parameters | MACs | |", "|---|---:|---:|---|"]
        for name in sorted(by_home[home], key=lambda name: (_costs(name)[3], _costs(name)[4], name)):
            link, _, _, parameters, macs = _costs(name)
            rows.append(f"| `{name}` | {parameters:,} | {macs:,} | {link} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


@cache
def _costs(name: str) -> tuple[str, str, int, int, int]:
    """Link, input's shape, its size, parameters, MACs."""
    with torch.device("meta"):
        model = create_model(False, _zoo._ARCHITECTURES[name].home, name)
        example = torch.zeros(model.input_shape)
        macs = sum(cost.macs for cost in layer_costs(model, example))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    path = source_link(type(model)).partition("(")[2].removesuffix(")")
    link = f"[{path.rpartition('/')[2]}]({path})"
    shape = " x ".join(map(str, model.input_shape[1:]))
    return link, shape, example.numel(), parameters, macs


def registries() -> str:
    """Where everything that can be added is described, and the registered classes that no other page has."""
    rows = ["| what | registry | classes | how to add one |", "|---|---|---|---|"]
    for place in PLACES:
        module, name = place.where.split(":")
        count = len(registered_here(place.registry))
        noun = place.registry.kind.replace("_", " ")
        rows.append(f"| {noun} | `from {module} import {name}` | [{count}]({place.page}) | {_title(place.how_to)} |")
    rows.append(
        f"| rule for an operator | `from distiller_ng.graph.walker import rule` | {len(RULES)} operators "
        f"| {_title('how-to/teach-the-graph-an-operator.md')} |"
    )
    rows.append(
        f"| logger, collector | `from distiller_ng.data_loggers import DataLogger, ActivationStatsCollector` | - "
        f"| {_title('how-to/write-a-logger.md')} |"
    )
    rows.append(
        f"| model by name | `from distiller_ng.models import register_user_model` "
        f"| [{len(_zoo.zoo_names())}](models.md) | {_title('how-to/add-a-model.md')} |"
    )
    parts = [
        "\n".join(rows),
        "## Changes of structure in checkpoints",
        "What a checkpoint replays on a fresh model before it loads weights.",
        _sections(TRANSFORMS, "###"),
        "## Front ends",
        "What reads a file into definitions and policies.",
        _sections(FRONTENDS, "###"),
    ]
    return "\n\n".join(parts)


def _title(page: str) -> str:
    """A link with the page's own heading."""
    text = (FOLDER / page).read_text(encoding="utf-8")
    return f"[{text.partition('# ')[2].partition(chr(10))[0]}]({page})"


#: Pages by file name; see ``docs/generate.py``.
PAGES: Mapping[str, Callable[[], str]] = {
    "importances.md": partial(_sections, IMPORTANCES),
    "observers.md": partial(_sections, OBSERVERS),
    "clippings.md": partial(_sections, CLIPPINGS),
    "distillation-losses.md": partial(_sections, DISTILLATION_LOSSES),
    "exporters.md": partial(_sections, EXPORTERS),
    "data-sets.md": data_sets,
    "models.md": models,
    "registries.md": registries,
}
