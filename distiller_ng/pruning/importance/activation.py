"""Importance as the activity that the next layers see (layer 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from distiller_ng.core.context import StepContext
from distiller_ng.errors import CalibrationError, GraphError
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.names import canonical_name, unwrap
from distiller_ng.pruning._families import Family, FamilyMember, Floats, families_of
from distiller_ng.pruning._observing import forget_compiled_code, uncompiled
from distiller_ng.pruning.importance._entries import along, wide
from distiller_ng.pruning.importance._samples import Samples
from distiller_ng.pruning.importance.base import IMPORTANCES, Aggregate, Importance, Normalize

__all__ = ["ActivationImportance"]

_CONVOLUTIONS = (nn.modules.conv._ConvNd,)
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_WATCHED = (*_CONVOLUTIONS, nn.Linear, *_NORMS)


@IMPORTANCES.register("activation")
class ActivationImportance(Importance):
    """Mean absolute activation of a channel where the next layers read it, over the epoch before a decision.

    That is behind norms, activation functions, additions and pooling. Several readers are aggregated by ``aggregate``;
    a channel that no convolution or linear layer reads is watched at the outputs of the layers that make it.
    ``normalize``: see :class:`Importance`. Every forward pass of the epoch counts, training and validation alike.

    Source: H. Hu et al., "Network Trimming", https://arxiv.org/abs/1607.03250 (activations as the criterion);
    P. Molchanov et al., https://arxiv.org/abs/1611.06440 (their mean). A ReLU's outputs 0, 2, 0 and 4 score 1.5::

        pruners:
          quiet: {class: GroupPruner, importance: activation, sparsity: 0.5}

    Raises :class:`CalibrationError` when nothing was seen.
    """

    observes: ClassVar[bool] = True
    default_aggregate = "mean"

    def __init__(self, *, aggregate: Aggregate | None = None, normalize: Normalize | None = None) -> None:
        super().__init__(aggregate=aggregate, normalize=normalize)
        self._samples = Samples()
        self._removers: list[Callable[[], None]] = []

    # -- observing --------------------------------------------------------------------------------------------------

    def start(
        self,
        model: nn.Module,
        graph: Callable[[], DependencyGraph | None],
        optimizer: Optimizer | None = None,
        *,
        by_hand: bool = False,
    ) -> None:
        """Watch every layer that reads or makes removable channels; where the graph is not known yet, after a pass."""
        if self._removers:
            return
        self._samples.begin()
        known = graph()
        if known is not None:
            self._watch(known)
        else:
            self._wait(unwrap(model), graph)
        forget_compiled_code()

    def stop(self) -> None:
        """Remove every hook."""
        if self._removers:
            for remove in self._removers:
                remove()
            self._removers.clear()
            self._samples.end()
            forget_compiled_code()

    def _wait(self, model: nn.Module, graph: Callable[[], DependencyGraph | None]) -> None:
        def begin(module: nn.Module, args: Any, output: Any) -> None:
            known = graph()
            if known is not None:
                handle.remove()
                self._watch(known)
                forget_compiled_code()

        handle: RemovableHandle = model.register_forward_hook(uncompiled(begin))
        self._removers.append(handle.remove)

    def _watch(self, graph: DependencyGraph) -> None:
        modules = _layers(graph)
        wanted = {_place(member) for family in families_of(graph) for member in _watched(family, modules)}
        for layer, reads in sorted(wanted):
            hook = uncompiled(self._recorder(layer, reads))
            self._removers.append(modules[layer].register_forward_hook(hook).remove)

    def _recorder(self, layer: str, reads: bool) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if torch.compiler.is_compiling():
                return  # the model is being traced: these are no values
            value = args[0] if reads and args else output
            if isinstance(value, Tensor) and value.dim() > 1:
                values = wide(value.detach()).abs()
                dim = _channel_dim(module, values)
                count = values.numel() // max(values.shape[dim], 1)
                self._samples.add({_key(layer, reads): torch.from_numpy(along(values, dim))}, count)

        return record

    # -- scores -----------------------------------------------------------------------------------------------------

    def problem_with(self, family: Family, graph: DependencyGraph) -> str | None:
        """There must be a convolution, linear layer or norm to watch."""
        if _watched(family, _layers(graph)):
            return None
        return (
            f"importance activation: no convolution, linear layer or norm makes or reads the channels of "
            f"{family.name!r}, so there is nowhere to watch them. Leave it out of weights, or choose another importance"
        )

    def family_scores(self, family: Family, graph: DependencyGraph, ctx: StepContext | None) -> Floats:
        """Mean activity at each place where the family is watched, aggregated."""
        problem = self.problem_with(family, graph)
        if problem is not None:
            raise GraphError(problem)
        modules = _layers(graph)
        scores = []
        for member in _watched(family, modules):
            layer, reads = _place(member)
            size = _channels_at(modules[layer], member, reads)
            mean = self._samples.mean(_key(layer, reads), size)
            if mean is not None:
                entries = mean.reshape(-1, member.index.size).mean(axis=0)  # a grouped layer's groups go together
                counts = member.totals(np.ones(member.index.size), len(family))
                scores.append(member.totals(entries, len(family)) / counts)
        if not scores:
            raise CalibrationError(
                f"importance activation has seen nothing of the channels of {family.name!r}: it decides on what the "
                "epoch before an active one shows. Begin training at least one epoch before the policy, or collect by "
                "hand: with pruner.observing(model, inputs): ..."
            )
        return self.aggregated(scores, len(family))

    def state_dict(self) -> dict[str, Any]:
        """What was seen."""
        return {"samples": self._samples.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; watching goes on with the next :meth:`start`."""
        self._samples.load_state_dict(state["samples"])


def _layers(graph: DependencyGraph) -> dict[str, nn.Module]:
    return {
        canonical_name(name): module for name, module in graph.model.named_modules() if isinstance(module, _WATCHED)
    }


def _watched(family: Family, modules: Mapping[str, nn.Module]) -> list[FamilyMember]:
    """The weights whose layers read the family; without any, those of the norms that make it, or of its layers."""
    weights = [m for m in family.members if m.tensor.endswith("weight") and _place(m)[0] in modules]
    readers = [m for m in weights if not m.feeds]
    makers = [m for m in weights if m.feeds]
    norms = [m for m in makers if isinstance(modules[_place(m)[0]], _NORMS)]
    return readers or norms or makers


def _place(member: FamilyMember) -> tuple[str, bool]:
    return member.tensor.rpartition(".")[0], not member.feeds


def _key(layer: str, reads: bool) -> str:
    return f"{layer}:{'in' if reads else 'out'}"


def _channel_dim(module: nn.Module, value: Tensor) -> int:
    """Convolutions and most norms have channels second, before as many dimensions as they work on."""
    if isinstance(module, nn.Linear | nn.LayerNorm | nn.RMSNorm):
        return value.dim() - 1
    if isinstance(module, _CONVOLUTIONS):
        return value.dim() - len(module.kernel_size) - 1  # unbatched inputs are legal
    return 1


def _channels_at(module: nn.Module, member: FamilyMember, reads: bool) -> int:
    """How many channels the watched value has; the weight of a grouped convolution reads those of one group."""
    groups = module.groups if isinstance(module, _CONVOLUTIONS) else 1
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    return member.index.size * (groups if reads != transposed else 1)
