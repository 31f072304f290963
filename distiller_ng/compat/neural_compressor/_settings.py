"""What a Neural Compressor configuration says about distillation, checked, as plain values.

Every mistake of a file is reported at once, as ``file:line:column: path: message``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distiller_ng.compat.neural_compressor._section import Section
from distiller_ng.config.documents import Document, load_document, read_text
from distiller_ng.config.marks import NOWHERE, Marks
from distiller_ng.config.plain import plain_data
from distiller_ng.config.problems import DICT_SOURCE, Report, file_problem, shown
from distiller_ng.errors import ArgumentError

__all__ = [
    "DATASETS",
    "LoaderSettings",
    "OptimizerSettings",
    "Settings",
    "TrainSettings",
    "read_dict",
    "read_file",
]

#: Data sets a YAML may name: its keys, and what each is called in ``distiller_ng.apputils`` (None: a folder of images).
DATASETS: Mapping[str, str | None] = {
    "ImageFolder": None,
    "CIFAR10": "cifar10",
    "MNIST": "mnist",
    "FashionMNIST": "fashion-mnist",
}
_TRANSFORMS = ("RandomResizedCrop", "Resize", "CenterCrop", "RandomHorizontalFlip", "ToTensor", "Normalize")
_OPTIMIZERS = ("SGD", "Adam", "AdamW")
_CRITERIA: Mapping[str, tuple[str, ...]] = {
    "KnowledgeDistillationLoss": ("temperature", "loss_types", "loss_weights", "reduction"),
    "IntermediateLayersKnowledgeDistillationLoss": (
        "layer_mappings",
        "loss_types",
        "loss_weights",
        "add_origin_loss",
        "reduction",
    ),
}
_FRAMEWORKS = ("pytorch", "pytorch_fx", "pytorch_ipex")
_OTHER_SECTIONS = (
    "device", "quantization", "pruning", "graph_optimization", "mixed_precision", "model_conversion", "use_bf16", "nas",
    "auto_distillation", "version",
)  # fmt: skip
_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderSettings:
    """A ``dataloader`` section; ``transform`` holds ``(name, arguments)`` in order."""

    batch_size: int = 1
    shuffle: bool = False
    distributed: bool = False
    drop_last: bool = False
    dataset: str = ""
    dataset_arguments: Mapping[str, Any] = field(default_factory=dict)
    transform: tuple[tuple[str, Mapping[str, Any]], ...] = ()


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """An ``optimizer`` section: a class of ``torch.optim`` and its arguments under torch's names."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """The section ``distillation.train``; epochs run from ``start_epoch`` to ``end_epoch`` (exclusive)."""

    start_epoch: int = 0
    end_epoch: int = 1
    iteration: int | None = None
    frequency: int = 1
    dataloader: LoaderSettings | None = None
    optimizer: OptimizerSettings | None = None
    criterion: tuple[str, Mapping[str, Any]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A whole configuration. ``topk`` is None without an ``evaluation`` section."""

    source: str = DICT_SOURCE
    name: str = ""
    train: TrainSettings = field(default_factory=TrainSettings)
    topk: int | None = None
    eval_dataloader: LoaderSettings | None = None
    random_seed: int | None = None


def read_file(path: str | os.PathLike[str]) -> tuple[Settings, dict[str, Any]]:
    """Settings and plain data of a YAML file; raises :class:`ScheduleError` with everything that is wrong."""
    source = os.fspath(path)
    return _read(load_document(read_text(source, source), source), source)


def read_dict(data: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """Settings and plain data of a dictionary of the shape a file has, which is not changed."""
    plain = plain_data(data, DICT_SOURCE)
    return _read(Document(plain, Marks()), DICT_SOURCE)


def _read(document: Document, source: str) -> tuple[Settings, dict[str, Any]]:
    data = {} if document.data is None else document.data
    if not isinstance(data, dict):
        raise file_problem(source, f"a configuration is a mapping of sections, got {shown(data)}", NOWHERE)
    report = Report(source, document.marks, document.problems, document.warnings)
    top = Section.of(report, (), data).only("model", "distillation", "evaluation", "tuning", *_OTHER_SECTIONS)
    for name in _OTHER_SECTIONS:
        if name in top and name not in ("device", "version"):
            report.warn((name,), f"the section {name!r} plays no part in distillation", at_key=True)
    model = top.section("model").only("name", "framework", "inputs", "outputs")
    model.text("framework", "pytorch", allowed=_FRAMEWORKS)
    topk, loader = _evaluation(top.section("evaluation"))
    settings = Settings(
        source=source,
        name=model.text("name", ""),
        train=_train(top.section("distillation").only("train").section("train")),
        topk=topk,
        eval_dataloader=loader,
        random_seed=_seed(top.section("tuning")),
    )
    report.finish()
    return settings, data


def _seed(tuning: Section) -> int | None:
    if "random_seed" not in tuning:
        return None
    seed = tuning.whole("random_seed", 9527, least=0)
    if seed > _LARGEST_SEED:
        tuning.error("random_seed", f"a seed is a whole number up to {_LARGEST_SEED}, got {seed}")
    return seed


def _train(train: Section) -> TrainSettings:
    train.only(
        "start_epoch", "end_epoch", "epoch", "iteration", "frequency", "dataloader", "optimizer", "criterion",
        "postprocess", "hostfile",
    )  # fmt: skip
    start = train.whole("start_epoch", 0, least=0)
    if "end_epoch" in train and "epoch" in train:
        train.error("epoch", "give either end_epoch or epoch (the number of epochs), not both", at_key=True)
    if "end_epoch" in train:
        end = train.whole("end_epoch", start + 1, least=0)
        if end <= start:
            train.error(
                "end_epoch", f"epochs run from start_epoch {start} to end_epoch {end}, exclusive: there is none"
            )
    else:
        end = start + train.whole("epoch", 1, least=1)
    return TrainSettings(
        start_epoch=start,
        end_epoch=end,
        iteration=train.whole("iteration", 1, least=1) if "iteration" in train else None,
        frequency=train.whole("frequency", 1, least=1),
        dataloader=_loader(train.section("dataloader"), is_train=True) if "dataloader" in train else None,
        optimizer=_optimizer(train) if "optimizer" in train else None,
        criterion=_criterion(train) if "criterion" in train else None,
    )


def _criterion(train: Section) -> tuple[str, Mapping[str, Any]] | None:
    """Name and arguments, after the criterion itself has looked at them."""
    # Here, because the criteria's package imports this one's reader.
    from distiller_ng.compat.neural_compressor.experimental.common.criterion import create_criterion

    chosen = train.choice("criterion", _CRITERIA)
    if chosen is None:
        return None
    name, arguments = chosen
    before = len(train.report.problems)
    arguments.only(*_CRITERIA[name])
    if len(train.report.problems) == before:
        try:
            create_criterion(name, arguments.values)
        except ArgumentError as error:
            train.report.error((*arguments.path, *error.argument), str(error))
    return name, dict(arguments.values)


def _optimizer(train: Section) -> OptimizerSettings | None:
    chosen = train.choice("optimizer", _OPTIMIZERS)
    if chosen is None:
        return None
    name, given = chosen
    if "learning_rate" not in given:
        given.error("learning_rate", "required: the optimizer's learning rate", at_key=True)
    arguments: dict[str, Any] = {
        "lr": given.real("learning_rate", 1e-3),
        "weight_decay": given.real("weight_decay", 0.01 if name == "AdamW" else 0.0),
    }
    if name == "SGD":
        given.only("learning_rate", "momentum", "nesterov", "weight_decay")
        arguments |= {"momentum": given.real("momentum", 0.0), "nesterov": given.flag("nesterov", False)}
        if arguments["nesterov"] and not arguments["momentum"]:
            given.error("nesterov", "Nesterov's method needs a momentum above 0")
        return OptimizerSettings(name, arguments)
    given.only("learning_rate", "beta_1", "beta_2", "epsilon", "amsgrad", "weight_decay")
    betas = (given.real("beta_1", 0.9), given.real("beta_2", 0.999))
    for key, value in zip(("beta_1", "beta_2"), betas, strict=True):
        if value >= 1.0:
            given.error(key, f"expected a number from 0 to below 1, got {value:g}")
    arguments |= {"betas": betas, "eps": given.real("epsilon", 1e-8), "amsgrad": given.flag("amsgrad", False)}
    return OptimizerSettings(name, arguments)


def _evaluation(evaluation: Section) -> tuple[int | None, LoaderSettings | None]:
    accuracy = evaluation.only("accuracy", "performance").section("accuracy")
    accuracy.only("metric", "dataloader", "configs", "postprocess")
    if not accuracy.values:
        return None, None
    topk = accuracy.section("metric").only("topk").whole("topk", 1, least=1)
    loader = _loader(accuracy.section("dataloader"), is_train=False) if "dataloader" in accuracy else None
    return topk, loader


def _loader(loader: Section, *, is_train: bool) -> LoaderSettings | None:
    loader.only("batch_size", "shuffle", "distributed", "last_batch", "dataset", "transform")
    dataset = loader.choice("dataset", DATASETS)
    last = loader.text("last_batch", "rollover", allowed=("rollover", "discard"))
    transform = _transform(loader.section("transform"))
    if dataset is None:
        return None
    name, arguments = dataset
    arguments.only("root") if DATASETS[name] is None else arguments.only("root", "train", "download")
    if DATASETS[name] is None and "root" not in arguments:
        arguments.error("root", "required: the folder with one folder of images a class", at_key=True)
    if arguments.flag("download", False):
        arguments.error("download", "nothing is downloaded: give the folder with the files as root")
    return LoaderSettings(
        batch_size=loader.whole("batch_size", 1, least=1),
        shuffle=loader.flag("shuffle", False),
        distributed=loader.flag("distributed", False),
        drop_last=last == "discard",
        dataset=name,
        dataset_arguments={"root": arguments.text("root", ""), "train": arguments.flag("train", is_train)},
        transform=transform,
    )


def _transform(transform: Section) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    steps: list[tuple[str, Mapping[str, Any]]] = []
    for key in transform.values:
        if key not in _TRANSFORMS:
            transform.only(*_TRANSFORMS)
            continue
        step = transform.section(key)
        arguments: dict[str, Any] = {}
        if key in ("RandomResizedCrop", "Resize", "CenterCrop"):
            step.only("size")
            arguments["size"] = step.whole("size", 224, least=1)
        elif key == "Normalize":
            step.only("mean", "std")
            arguments = {"mean": step.numbers("mean"), "std": step.numbers("std")}
            if not arguments["mean"] or len(arguments["mean"]) != len(arguments["std"]) or min(arguments["std"]) <= 0:
                step.report.error(step.path, "mean and std are lists of the same length, one number a channel; std > 0")
        else:
            step.only()
        steps.append((key, arguments))
    names = [name for name, _ in steps]
    if ("Resize" in names) != ("CenterCrop" in names) or ("Resize" in names and "RandomResizedCrop" in names):
        transform.report.error(
            transform.path, "images of one size come from RandomResizedCrop alone, or from Resize with CenterCrop"
        )
    return tuple(steps)
