"""The training loop for configurations without a ``train_func``, and the accuracy it is judged by."""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from distiller_ng.compat.neural_compressor._data import build_loader, build_optimizer
from distiller_ng.compat.neural_compressor._settings import TrainSettings
from distiller_ng.compat.neural_compressor.experimental.common._base import logits_of
from distiller_ng.compat.neural_compressor.experimental.common.model import forward, moved
from distiller_ng.errors import LifecycleError
from distiller_ng.ops.modules import model_device

if TYPE_CHECKING:
    from distiller_ng.compat.neural_compressor.experimental.distillation import Distillation

__all__ = ["run", "top_k"]

logger = logging.getLogger(__name__)


def run(distillation: Distillation, settings: TrainSettings) -> None:
    """Train the student as ``settings`` say, with the loader and optimizer of ``distillation`` where they are set.

    Batches are ``(inputs, labels)``. Raises :class:`LifecycleError` when neither code nor configuration has a loader
    or an optimizer.
    """
    if distillation.student_model is None:
        raise LifecycleError("set distiller.student_model = module first")
    student = distillation.student_model.model
    if distillation.train_dataloader is None:
        if settings.dataloader is None:
            raise _missing("train_dataloader", "distillation.train.dataloader")
        distillation.train_dataloader = build_loader(settings.dataloader)
    if distillation.optimizer is None:
        if settings.optimizer is None:
            raise _missing("optimizer", "distillation.train.optimizer")
        distillation.optimizer = build_optimizer(settings.optimizer, student)
    loader, optimizer = distillation.train_dataloader, distillation.optimizer
    distillation.on_train_begin()
    criterion, device = distillation.active_criterion, model_device(student)
    for epoch in range(settings.start_epoch, settings.end_epoch):
        student.train()
        if hasattr(getattr(loader, "sampler", None), "set_epoch"):
            loader.sampler.set_epoch(epoch)
        total, steps = 0.0, 0
        for step, (inputs, target) in enumerate(islice(loader, settings.iteration)):
            distillation.on_step_begin(step)
            inputs, target = moved(inputs, device), moved(target, device)
            output = forward(student, inputs)
            loss = distillation.on_after_compute_loss(
                inputs, output, criterion.student_targets_loss_cal(output, target)
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total, steps = total + loss.item(), steps + 1
        logger.info("epoch %d: mean loss %.4f", epoch, total / max(steps, 1))
        distillation.on_epoch_end()


@torch.no_grad()
def top_k(model: nn.Module, loader: Any, k: int) -> float:
    """The share of samples (0..1) whose label is among the ``k`` largest logits; the model's mode is given back."""
    was_training, device = model.training, model_device(model)
    model.eval()
    right, seen = 0, 0
    for inputs, target in loader:
        logits = logits_of(forward(model, moved(inputs, device)), "model")
        best = logits.topk(min(k, logits.shape[1]), 1).indices
        right += int((best == moved(target, device).view(-1, 1)).any(1).sum())
        seen += len(best)
    model.train(was_training)
    return right / max(seen, 1)


def _missing(attribute: str, section: str) -> LifecycleError:
    return LifecycleError(
        f"there is no train_func: set one, or distiller.{attribute}, or write {section} in the configuration"
    )
