"""One epoch of training with a compression scheduler, and evaluation (layer 5)."""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from distiller_ng.apputils.classifier_batches import (
    Criterion,
    batches,
    check_labels,
    described,
    loss_of,
    run_model,
    to_device,
    unpacked,
)
from distiller_ng.apputils.classifier_exits import ExitsMeter, OutputReader, training_loss
from distiller_ng.apputils.data_loaders import load_data as load_image_data
from distiller_ng.apputils.exit_costs import exit_costs
from distiller_ng.apputils.meters import ClassificationMeter, ConfusionMatrix, known, scored
from distiller_ng.core.policy import PolicyLoss
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.data_loggers import (
    DataLogger,
    PythonLogger,
    collectors_context,
    log_activation_statistics,
    log_training_progress,
)
from distiller_ng.errors import DistillerError
from distiller_ng.ops.modules import model_device
from distiller_ng.ops.weights import model_sparsity
from distiller_ng.reports.progress import TrainingProgress

__all__ = ["OBJECTIVE_LOSS", "OVERALL_LOSS", "evaluate_model", "load_data", "test", "train", "validate"]

logger = logging.getLogger(__name__)

#: Names of the losses in logs: what the criterion gave, and what was differentiated (with regularizers).
OBJECTIVE_LOSS = "Objective Loss"
OVERALL_LOSS = "Overall Loss"

Loggers: TypeAlias = "DataLogger | Sequence[DataLogger] | None"
Scores: TypeAlias = tuple[float, float, float]


def load_data(
    args: argparse.Namespace,
    fixed_subset: bool = False,
    sequential: bool = False,
    load_train: bool = True,
    load_val: bool = True,
    load_test: bool = True,
) -> Any:
    """The loaders the arguments ask for, as a list (train, validation, test); one alone is not put into a list.

    Raises :class:`DatasetError` for a missing data set.
    """
    train_loader, val_loader, test_loader, _ = load_image_data(
        args.dataset,
        args.arch,
        args.data,
        args.batch_size,
        args.workers,
        args.validation_split,
        args.deterministic,
        args.effective_train_size,
        args.effective_valid_size,
        args.effective_test_size,
        fixed_subset,
        sequential,
        test_only=not (load_train or load_val),
    )
    wanted = [(train_loader, load_train), (val_loader, load_val), (test_loader, load_test)]
    loaders = [loader for loader, is_wanted in wanted if is_wanted]
    return loaders[0] if len(loaders) == 1 else loaders


def train(
    train_loader: Any,
    model: nn.Module,
    criterion: Criterion,
    optimizer: Optimizer,
    epoch: int,
    compression_scheduler: CompressionScheduler | None,
    loggers: Loggers,
    args: argparse.Namespace,
) -> Scores:
    """Train for one epoch, calling the scheduler's minibatch hooks; ``(top1, top5, mean overall loss)``.

    The caller calls ``on_epoch_begin`` and ``on_epoch_end``. Batches are ``(inputs, labels)``, see
    :func:`~distiller_ng.apputils.classifier_batches.unpacked`; a model with exits needs ``args.earlyexit_lossweights``.
    Raises :class:`DistillerError` when the loss is no longer a finite number, since nothing that follows would mean
    anything, and where batches, model and labels do not go together.
    """
    steps = len(train_loader)
    logger.info("Training epoch: %s", described(train_loader))
    device, meter, began = model_device(model), ClassificationMeter(), time.monotonic()
    sparsity, outputs_of = model_sparsity(model) / 100.0, OutputReader(model, criterion)
    weights = getattr(args, "earlyexit_lossweights", None)
    model.train()
    with TrainingProgress() as progress:
        tracked = progress.track(batches(train_loader, "training"), f"epoch {epoch}", total=steps)
        for step, batch in enumerate(tracked):
            inputs, labels = unpacked(batch, "training")
            target = labels.to(device)
            if compression_scheduler is not None:
                compression_scheduler.on_minibatch_begin(epoch, step, steps, optimizer)
            outputs = outputs_of(run_model(model, to_device(inputs, device), "training"))
            check_labels(outputs[-1], labels, criterion, f"epoch {epoch}, minibatch {step}")
            objective = training_loss(outputs, target, criterion, weights)
            losses = _fold(compression_scheduler, objective, epoch, step, steps, optimizer)
            optimizer.zero_grad()
            torch.autograd.backward(losses[OVERALL_LOSS])
            if compression_scheduler is not None:
                compression_scheduler.before_parameter_optimization(epoch, step, steps, optimizer)
            optimizer.step()
            if compression_scheduler is not None:
                compression_scheduler.on_minibatch_end(epoch, step, steps, optimizer)

            meter.add(outputs[-1], target, {name: value.detach() for name, value in losses.items()})
            rate = float(optimizer.param_groups[0]["lr"])
            progress.show(loss=meter.losses[OVERALL_LOSS], lr=rate, sparsity=sparsity, **known(top1=meter.top1))
            if (step + 1) % args.print_freq == 0 or step + 1 == steps:
                _report_step(model, meter, rate, began, epoch, step + 1, steps, loggers, args)
    return meter.top1, meter.top5, meter.losses[OVERALL_LOSS]


def _fold(
    scheduler: CompressionScheduler | None,
    objective: torch.Tensor,
    epoch: int,
    step: int,
    steps: int,
    optimizer: Optimizer,
) -> dict[str, torch.Tensor]:
    """The losses by name, :data:`OVERALL_LOSS` being the one to differentiate."""
    losses = {OBJECTIVE_LOSS: objective, OVERALL_LOSS: objective}
    if scheduler is not None:
        folded = scheduler.before_backward_pass(epoch, step, steps, objective, optimizer, return_loss_components=True)
        if isinstance(folded, PolicyLoss):
            losses[OVERALL_LOSS] = folded.overall_loss
            losses |= {part.name: part.value for part in scheduler.verify_policy_loss(folded)}
    overall = losses[OVERALL_LOSS].item()
    if not math.isfinite(overall):
        raise DistillerError(
            f"the loss became {overall} in epoch {epoch}, minibatch {step}: training diverged. Use "
            "a lower --lr, or a weaker regularizer"
        )
    return losses


def _report_step(
    model: nn.Module,
    meter: ClassificationMeter,
    rate: float,
    began: float,
    epoch: int,
    done: int,
    steps: int,
    loggers: Loggers,
    args: argparse.Namespace,
) -> None:
    seconds = (time.monotonic() - began) / done
    stats = {**meter.losses, **known(Top1=meter.top1, Top5=meter.top5), "LR": rate, "Time": seconds}
    params = model.named_parameters() if args.log_params_histograms else None
    log_training_progress(
        ("Performance/Training/", stats), params, epoch, done, steps, args.print_freq, _listed(loggers)
    )


def validate(
    val_loader: Any,
    model: nn.Module,
    criterion: Criterion,
    loggers: Loggers,
    args: argparse.Namespace,
    epoch: int = -1,
) -> Scores:
    """Measure the model on the validation set: ``(top1, top5, mean loss)``, the accuracies in percent."""
    logger.info("--- validate%s-----------", f" (epoch={epoch})" if epoch > -1 else " ")
    return _evaluate(val_loader, model, criterion, loggers, args, epoch, ExitsMeter.of(args))


def test(
    test_loader: Any,
    model: nn.Module,
    criterion: Criterion,
    loggers: Loggers = None,
    activations_collectors: Any = None,
    args: argparse.Namespace | None = None,
    *,
    exits: ExitsMeter | None = None,
) -> Scores:
    """Measure the model on the test set: ``(top1, top5, mean loss)``.

    ``activations_collectors``, from ``create_activation_stats_collectors``, collect if they have the phase ``"test"``.
    ``exits`` decides who answers in a model with exits, and has the statistics afterwards; without it
    ``args.earlyexit_thresholds`` do.
    """
    logger.info("--- test ---------------------")
    wanted = args or argparse.Namespace()
    with collectors_context((activations_collectors or {}).get("test", {})) as collectors:
        scores = _evaluate(test_loader, model, criterion, loggers, wanted, -1, exits or ExitsMeter.of(wanted))
    if collectors:
        log_activation_statistics(-1, "test", _listed(loggers), collectors["sparsity_ofm"])
    return scores


def evaluate_model(
    test_loader: Any,
    model: nn.Module,
    criterion: Criterion,
    loggers: Loggers,
    activations_collectors: Any = None,
    args: argparse.Namespace | None = None,
    scheduler: CompressionScheduler | None = None,
) -> Scores:
    """What ``--evaluate`` does: :func:`test` with the scheduler's masks applied to the weights first."""
    if scheduler is not None:
        scheduler.mask_all_weights()
    return test(test_loader, model, criterion, loggers, activations_collectors, args)


@torch.no_grad()
def _evaluate(
    loader: Any,
    model: nn.Module,
    criterion: Criterion,
    loggers: Loggers,
    args: argparse.Namespace,
    epoch: int,
    exits: ExitsMeter | None,
) -> Scores:
    steps, every = len(loader), getattr(args, "print_freq", 10)
    what = "validation" if epoch > -1 else "test"
    logger.info("%s", described(loader))
    device, meter, outputs_of = model_device(model), ClassificationMeter(), OutputReader(model, criterion)
    confusion: ConfusionMatrix | None = None
    inputs: Any = None
    was_training = model.training
    model.eval()
    with TrainingProgress() as progress:
        for step, batch in enumerate(progress.track(batches(loader, what), what, total=steps)):
            inputs, labels = unpacked(batch, what)
            target = labels.to(device)
            outputs = outputs_of(run_model(model, to_device(inputs, device), what))
            check_labels(outputs[-1], labels, criterion, f"the {what} loader, minibatch {step}")
            output = outputs[-1] if exits is None else exits.add(outputs, _classes(target))
            meter.add(output, target, {"Loss": loss_of(criterion, output, target)})
            if getattr(args, "display_confusion", False) and (found := scored(output, target)) is not None:
                confusion = confusion or ConfusionMatrix(found[0].shape[1])
                confusion.add(*found)
            if (step + 1) % every == 0:
                stats = {"Loss": meter.losses["Loss"], **known(Top1=meter.top1, Top5=meter.top5)}
                log_training_progress(("", stats), None, epoch, step + 1, steps, every, _consoles(loggers))
    model.train(was_training)
    _report(meter, confusion)
    if exits is not None:
        one = tree_map_only(Tensor, lambda tensor: tensor[:1], inputs)
        exits.costs = exit_costs(model, one)
        exits.statistics().log()
    return meter.top1, meter.top5, meter.losses["Loss"]


def _report(meter: ClassificationMeter, confusion: ConfusionMatrix | None) -> None:
    scores = {**known(Top1=meter.top1, Top5=meter.top5), "Loss": meter.losses["Loss"]}
    logger.info("==> %s\n", "    ".join(f"{name}: {value:.3f}" for name, value in scores.items()))
    if confusion is not None:
        logger.info("==> Confusion:\n%s\n", confusion)


def _classes(target: Tensor) -> Tensor:
    """Labels ``[N]``, also of probabilities ``[N, classes]``."""
    return target.argmax(dim=1) if target.dim() == 2 else target


def _listed(loggers: Loggers) -> list[DataLogger]:
    if loggers is None:
        return []
    return [loggers] if isinstance(loggers, DataLogger) else list(loggers)


def _consoles(loggers: Loggers) -> list[DataLogger]:
    """Only these want to hear of every few steps of an evaluation; files get its result."""
    return [one for one in _listed(loggers) if isinstance(one, PythonLogger)]
