"""Neural Compressor's ``Distillation``: a training function with hooks, or a whole training from a YAML (layer 5)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.optim import Optimizer

from distiller_ng.compat.neural_compressor import _training
from distiller_ng.compat.neural_compressor._data import build_loader
from distiller_ng.compat.neural_compressor._settings import Settings
from distiller_ng.compat.neural_compressor.conf.config import ConfigurationLike, DistillationConf
from distiller_ng.compat.neural_compressor.experimental.common.criterion import (
    Criterion,
    PyTorchKnowledgeDistillationLoss,
    create_criterion,
)
from distiller_ng.compat.neural_compressor.experimental.common.model import Model, as_model
from distiller_ng.errors import ArgumentError, LifecycleError
from distiller_ng.knowledge_distillation.cache import CachedTeacher
from distiller_ng.utils import set_seed

__all__ = ["Distillation"]

logger = logging.getLogger(__name__)

TrainFunction: TypeAlias = "Callable[[nn.Module], Any]"
EvalFunction: TypeAlias = "Callable[[nn.Module], float]"


class Distillation:
    """Trains ``student_model`` with the help of ``teacher_model``, as Neural Compressor 1.x does.

    ``conf_fname_or_obj`` is a YAML file, a :class:`DistillationConf`, a dictionary, or None. Set ``student_model`` and
    ``teacher_model`` (modules, or ``common.Model(module)``), then either ``train_func`` (called with the student's
    module; it calls the hooks below), or ``train_dataloader`` and ``optimizer``, or leave those to the YAML.
    ``criterion`` is ``PyTorchKnowledgeDistillationLoss`` unless set or configured. With an ``eval_func`` (module ->
    score, more is better), or an ``eval_dataloader`` (top-1), the student is scored every ``eval_frequency`` epochs and
    :meth:`fit` gives it back with the weights of the best epoch.

    Example::

        distiller = Distillation("distillation.yaml")
        distiller.student_model, distiller.teacher_model = student, teacher
        best = distiller.fit().model

    Raises what :class:`DistillationConf` raises.
    """

    def __init__(self, conf_fname_or_obj: ConfigurationLike = None) -> None:
        held = conf_fname_or_obj
        self.conf = held if isinstance(held, DistillationConf) else DistillationConf(held)
        self.eval_frequency = self.settings.train.frequency
        self.optimizer: Optimizer | None = None
        self.train_func: TrainFunction | None = None
        self.eval_func: EvalFunction | None = None
        self.train_dataloader: Any = None
        self.eval_dataloader: Any = None
        self.best_score: float | None = None
        self.teacher_score: float | None = None
        self._student: Model | None = None
        self._teacher: Model | None = None
        self._criterion: Criterion | None = None
        self._best: dict[str, Any] | None = None
        self._epochs = 0
        self._is_open = False

    # -- what the user sets -----------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """What the configuration says."""
        return self.conf.settings

    @property
    def student_model(self) -> Model | None:
        """The model to train, wrapped: ``student_model.model`` is the module."""
        return self._student

    @student_model.setter
    def student_model(self, value: nn.Module | Model) -> None:
        self._student = as_model(value, "student_model")

    @property
    def teacher_model(self) -> Model | None:
        """The model to learn from, wrapped."""
        return self._teacher

    @teacher_model.setter
    def teacher_model(self, value: nn.Module | Model | None) -> None:
        self._teacher = as_model(value, "teacher_model")

    @property
    def criterion(self) -> Criterion | None:
        """The distillation loss; None takes the configuration's, or ``PyTorchKnowledgeDistillationLoss()``."""
        return self._criterion

    @criterion.setter
    def criterion(self, value: Criterion | None) -> None:
        if value is not None and not isinstance(value, Criterion):
            raise ArgumentError(
                f"criterion is a PyTorchKnowledgeDistillationLoss or a PyTorchIntermediateLayersKnowledgeDistillation"
                f"Loss, got a {type(value).__name__}. The loss against the labels belongs into train_func",
                argument=("criterion",),
            )
        self._criterion = value

    # -- training ---------------------------------------------------------------------------------------------------

    def fit(self) -> Model:
        """Run ``train_func``, or the training of the configuration; the student, wrapped, with its best weights.

        The module is the one that was set. Raises :class:`LifecycleError` for what was not set, and what the training
        raises; hooks on the models are removed in any case.
        """
        student = self._needed_student()
        if self.settings.random_seed is not None:
            set_seed(self.settings.random_seed)
        self._epochs, self._is_open = 0, False
        try:
            if self.train_func is not None:
                self.train_func(student.model)
            else:
                _training.run(self, self.settings.train)
        finally:
            self._close()
        if self._best is not None:
            student.model.load_state_dict(self._best)
            logger.info("Best score of the student: %s", self.best_score)
        self._best = None
        return student

    __call__ = fit

    # -- hooks ------------------------------------------------------------------------------------------------------

    def on_train_begin(self, dataloader: Any = None) -> None:
        """Before the first epoch: layers are watched, teacher and student are scored.

        ``dataloader`` is accepted and not needed: shapes are found in the first step.
        """
        del dataloader
        student = self._needed_student()
        self._is_open, self._epochs = True, 0
        # Hooks before the first pass: a compiled model does not see those that come later.
        criterion = self.active_criterion
        criterion.open(student.model, None if self._teacher is None else self._teacher.model, self.optimizer)
        self._best, self.best_score, self.teacher_score = None, None, None
        has_scores = self._teacher is not None and not isinstance(self._teacher.model, CachedTeacher)
        if self._teacher is not None and has_scores and self._can_score():
            self.teacher_score = self._score(self._teacher.model)
            logger.info("Score of the teacher: %s", self.teacher_score)
        if self._can_score():
            self._keep_if_best(student.model)
            logger.info("Score of the student before training: %s", self.best_score)
        criterion.watch()

    def on_step_begin(self, batch_id: int) -> None:
        """Before the forward pass of a batch: what was captured in the last one is forgotten."""
        del batch_id
        if self._is_open:
            self.active_criterion.clear()

    def on_after_compute_loss(
        self, input: Any, student_output: Any, student_loss: Tensor, teacher_output: Any = None
    ) -> Tensor:
        """The loss to differentiate, from the student's own and what it should learn from the teacher.

        ``input`` is a tensor, a tuple or list (``model(*input)``) or a mapping (``model(**input)``); the teacher runs
        on it unless ``teacher_output`` is given. Raises :class:`LifecycleError` outside a training and without a
        teacher, and :class:`ArgumentError` for outputs that do not fit together.
        """
        if not self._is_open:
            raise LifecycleError("on_after_compute_loss() before on_train_begin(): call that first in train_func")
        return self.active_criterion.combine(input, student_output, student_loss, teacher_output)

    def on_epoch_end(self) -> None:
        """After an epoch: the student is scored every ``eval_frequency`` epochs and the best weights are kept."""
        self._epochs += 1
        student = self._needed_student()
        if self._can_score() and self.eval_frequency > 0 and self._epochs % self.eval_frequency == 0:
            self._keep_if_best(student.model)

    def on_post_forward(self, *args: Any, **kwargs: Any) -> None:
        """Gone in Neural Compressor, too: always raises :class:`LifecycleError`."""
        raise LifecycleError(
            "on_post_forward() was replaced: call loss = on_after_compute_loss(input, student_output, student_loss) "
            "after the loss is computed"
        )

    def on_train_end(self) -> None:
        """After the last epoch of a loop that does not use :meth:`fit`: hooks on the models are removed."""
        self._close()

    # -- internals --------------------------------------------------------------------------------------------------

    def _needed_student(self) -> Model:
        if self._student is None:
            raise LifecycleError("set distiller.student_model = module first")
        return self._student

    @property
    def active_criterion(self) -> Criterion:
        """The criterion in use: the one that was set, else the configuration's, else the default."""
        if self._criterion is None:
            chosen = self.settings.train.criterion
            self._criterion = PyTorchKnowledgeDistillationLoss() if chosen is None else create_criterion(*chosen)
        return self._criterion

    def _close(self) -> None:
        self._is_open = False
        if self._criterion is not None:
            self._criterion.close()

    def _can_score(self) -> bool:
        return self.eval_func is not None or self._evaluation_loader() is not None

    def _evaluation_loader(self) -> Any:
        if self.eval_dataloader is None and self.settings.eval_dataloader is not None:
            self.eval_dataloader = build_loader(self.settings.eval_dataloader)
        return self.eval_dataloader

    def _score(self, model: nn.Module) -> float:
        if self.eval_func is None:
            return _training.top_k(model, self._evaluation_loader(), self.settings.topk or 1)
        score = self.eval_func(model)
        if isinstance(score, Tensor) and score.numel() == 1:
            score = score.item()
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise ArgumentError(
                f"eval_func returned a {type(score).__name__}: it must return one number, more is better",
                argument=("eval_func",),
            )
        return float(score)

    def _keep_if_best(self, model: nn.Module) -> None:
        score = self._score(model)
        if self.best_score is None or score > self.best_score:
            self.best_score = score
            self._best = copy.deepcopy(model.state_dict())
