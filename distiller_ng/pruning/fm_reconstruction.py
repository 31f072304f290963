"""Pruning of input channels with least-squares reconstruction of the layer's output (layer 2)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from distiller_ng.core.context import StepContext
from distiller_ng.core.distributed import broadcast_masks
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError, TargetError
from distiller_ng.graph.module_flow import leaf_modules
from distiller_ng.names import ParameterIndex
from distiller_ng.pruning._observing import ObservingPruner, Store
from distiller_ng.pruning._ranked import GroupDependency, Rounding
from distiller_ng.pruning.base import PRUNERS, MaskGroup, Scope
from distiller_ng.pruning.lp_ranked import LpRankedStructureParameterPruner, Magnitude
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike

__all__ = ["FMReconstructionChannelPruner", "SampleStore"]

logger = logging.getLogger(__name__)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ROWS_PER_UNKNOWN = 4  # rows of the least-squares problem for each weight of a filter


class SampleStore:
    """Rows ``[n, features]``, up to a limit given with each addition."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self.count = 0

    def add(self, rows: Tensor, limit: int) -> None:
        """Keep rows until there are ``limit``."""
        part = rows[: limit - self.count].detach().to(device="cpu", dtype=torch.float32, copy=True)
        if len(part):
            self._parts.append(part)
            self.count += len(part)

    def rows(self) -> Tensor:
        """All of them, in float64."""
        return torch.cat(self._parts).double()

    def state_dict(self) -> dict[str, Any]:
        """The rows in one tensor."""
        return {"rows": torch.cat(self._parts) if self._parts else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._parts = [] if state["rows"] is None else [state["rows"]]
        self.count = sum(len(part) for part in self._parts)


@PRUNERS.register("FMReconstructionChannelPruner", injected=("name",))
class FMReconstructionChannelPruner(ObservingPruner, LpRankedStructureParameterPruner):
    """Prunes input channels of lowest norm and refits the remaining weights, so that the layer's output changes least.

    The rows of ``X`` are inputs of the layer (patches ``C_i * kernel``) at ``n_points_per_fm`` random positions of
    every feature map seen in the epoch before an active one, from validation if there is any. With ``Y = X W`` of the
    present weights and ``X_k`` the columns of the channels that stay, these become ``argmin |Y - X_k W_k|^2``
    (``torch.linalg.lstsq``); the bias is not touched. Convolutions with ``groups=1`` and linear layers. Up to
    ``max_samples`` rows are kept for a layer, by default four for each weight of a filter. The policy must begin at
    epoch 1 or later. The other arguments are those of :class:`LpRankedStructureParameterPruner`.

    Source: Y. He, X. Zhang and J. Sun, "Channel Pruning for Accelerating Very Deep Neural Networks",
    https://arxiv.org/abs/1707.06168. If the second of two input channels always is twice the first, and the weights of
    a filter are ``[3, 1]``, the second channel goes and the first gets the weight ``3 + 2 * 1 = 5``::

        pruners:
          channels:
            class: FMReconstructionChannelPruner
            group_type: Channels
            desired_sparsity: 0.3
            weights: [layer1.0.conv2.weight]
        policies:
          - pruner: {instance_name: channels}
            epochs: [1]

    Raises :class:`ArgumentError` for malformed arguments, :class:`TargetError` for other layers,
    :class:`CalibrationError` when it must decide without having seen anything.
    """

    def __init__(
        self,
        name: str,
        group_type: Literal["Channels"] = "Channels",
        desired_sparsity: float | None = None,
        weights: str | Sequence[str] = (),
        group_dependency: GroupDependency | None = None,
        kwargs: Mapping[str, Sequence[int]] | None = None,
        magnitude_fn: Magnitude = "l1",
        group_size: int = 1,
        rounding_fn: Rounding = "floor",
        ranking_noise: float = 0.0,
        *,
        n_points_per_fm: int = 10,
        max_samples: int | None = None,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        if group_type != "Channels":
            message = f"feature-map reconstruction prunes group_type 'Channels', got {group_type!r}"
            raise ArgumentError(message, argument=("group_type",))
        for argument, value in (("n_points_per_fm", n_points_per_fm), ("max_samples", max_samples)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ArgumentError(f"{argument} is a whole number from 1, got {value!r}", argument=(argument,))
        arguments = (group_type, desired_sparsity, weights, group_dependency, kwargs)
        ranking = (magnitude_fn, ranking_noise, group_size, rounding_fn)
        super().__init__(name, *arguments, *ranking, schedule=schedule, scope=scope, pattern=pattern)
        self.n_points_per_fm = n_points_per_fm
        self.max_samples = max_samples
        # Its own generator: sampling must not shift the random numbers that training draws.
        self._generator = torch.Generator().manual_seed(0)
        self._decided: tuple[str, ...] = ()

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """Every target must be the weight of a convolution without groups, or of a linear layer."""
        super().check(window, parameters)
        modules = leaf_modules(parameters.model)
        for name in self.names:
            _layer_of(name, modules, self._bound[name].argument)

    # -- observing --------------------------------------------------------------------------------------------------

    def new_store(self) -> Store:
        """Input patches."""
        return SampleStore()

    def watch(self, model: nn.Module, example_inputs: tuple[Any, ...] | None) -> None:
        """Hook the layers themselves."""
        modules = leaf_modules(model)
        for name in self.names:
            self._hook_layer(name, _layer_of(name, modules, self._bound[name].argument))

    def _hook_layer(self, name: str, layer: nn.Module) -> None:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        limit = self.max_samples or _ROWS_PER_UNKNOWN * math.prod(weight.shape[1:])

        def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            store = self.entry(name, module.training)
            if isinstance(store, SampleStore) and store.count < limit and args and isinstance(args[0], Tensor):
                store.add(self._patches(module, args[0].detach(), output.shape), limit)

        self.hook(layer, record)

    def _patches(self, layer: nn.Module, inputs: Tensor, output_shape: torch.Size) -> Tensor:
        """``[n, C_i * kernel]``: what the layer multiplies with its weights at some output positions."""
        if isinstance(layer, nn.Linear):
            return inputs.reshape(-1, inputs.shape[-1])
        if not isinstance(layer, _CONVOLUTIONS):
            raise TargetError(f"{type(layer).__name__} cannot be reconstructed")
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        padded = functional.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
        parts = []
        for _ in range(self.n_points_per_fm):
            window = padded
            for axis, size in enumerate(output_shape[2:]):
                start = int(torch.randint(size, (), generator=self._generator)) * layer.stride[axis]
                stop = start + layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
                positions = torch.arange(start, stop, layer.dilation[axis], device=inputs.device)
                window = window.index_select(axis + 2, positions)
            parts.append(window.flatten(1))
        return torch.cat(parts)

    # -- deciding ---------------------------------------------------------------------------------------------------

    def scores(self, name: str, ctx: StepContext) -> Tensor | None:
        """The norms, once the layer has been seen."""
        return None if self.observed(name, ctx) is None else super().scores(name, ctx)

    def compute_masks(self, group: MaskGroup, ctx: StepContext) -> Mapping[str, Tensor]:
        """By norm; the weights follow in :meth:`update_weights_`."""
        masks = super().compute_masks(group, ctx)
        self._decided += tuple(masks)
        return masks

    def update_weights_(self, ctx: StepContext) -> None:
        """Refit, in place, the weights of the channels that stay."""
        decided, self._decided = self._decided, ()
        for name in dict.fromkeys(decided):
            mask = ctx.masks[name].owners.get(self.owner)
            store = self.observed(name, ctx)
            if mask is not None and isinstance(store, SampleStore):
                self._refit_(name, ctx.parameters[name], mask, store.rows())
        # Replicas saw different samples and must not drift apart: rank 0's fit counts.
        fitted = {name: ctx.parameters[name].detach() for name in dict.fromkeys(decided)}
        for name, agreed in broadcast_masks(fitted).items():
            if agreed is not fitted[name]:
                fitted[name].copy_(agreed)

    def _refit_(self, name: str, parameter: nn.Parameter, mask: Tensor, rows: Tensor) -> None:
        keep = mask.transpose(0, 1).flatten(1).any(dim=1).cpu()
        weight = parameter.detach().cpu().double()
        if not bool(keep.any()) or not bool(weight[:, ~keep].any()):
            return  # nothing stays, or what goes is zero already
        columns = keep.repeat_interleave(weight[0, 0].numel())
        remaining = rows[:, columns]
        if len(rows) < remaining.shape[1]:
            logger.warning(
                "pruner %r: %d samples for the %d weights of each filter of %r; the fit is not unique. Observe more "
                "data, or raise n_points_per_fm or max_samples",
                *(self.owner, len(rows), remaining.shape[1], name),
            )
        # gelsd: patches of neighbouring pixels, and dead channels, make X rank-deficient.
        solution = torch.linalg.lstsq(remaining, rows @ weight.flatten(1).t(), driver="gelsd").solution
        refitted = solution.t().reshape(weight[:, keep].shape)
        with torch.no_grad():
            parameter[:, keep.to(parameter.device)] = refitted.to(device=parameter.device, dtype=parameter.dtype)

    # -- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What was collected, and the generator of the sampled positions."""
        return {**super().state_dict(), "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        super().load_state_dict({key: value for key, value in state.items() if key != "generator"})
        self._generator.set_state(state["generator"].cpu())


def _layer_of(name: str, modules: Mapping[str, nn.Module], argument: tuple[str | int, ...]) -> nn.Module:
    owner, _, parameter = name.rpartition(".")
    layer = modules.get(owner)
    if parameter == "weight" and isinstance(layer, nn.Linear):
        return layer
    if parameter == "weight" and isinstance(layer, _CONVOLUTIONS) and layer.groups == 1:
        return layer
    why = "a grouped convolution" if isinstance(layer, _CONVOLUTIONS) else "no convolution or linear layer's weight"
    raise TargetError(f"{name!r} is {why}: its channels cannot be reconstructed", argument=argument)
