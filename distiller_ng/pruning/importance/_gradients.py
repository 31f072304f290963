"""Base of the importances that look at gradients, one sample for each optimizer step (layer 2)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from distiller_ng.core.context import StepContext
from distiller_ng.errors import CalibrationError
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.names import ParameterIndex
from distiller_ng.pruning._families import FamilyMember, Floats
from distiller_ng.pruning.importance._entries import EntryImportance, along, wide
from distiller_ng.pruning.importance._samples import Samples

__all__ = ["GradientImportance"]


class GradientImportance(EntryImportance):
    """Averages a function of weights and gradients over the optimizer steps of the observed epoch.

    Gradients are read just before each real step: complete under gradient accumulation and data parallelism, with the
    loss scale taken out, and not at all where the step is skipped for infinities. Collected by hand
    (``pruner.observing``) every backward pass is a sample. With nothing observed, the gradients present when scores are
    asked for are used.
    """

    observes: ClassVar[bool] = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._samples = Samples()
        self._handles: list[RemovableHandle] = []

    @abstractmethod
    def saliency(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """A score of 0 or more for each entry; both tensors are float32 or wider."""

    def start(
        self,
        model: nn.Module,
        graph: Callable[[], DependencyGraph | None],
        optimizer: Optimizer | None = None,
        *,
        by_hand: bool = False,
    ) -> None:
        """Sample every step of ``optimizer``, without one those of every torch optimizer; by hand, every backward."""
        if self._handles:
            return
        self._samples.begin()
        parameters = ParameterIndex(model)
        if by_hand:
            self._watch_backward(parameters, graph)
            return

        def before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            parameters.refresh()
            known = graph()
            if known is not None:
                self._sample(known, parameters, optimizer)

        if optimizer is None:
            self._handles.append(register_optimizer_step_pre_hook(before_step))
        else:
            self._handles.append(optimizer.register_step_pre_hook(before_step))

    def stop(self) -> None:
        """Remove the hooks."""
        if self._handles:
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
            self._samples.end()

    def _watch_backward(self, parameters: ParameterIndex, graph: Callable[[], DependencyGraph | None]) -> None:
        """One sample for each parameter in each backward pass, before it is added to what is there."""

        def sample(name: str, parameter: nn.Parameter, gradient: Tensor) -> None:
            known = graph()
            dims = [] if known is None else [dim for tensor, dim in known.axes if parameters.find(tensor) == name]
            for dim in dims:
                self._samples.add({f"{name}:{dim}": torch.from_numpy(self._along(parameter, gradient, dim))})

        for name, parameter in parameters.items():
            if parameter.requires_grad:
                hook = partial(sample, name, parameter)
                self._handles.append(parameter.register_hook(hook))  # type: ignore[no-untyped-call]

    def entry_scores(
        self, name: str, member: FamilyMember, parameters: ParameterIndex, ctx: StepContext | None
    ) -> Floats | None:
        """The mean over all samples; those of the gradients that are there now if none was taken."""
        parameter = parameters[name]
        if self._samples.count:
            return self._samples.mean(f"{name}:{member.dim}", parameter.shape[member.dim])
        if not any(p.grad is not None for p in parameters.values()):
            raise CalibrationError(
                f"{type(self).__name__} has seen no gradients: it decides on what the epoch before an active one "
                "shows. Begin training at least one epoch before the policy, or call loss.backward() before pruning by "
                "hand"
            )
        return None if parameter.grad is None else self._along(parameter, parameter.grad, member.dim)

    def state_dict(self) -> dict[str, Any]:
        """What was sampled."""
        return {"samples": self._samples.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; sampling goes on with the next :meth:`start`."""
        self._samples.load_state_dict(state["samples"])

    def _sample(self, graph: DependencyGraph, parameters: ParameterIndex, optimizer: Optimizer) -> None:
        found_inf = getattr(optimizer, "found_inf", None)  # fused optimizers skip the step inside
        if found_inf is not None and bool(torch.as_tensor(found_inf).any()):
            return
        scale = getattr(optimizer, "grad_scale", None)
        divisor = 1.0 if scale is None else float(scale)
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        found: dict[str, Tensor] = {}
        for tensor, dim in graph.axes:
            name = parameters.find(tensor)
            parameter = None if name is None else parameters[name]
            if parameter is not None and id(parameter) in mine and parameter.grad is not None:
                found[f"{name}:{dim}"] = torch.from_numpy(self._along(parameter, parameter.grad / divisor, dim))
        self._samples.add(found)

    def _along(self, parameter: nn.Parameter, gradient: Tensor, dim: int) -> Floats:
        with torch.no_grad():
            return along(self.saliency(wide(parameter.detach()), wide(gradient.detach())), dim)
