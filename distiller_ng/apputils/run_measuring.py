"""What a recorded run is given and measures: a schedule, numbers, losses of an epoch, activations (layer 5)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from distiller_ng.apputils.run_results import undisturbed
from distiller_ng.core._batches import split_batch
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.data_loggers import collect_histograms
from distiller_ng.data_loggers.base import plain_number
from distiller_ng.errors import ArgumentError, CalibrationError
from distiller_ng.names import unwrap
from distiller_ng.ops.modules import convert_tensors_recursively_to, model_device

__all__ = [
    "EpochLosses",
    "already_done",
    "doubts",
    "learning_rate",
    "named_numbers",
    "save_activation_histograms",
    "schedule_text",
    "validations",
]


#: Names in files for what people call these in code.
_NAMES = {"top1": "Top1", "top5": "Top5", "loss": "Loss", "acc": "Accuracy", "accuracy": "Accuracy"}


class EpochLosses:
    """Running means over the minibatches of an epoch, added up on the device the losses are on.

    After ``add({"loss": 1.0})`` and ``add({"loss": 2.0, "extra": 4.0})``, :meth:`means` is ``{"loss": 1.5, "extra":
    2.0}``: a policy that adds nothing in a minibatch counts as 0.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        #: Minibatches so far.
        self.count = 0

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """One minibatch."""
        self.count += 1
        for name, value in losses.items():
            known = self._sums.get(name)
            self._sums[name] = value.detach() if known is None else known + value.detach()

    def means(self) -> dict[str, float]:
        """Fetch the numbers."""
        return {name: float(value) / self.count for name, value in self._sums.items()}


def save_activation_histograms(model: nn.Module, batches: Iterable[Any], folder: Path) -> None:
    """Write ``acts_histograms.pt``: histograms of all activations on ``batches``, which the model runs on twice.

    The model is in evaluation mode meanwhile; modes and random generators are put back. Raises
    :class:`CalibrationError` for batches it does not run on.
    """
    given = batches if isinstance(batches, Sequence) or hasattr(batches, "__len__") else list(batches)
    bare = unwrap(model)
    device = model_device(bare)

    def run(model: nn.Module) -> None:
        for batch in given:
            args, kwargs, _ = split_batch(batch)
            model(*convert_tensors_recursively_to(tuple(args), device), **dict(kwargs))

    modes = {module: module.training for module in bare.modules()}
    bare.eval()
    try:
        with undisturbed():
            collect_histograms(bare, run, save_dir=folder)
    except (RuntimeError, TypeError, ValueError) as error:
        raise CalibrationError(f"the model does not run on these batches: {error}") from error
    finally:
        for module, training in modes.items():
            module.training = training


def schedule_text(schedule: str | os.PathLike[str] | Mapping[str, Any] | None) -> str:
    """A schedule to keep: the text of a file, a dictionary as YAML; raises :class:`ArgumentError` without the file."""
    if schedule is None:
        return ""
    if isinstance(schedule, Mapping):
        return yaml.safe_dump(dict(schedule), sort_keys=False, allow_unicode=True)
    path = Path(schedule).expanduser()
    if not path.is_file():
        raise ArgumentError(f"there is no schedule {os.fspath(schedule)!r}", argument=("schedule",))
    return path.read_text(encoding="utf-8")


def named_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Results under the names they have in files: ``{"top1": tensor(91.0)}`` -> ``{"Top1": 91.0}``.

    Raises :class:`ArgumentError` for anything that is no number.
    """
    found = {}
    for name, value in values.items():
        plain = plain_number(value)
        if isinstance(plain, bool) or not isinstance(plain, int | float):
            raise ArgumentError(f"log({name}=...) takes a number, got {value!r}", argument=(name,))
        found[_NAMES.get(name, name)] = float(plain)
    return found


def already_done(scheduler: CompressionScheduler, epoch: int) -> tuple[int, int]:
    """Minibatches of ``epoch`` that ran before the checkpoint this run goes on from, and how many it has; else 0, 0."""
    point = scheduler.resume_point
    return (0, 0) if point is None or point.epoch != epoch else (point.minibatch_id, point.minibatches_per_epoch)


def learning_rate(scheduler: CompressionScheduler) -> dict[str, float]:
    """``{"LR": 0.1}`` of the first group of parameters; empty without an optimizer."""
    groups = [] if scheduler.optimizer is None else scheduler.optimizer.param_groups
    return {"LR": float(groups[0]["lr"])} if groups else {}


def validations(events: Iterable[Mapping[str, Any]]) -> Iterator[tuple[dict[str, float], int]]:
    """``(results, epoch)`` of every validation among the lines of ``metrics.jsonl``."""
    for event in events:
        if str(event.get("group")).endswith("Validation"):
            values = {name: value for name, value in event["metrics"].items() if value is not None}
            yield values, int(event["epoch"])


def doubts(not_finite: Iterable[int], top1: float | None) -> list[str]:
    """Warnings about what was recorded: epochs whose loss was no finite number, a fraction where percent is meant."""
    epochs = sorted(not_finite)
    named = ", ".join(map(str, epochs[:3])) + (f" and {len(epochs) - 3} more" if len(epochs) > 3 else "")
    found = [f"the loss was not a finite number in epoch{'s' * (len(epochs) > 1)} {named}"] if epochs else []
    if top1 is not None and 0 < top1 <= 1:
        found.append(f"top1 is percent, and {top1:.4g} was logged: if it is a fraction, log 100 times as much")
    return found
