"""The compression scheduler, whole: hooks, state, and the short form of a training loop (layer 1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from distiller_ng.core.resume import capture_rng, loader_generators, restore_rng
from distiller_ng.core.state import StatefulScheduler
from distiller_ng.errors import ArgumentError, LifecycleError

__all__ = ["CompressionScheduler"]

B = TypeVar("B")


class CompressionScheduler(StatefulScheduler):
    """Runs policies at their epochs and minibatches; the hooks have Distiller's signatures.

    In a loop of your own call, in this order, ``on_epoch_begin``, then for each minibatch ``on_minibatch_begin``, the
    forward pass, ``before_backward_pass``, backward, ``before_parameter_optimization``, ``optimizer.step()``,
    ``on_minibatch_end``; then ``on_epoch_end`` and, after the last epoch, ``finish``. Or use the short form::

        for epoch in scheduler.epochs(90):
            for x, y in scheduler.minibatches(loader):
                optimizer.zero_grad()
                scheduler.backward(criterion(model(x), y))
                optimizer.step()

    ``zeros_mask_dict`` may be a registry or a dict of maskers to start from; ``device`` is accepted and ignored.
    ``accumulation_steps`` is the number of minibatches per optimizer step: with more than one, pass the loss already
    divided by it and added losses are divided too. ``example_inputs`` (a tuple) lets components follow the model's
    data flow. Attributes: ``parameters``, ``masks`` (also ``zeros_mask_dict``), ``optimizer``.
    """

    def epochs(self, number: int | None = None) -> Iterator[int]:
        """Yield the epochs up to ``number`` (exclusive) that are still to run, from 0 or from a checkpoint's position.

        Without a number as many as the schedule is made for (:attr:`max_epochs`), as a recipe's ``EpochRangeModifier``
        says.

        Report validation results with :meth:`report` inside the body, and save a checkpoint as the last thing in it:
        a run resumed from there continues with the next epoch. Ends with :meth:`finish`.
        """
        number = self.max_epochs if number is None else number
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ArgumentError(f"the number of epochs is a whole number from 0, got {number!r}")
        if self._resume is not None:
            self._resume.restore_rng()
        life = self._lifecycle
        if life.phase != "idle" and not life.is_restored:
            raise LifecycleError(f"epochs() while epoch {life.epoch} is still open")
        if life.phase != "idle" and self._drained:
            self.on_epoch_end(life.epoch, self.optimizer, metrics=self._metrics or None)
        first = life.epoch if life.phase != "idle" else life.epoch + 1
        for epoch in range(first, number):
            self.on_epoch_begin(epoch, self.optimizer)
            self._drained = False
            yield epoch
            self.on_epoch_end(epoch, self.optimizer, metrics=self._metrics or None)
        self.finish()

    def minibatches(self, loader: Iterable[B], *, accumulate: int = 1, length: int | None = None) -> Iterator[B]:
        """Yield the batches of ``loader`` with the minibatch hooks around each.

        ``accumulate`` minibatches make one optimizer step: step where :attr:`should_step` is true. ``length`` is the
        number of minibatches, for a loader that does not know it. After a resume the batches already seen are skipped
        in the order the interrupted epoch had.
        """
        if accumulate < 1:
            raise ArgumentError(f"accumulate is the number of minibatches per optimizer step, from 1; got {accumulate}")
        self.accumulation_steps = accumulate
        total = length if length is not None else _length(loader)
        epoch = self._lifecycle.epoch
        if self._lifecycle.phase == "idle":
            raise LifecycleError("minibatches() outside an epoch: loop over scheduler.epochs(n) around it")
        iterator, first = self._start(loader, total)
        for minibatch_id in range(first, total):
            try:
                batch = next(iterator)
            except StopIteration:
                raise LifecycleError(
                    f"the loader ended after {minibatch_id} of {total} minibatches: give the real number as length="
                ) from None
            self.on_minibatch_begin(epoch, minibatch_id, total, self.optimizer)
            yield batch
            self.on_minibatch_end(epoch, minibatch_id, total, self.optimizer)
        self._drained = True

    @property
    def should_step(self) -> bool:
        """Whether the open minibatch completes an optimizer step (always, without accumulation)."""
        life = self._lifecycle
        done = life.minibatch_id + 1
        return done % self.accumulation_steps == 0 or done == life.minibatches_per_epoch

    def backward(self, loss: Tensor | None, *, scaler: Any = None) -> Tensor:
        """Fold ``loss`` through the policies, divide it by the accumulation steps, and run backward.

        ``loss`` is the minibatch's own mean loss, undivided; None for one without labels, which is trained on what
        policies add alone. ``scaler`` may be a ``torch.amp.GradScaler``. Returns the
        loss that was differentiated, detached.
        """
        life = self._lifecycle
        life.in_minibatch("backward", life.epoch, life.minibatch_id)
        where = (life.epoch, life.minibatch_id, life.minibatches_per_epoch)
        total, components = self._fold_loss(loss, self._locate(*where), 1.0)
        for observer in self.observers:
            observer.loss_seen(*where, (loss, total), components)
        if self.accumulation_steps > 1:
            total = total / self.accumulation_steps
        (total if scaler is None else scaler.scale(total)).backward()
        if self.should_step:
            self.before_parameter_optimization(*where, self.optimizer)
        return total.detach()

    def report(self, **metrics: float) -> None:
        """Validation results of the open epoch for the policies that want them: ``report(min=val_loss, max=top1)``."""
        self._metrics = {key: float(value) for key, value in metrics.items()}

    def _start(self, loader: Iterable[B], total: int) -> tuple[Iterator[B], int]:
        """An iterator over the epoch's loader, moved to where the epoch stands, and the next minibatch's id."""
        life, resume = self._lifecycle, self._resume
        self._generators = loader_generators(loader)
        self.data.see_loader(loader)
        if hasattr(getattr(loader, "sampler", None), "set_epoch"):
            loader.sampler.set_epoch(life.epoch)  # type: ignore[attr-defined]
        self._resume = None
        if not life.is_restored or life.minibatch_id < 0:
            if resume is not None:
                _set_generators(self._generators, resume.generators)
            self._epoch_rng = {**capture_rng(), "own": self._generator_states()}
            return iter(loader), 0
        if total != life.minibatches_per_epoch:
            raise LifecycleError(
                f"the checkpoint's epoch had {life.minibatches_per_epoch} minibatches, this loader has {total}: resume "
                "with the same data set and batch size"
            )
        if self._epoch_rng is None or resume is None:
            raise LifecycleError(
                "the checkpoint was saved inside an epoch of a loop that did not use minibatches(): restore the "
                "sampler's order and the generators (scheduler.resume_point) and call the hooks yourself"
            )
        restore_rng(self._epoch_rng)
        _set_generators(self._generators, self._epoch_rng["own"])
        iterator = iter(loader)
        for _ in range(life.minibatch_id + 1):
            next(iterator)
        resume.restore_rng()
        if life.phase == "minibatch":  # saved in the loop's body: its end is still owed
            self.on_minibatch_end(life.epoch, life.minibatch_id, total, self.optimizer)
        return iterator, life.minibatch_id + 1


def _length(loader: Iterable[Any]) -> int:
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        raise ArgumentError(
            f"{type(loader).__name__} has no length: say minibatches(loader, length=minibatches_per_epoch)"
        ) from None


def _set_generators(generators: Mapping[str, torch.Generator], states: Mapping[str, Tensor]) -> None:
    for name, generator in generators.items():
        if name in states:
            generator.set_state(states[name].cpu())
