"""The teacher that ``--kd-*`` flags ask for, and the policy that follows it (layer 5)."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping

from torch import nn

from distiller_ng.apputils.checkpoints import load_lean_checkpoint
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import ArgumentError, listed
from distiller_ng.knowledge_distillation import DistillationLossWeights
from distiller_ng.models import create_model
from distiller_ng.policies.knowledge_distillation import KnowledgeDistillationPolicy

__all__ = ["add_distillation_policy", "load_teachers"]

logger = logging.getLogger(__name__)


def load_teachers(args: argparse.Namespace) -> dict[str, nn.Module]:
    """The teacher of ``--kd-teacher`` under its architecture's name, with the weights of ``--kd-resume``; else nothing.

    Schedules with ``distillers`` name it, too: ``teacher: resnet56_cifar``. Raises :class:`ArgumentError` for flags
    that do not go together, :class:`CheckpointError` and ``FileNotFoundError`` for the weights.
    """
    arch, weights = getattr(args, "kd_teacher", None), getattr(args, "kd_resume", "")
    if getattr(args, "kd_pretrained", False):
        raise ArgumentError("--kd-pretrained: nothing is downloaded. Give a file with the weights: --kd-resume FILE")
    if not arch:
        if weights:
            raise ArgumentError("--kd-resume holds a teacher's weights: name its architecture, --kd-teacher ARCH")
        return {}
    if args.evaluate:
        return {}
    teacher = create_model(False, args.dataset, arch).to(args.device)
    if weights:
        load_lean_checkpoint(teacher, weights, args.device)
        logger.info("Teacher: %s with the weights of %s", arch, weights)
    else:
        logger.warning("The teacher %s has random weights, which teach nothing: give --kd-resume FILE", arch)
    return {arch: teacher}


def add_distillation_policy(
    args: argparse.Namespace, scheduler: CompressionScheduler, teachers: Mapping[str, nn.Module]
) -> None:
    """Add the policy of the ``--kd-*`` flags to ``scheduler``, from ``--kd-start-epoch`` to the end of training.

    Without a teacher nothing is added, and neither to a schedule that distills already: it has the teacher by name and
    weights of its own. ``args.kd_policy`` is set to the policy, or None. Raises :class:`ArgumentError`.
    """
    args.kd_policy = None
    if not teachers or any(isinstance(policy, KnowledgeDistillationPolicy) for policy, _ in scheduler.schedule):
        return
    if len(teachers) > 1:
        raise ArgumentError(f"several teachers ({listed(teachers)}) need a schedule whose distillers name them")
    start = getattr(args, "kd_start_epoch", 0)
    if start >= args.epochs:
        raise ArgumentError(f"--kd-start-epoch {start} is not before the last of --epochs {args.epochs}")
    shares = (("kd_distill_wt", 0.5), ("kd_student_wt", 0.5), ("kd_teacher_wt", 0.0))
    weights = DistillationLossWeights(*(getattr(args, name, default) for name, default in shares))
    (teacher,) = teachers.values()
    args.kd_policy = KnowledgeDistillationPolicy(scheduler.model, teacher, getattr(args, "kd_temp", 1.0), weights)
    scheduler.add_policy(args.kd_policy, starting_epoch=start, ending_epoch=args.epochs, frequency=1)
