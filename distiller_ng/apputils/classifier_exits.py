"""Early exits in the image-classification application: losses, who answers, and what that saves (layer 5)."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from distiller_ng.apputils.classifier_batches import Criterion, loss_of, shape_text
from distiller_ng.apputils.exit_costs import ExitCosts
from distiller_ng.apputils.meters import ClassificationMeter
from distiller_ng.early_exit import Measure, choose_exits, early_exit_loss
from distiller_ng.errors import ArgumentError
from distiller_ng.modules import BranchPoint
from distiller_ng.names import unwrap
from distiller_ng.ops.table import Table

__all__ = [
    "ExitRow",
    "ExitStatistics",
    "ExitsMeter",
    "OutputReader",
    "add_early_exit_arguments",
    "training_loss",
]

logger = logging.getLogger("distiller_ng.app")


def add_early_exit_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--earlyexit_lossweights``, ``--earlyexit_thresholds`` and ``--earlyexit_measure``."""
    group = parser.add_argument_group("Early exit")
    for name, metavar, text in (
        ("lossweights", "W", "share of each exit in the training loss; the network's end gets the rest"),
        ("thresholds", "T", "evaluate as it would run: an exit answers that is surer than its threshold"),
    ):
        group.add_argument(
            f"--earlyexit_{name}", f"--earlyexit-{name}", type=_number, nargs="+", metavar=metavar, help=text
        )
    group.add_argument(
        "--earlyexit_measure",
        "--earlyexit-measure",
        choices=("entropy", "confidence"),
        default="entropy",
        help="sure is an entropy (nats) below the threshold, or a probability from it on (default: entropy)",
    )


class OutputReader:
    """``reader(model(x))``: the logits ``[N, classes]`` of every exit, the network's last.

    A model without exits has one. Exits are what a model returns as a list, or those that
    :class:`~distiller_ng.early_exit.EarlyExitMgr` put in, whose results are taken from it. Of a result with ``logits``,
    as attribute or key, those are taken. A ``criterion`` that is not one of torch's gets any other result, and a tuple
    or a mapping, as it is; for torch's and without one those raise :class:`ArgumentError`.
    """

    def __init__(self, model: nn.Module, criterion: Criterion | None = None) -> None:
        self._takes_anything = criterion is not None and not type(criterion).__module__.startswith("torch.nn.")
        self._points = [module for module in unwrap(model).modules() if isinstance(module, BranchPoint)]

    def __call__(self, result: Any) -> list[Any]:
        """Read one result."""
        if self._takes_anything and not self._points and isinstance(result, tuple | Mapping):
            return [result]
        if isinstance(result, Mapping) and "logits" in result:
            result = result["logits"]
        elif isinstance(getattr(result, "logits", None), Tensor):
            result = result.logits
        if isinstance(result, tuple | list):
            outputs = list(result)
        else:
            outputs = [*(point.output for point in self._points), result]
        for point in self._points:
            point.clear()  # else it holds the graph of gradients until the next pass
        if not outputs or not all(isinstance(output, Tensor) for output in outputs):
            raise ArgumentError(
                "a classifier returns logits [N, classes], or a list of those of each exit; this model returned "
                f"{_kinds(result)}. A loss of your own (--loss file.py:loss) is given whatever a model returns"
            )
        if any(output.shape != outputs[-1].shape for output in outputs):
            shapes = ", ".join(str(list(output.shape)) for output in outputs)
            raise ArgumentError(
                f"the model's exits must all return logits of one shape, got {shapes}. If these are no exits: a loss "
                "of your own (--loss file.py:loss) is given the whole tuple"
            )
        return outputs


def training_loss(
    outputs: Sequence[Any], target: Tensor, criterion: Criterion, weights: Sequence[float] | None
) -> Tensor:
    """The criterion of the one output; of several the sum that :func:`early_exit_loss` makes.

    Raises :class:`ArgumentError` for weights and exits that do not go together.
    """
    if len(outputs) == 1:
        if weights:
            raise ArgumentError("--earlyexit_lossweights: this model has no exits, e.g. resnet20_cifar_earlyexit has")
        return loss_of(criterion, outputs[0], target)
    if not weights:
        exits = len(outputs) - 1
        example = " ".join(["0.3"] * exits) if exits < 4 else "0.1 ..."
        raise ArgumentError(
            f"the model has {exits} exit{'s' if exits > 1 else ''} before its end: say how much each counts in the "
            f"loss, e.g. --earlyexit_lossweights {example}",
            argument=("earlyexit_lossweights",),
        )
    # As a module the criterion is typed; early_exit_loss only calls it.
    return early_exit_loss(outputs, target, criterion, weights)  # type: ignore[arg-type]


# -- who answers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ExitRow:
    """One exit: the fraction of samples it answered, its accuracy on those and on all samples, its MACs.

    Accuracies in percent, None where there was no sample; ``macs`` of one sample, None where they are not known.
    """

    exit: int
    share: float
    top1: float | None
    top5: float | None
    top1_alone: float
    macs: int | None


@dataclass(frozen=True, slots=True)
class ExitStatistics:
    """What early exits were worth in one evaluation; ``macs`` is the mean of a sample, ``plain_macs`` without exits."""

    rows: tuple[ExitRow, ...]
    top1: float
    top5: float
    measure: str
    thresholds: tuple[float, ...]
    macs: float | None
    plain_macs: int | None

    @property
    def saved(self) -> float | None:
        """The fraction of MACs saved against the network without exits; negative if exits cost more than they save."""
        if self.macs is None or not self.plain_macs:
            return None
        return 1.0 - self.macs / self.plain_macs

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows], "saved": self.saved}

    def table(self) -> Table:
        """A row for each exit."""
        rows = []
        for row in self.rows:
            name = f"exit {row.exit}" if row.exit < len(self.rows) - 1 else "end"
            own = ["-" if value is None else f"{value:.2f}" for value in (row.top1, row.top5)]
            macs = "-" if row.macs is None else f"{row.macs:,}"
            rows.append((name, f"{row.share:.1%}", *own, f"{row.top1_alone:.2f}", macs))
        columns = ("Answered by", "Samples", "Top1 (%)", "Top5 (%)", "Top1 if it answered all", "MACs")
        return Table("Early exits", columns, tuple(rows))

    def __str__(self) -> str:
        lines = [str(self.table()), f"Together: top1 {self.top1:.3f}, top5 {self.top5:.3f}"]
        if self.saved is not None and self.macs is not None:
            change = f"{self.saved:.1%} less" if self.saved >= 0 else f"{-self.saved:.1%} more"
            lines.append(
                f"MACs of a sample on average: {self.macs:,.0f}, {change} than {self.plain_macs:,} without exits"
            )
        return "\n".join(lines)

    def log(self) -> None:
        """Log what each exit did, in Distiller's words, and the table."""
        for row in self.rows:
            if row.top1 is not None:
                logger.info("Accuracy Stats for exit %d: top1 = %.3f, top5 = %.3f", row.exit, row.top1, row.top5)
        for row in self.rows[:-1]:
            logger.info("Percent Early Exit %d: %.3f", row.exit, 100 * row.share)
        logger.info(
            "Totals for entire network with early exits: top1 = %.3f, top5 = %.3f\n\n%s\n", self.top1, self.top5, self
        )


class ExitsMeter:
    """Decides, batch by batch, which exit answers, by entropy or confidence and never by the label.

    ``thresholds``, one for each exit before the end; ``measure`` as in :func:`choose_exits`. Raises
    :class:`ArgumentError` for a model with another number of exits.
    """

    def __init__(self, thresholds: Sequence[float], measure: Measure = "entropy") -> None:
        self.thresholds, self.measure = tuple(thresholds), measure
        self._answers = [ClassificationMeter() for _ in range(len(self.thresholds) + 1)]
        self._alone = [ClassificationMeter() for _ in self._answers]
        self._total = ClassificationMeter()
        #: What the model's exits cost, once an evaluation has found out.
        self.costs: ExitCosts | None = None

    @classmethod
    def of(cls, args: argparse.Namespace) -> ExitsMeter | None:
        """What ``--earlyexit_thresholds`` asks for; None without."""
        thresholds = getattr(args, "earlyexit_thresholds", None)
        return cls(thresholds, getattr(args, "earlyexit_measure", "entropy")) if thresholds else None

    def add(self, outputs: Sequence[Tensor], target: Tensor) -> Tensor:
        """One batch's logits of every exit; those that answer, ``[N, classes]``."""
        if len(outputs) == 1:
            raise ArgumentError("--earlyexit_thresholds: this model has no exits, e.g. resnet20_cifar_earlyexit has")
        if len(outputs) != len(self._answers):
            message = f"{len(outputs) - 1} exits before the end need as many thresholds, got {len(self.thresholds)}"
            raise ArgumentError(f"--earlyexit_thresholds: {message}", argument=("earlyexit_thresholds",))
        choice = choose_exits(outputs, self.thresholds, self.measure)
        for number, output in enumerate(outputs):
            mine = choice.exits == number
            if bool(mine.any()):
                self._answers[number].add(output[mine], target[mine], {})
            self._alone[number].add(output, target, {})
        self._total.add(choice.logits, target, {})
        return choice.logits

    def statistics(self) -> ExitStatistics:
        """What was seen so far, with MACs where :attr:`costs` are known."""
        images, costs = max(self._total.images, 1), self.costs
        rows = []
        for number, (mine, alone) in enumerate(zip(self._answers, self._alone, strict=True)):
            top1, top5 = (mine.top1, mine.top5) if mine.images else (None, None)
            macs = None if costs is None else costs.exits[number]
            rows.append(ExitRow(number, mine.images / images, top1, top5, alone.top1, macs))
        mean = None if costs is None else math.fsum(row.share * (row.macs or 0) for row in rows)
        return ExitStatistics(
            tuple(rows),
            self._total.top1,
            self._total.top5,
            self.measure,
            self.thresholds,
            mean,
            None if costs is None else costs.plain,
        )


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number from 0 on, got {text}")
    return value


def _kinds(result: Any) -> str:
    if isinstance(result, tuple | list):
        return f"a {type(result).__name__} of {', '.join(type(one).__name__ for one in result) or 'nothing'}"
    return shape_text(result) if isinstance(result, Tensor) else f"a {type(result).__name__}"
