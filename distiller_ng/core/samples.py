"""Minibatches for components that look at data outside the training step: gradients, calibration passes (layer 1).

One contract for all of them: a :class:`GradientSampler` makes the gradients of the loss on minibatches, with the model
in eval mode and everything else as it was. The scheduler has one (:attr:`StepContext.data`): the user's own, or one
made from the loader of the training loop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from distiller_ng.core._batches import Batch, called_builder, fresh_loader, moved, onto, split_batch
from distiller_ng.core._default_loss import default_loss
from distiller_ng.core._forward import ForwardPass, StandIn
from distiller_ng.core.resume import capture_rng, loader_generators, restore_rng
from distiller_ng.errors import ArgumentError, CalibrationError
from distiller_ng.names import unwrap

__all__ = ["ForwardPass", "GradientSampler", "GradientSamplerLike", "Loss", "SampleSource"]

#: ``loss(outputs, target)``: a scalar to differentiate.
Loss: TypeAlias = Callable[[Any, Any], Tensor]
#: A sampler, the mapping that SparseML takes as ``grad_sampler``, or anything that gives minibatches.
GradientSamplerLike: TypeAlias = "GradientSampler | Mapping[str, Any] | Iterable[Any]"


class GradientSampler:
    """Gradients of the loss on minibatches, and plain forward passes over them.

    ``batches``: minibatches, looked through anew each time they are needed (a ``DataLoader``, a list), or a function
    that returns such. A minibatch is ``(inputs..., target)``, a mapping with ``labels``, or only inputs. ``loss``:
    ``loss(outputs, target)``; left out, it is what the model returns itself (``outputs.loss``), cross-entropy for whole
    numbers as targets, and the mean squared error for floating point targets of the outputs' shape.

    While it samples, the model is in eval mode, gradients are neither read nor written, random generators are put back
    afterwards, and a loader in use by the training loop goes on where it was.

    Example: ``GradientSampler(loader, nn.CrossEntropyLoss(label_smoothing=0.1))``. With ``y = w x``, the squared error
    and the batches ``(x, y) = (1, 0), (2, 0)``, the gradients at ``w = 3`` are 6 and 24.
    """

    def __init__(self, batches: Iterable[Any] | Callable[[], Iterable[Any]], loss: Loss | None = None) -> None:
        if not callable(batches) and not isinstance(batches, Iterable):
            message = f"expected minibatches (a DataLoader, a list) or a function that returns them, got {batches!r}"
            raise ArgumentError(message, argument=("grad_sampler",))
        if isinstance(batches, Iterator):
            message = "an iterator can be looked through only once: give the DataLoader or list itself"
            raise ArgumentError(f"{type(batches).__name__}: {message}", argument=("grad_sampler",))
        if loss is not None and not callable(loss):
            raise ArgumentError(f"loss is a function loss(outputs, target), got {loss!r}", argument=("loss",))
        self._batches = batches
        self._loss: Loss = default_loss if loss is None else loss
        self._yields_triples = False
        self._options: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, value: GradientSamplerLike) -> GradientSampler:
        """A sampler from what a user gave; raises :class:`ArgumentError` for anything that is none.

        ``{"data_loader_builder": build, "loss_function": loss}`` is SparseML's form: ``build(kwargs)``, or
        ``build(**kwargs)`` if that is how it is written, yields ``(args, kwargs, target)``.
        """
        if isinstance(value, GradientSampler):
            return value
        if not isinstance(value, Mapping):
            return cls(value)
        unknown = sorted(set(map(str, value)) - {"data_loader_builder", "loss_function"})
        builder = value.get("data_loader_builder")
        if unknown or not callable(builder):
            raise ArgumentError(
                "grad_sampler maps data_loader_builder to a function that yields (args, kwargs, target), and "
                f"loss_function to loss(outputs, target); got {sorted(map(str, value))}",
                argument=("grad_sampler",),
            )
        sampler = cls(builder, value.get("loss_function"))
        sampler._yields_triples = True
        return sampler

    def with_options(self, options: Mapping[str, Any] | None) -> GradientSampler:
        """The same sampler, its builder called with these (``grad_sampler_kwargs`` of a recipe)."""
        if options is None:
            return self
        copy = GradientSampler(self._batches, self._loss)
        copy._yields_triples, copy._options = self._yields_triples, options
        return copy

    def gradients(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        count: int,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Iterator[dict[str, Tensor]]:
        """``count`` times the gradients of one minibatch's loss, by name; zeros for a parameter the loss ignores.

        ``weights`` (by the same names) stand in for the model's own, which are not changed. Under data parallelism each
        is the mean over all ranks. A minibatch whose gradients are not finite is left out.
        The batches begin again when they run out. Raises :class:`CalibrationError` when there are none, or none is
        finite.
        """
        frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
        if frozen:
            message = (
                f"no gradients of {frozen[0]!r}: it is frozen (requires_grad is False). Do not name it, or thaw it"
            )
            raise CalibrationError(message)
        run = StandIn(model, parameters, weights)
        tensors = [run.tensors[name] for name in parameters]
        finite = 0
        with self._as_it_was(model):
            for batch in self._cycled(model, count):
                gradients = self._gradients_of(run, batch, tensors)
                if all(bool(torch.isfinite(g).all()) for g in gradients):
                    finite += 1
                    yield dict(zip(parameters, gradients, strict=True))
        if not finite:
            raise CalibrationError("the gradients of no sampled minibatch are finite: did the training diverge?")

    def passes(
        self,
        model: nn.Module,
        count: int | None = None,
        parameters: Mapping[str, nn.Parameter] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Iterator[ForwardPass]:
        """For each minibatch (at most ``count``) what runs the model on it when called, without gradients.

        ``weights`` stand in for those of the model's ``parameters`` that have the same names.
        """
        run = StandIn(model, parameters or {}, weights)
        with self._as_it_was(model):
            for done, (args, kwargs, _) in enumerate(self._once(model), 1):
                yield ForwardPass(run, args, kwargs)
                if done == count:
                    return

    # -- internals --------------------------------------------------------------------------------------------------

    def _gradients_of(self, run: StandIn, batch: Batch, tensors: Sequence[Tensor]) -> list[Tensor]:
        args, kwargs, target = batch
        with torch.enable_grad(), _differentiable_rnn(tensors):
            loss = self._loss(run(*args, **kwargs), target)
            found = torch.autograd.grad(loss, tensors, allow_unused=True)
        gradients = [torch.zeros_like(t) if g is None else _dense(g) for g, t in zip(found, tensors, strict=True)]
        _average_(gradients)
        return gradients

    @contextlib.contextmanager
    def _as_it_was(self, model: nn.Module) -> Iterator[None]:
        """Eval mode inside; training flags and random generators, those of a loader too, are put back."""
        modes = {module: module.training for module in unwrap(model).modules()}
        rng = capture_rng()
        own = {generator: generator.get_state() for generator in loader_generators(self._batches).values()}
        unwrap(model).eval()
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training
            restore_rng(rng)
            for generator, state in own.items():
                generator.set_state(state)

    def _cycled(self, model: nn.Module, count: int) -> Iterator[Batch]:
        done = 0
        while done < count:
            before = done
            for batch in self._once(model):
                yield batch
                done += 1
                if done == count:
                    return
            if done == before:
                raise CalibrationError("there are no minibatches to sample gradients from: the loader is empty")

    def _once(self, model: nn.Module) -> Iterator[Batch]:
        like = next((p for p in unwrap(model).parameters() if p.is_floating_point()), torch.zeros(()))
        for batch in self._open():
            args, kwargs, target = batch if self._yields_triples else split_batch(batch)
            yield moved(tuple(args), like), moved(dict(kwargs), like), pytree.tree_map(onto(like.device), target)

    def _open(self) -> Iterable[Any]:
        source = self._batches
        if isinstance(source, DataLoader):
            return fresh_loader(source)
        if not callable(source) or isinstance(source, Iterable):
            return source
        return called_builder(source, dict(self._options or {}))


class SampleSource:
    """What a scheduler knows about data: the user's own sampler, else the loader its training loop goes through."""

    def __init__(self) -> None:
        self._given: GradientSampler | None = None
        self._loader: Iterable[Any] | None = None

    @property
    def is_known(self) -> bool:
        """Whether there is a sampler."""
        return self._given is not None or self._loader is not None

    @property
    def sampler(self) -> GradientSampler | None:
        """The sampler to use; None while neither a sampler nor a loader is known."""
        if self._given is not None or self._loader is None:
            return self._given
        return GradientSampler(self._loader)

    @property
    def loader(self) -> Iterable[Any] | None:
        """What the training loop goes through, if that is known."""
        return self._loader

    @property
    def is_given(self) -> bool:
        """Whether the user gave a sampler."""
        return self._given is not None

    def give(self, value: GradientSamplerLike | None) -> None:
        """Use this one; None takes it back."""
        self._given = None if value is None else GradientSampler.of(value)

    def see_loader(self, loader: Iterable[Any]) -> None:
        """Remember the training loop's loader; iterators, which can be used only once, are left alone."""
        self._loader = None if isinstance(loader, Iterator) else loader


def _differentiable_rnn(tensors: Sequence[Tensor]) -> contextlib.AbstractContextManager[Any]:
    """cuDNN cannot differentiate recurrent layers in eval mode; torch's own kernels can."""
    if any(tensor.is_cuda for tensor in tensors):
        return torch.backends.cudnn.flags(enabled=False)
    return contextlib.nullcontext()


def _dense(gradient: Tensor) -> Tensor:
    """Embeddings may have sparse gradients."""
    return gradient.to_dense() if gradient.is_sparse else gradient


def _average_(gradients: Sequence[Tensor]) -> None:
    """Over all ranks, in one reduction."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    flat = torch.cat([gradient.reshape(-1).float() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
