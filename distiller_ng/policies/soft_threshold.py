"""The extension that learns how sparse each layer should be (layer 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.core.context import StepContext
from distiller_ng.core.window import PolicyWindow
from distiller_ng.names import ALL_PRUNABLE, ParameterIndex
from distiller_ng.policies._reparametrized import Function, ReparametrizingPolicy, check_flag
from distiller_ng.policies._trained_beside import join_optimizer
from distiller_ng.policies.extensions import EXTENSIONS
from distiller_ng.pruning._checks import check_number
from distiller_ng.quantization._late_parameters import average_gradients
from distiller_ng.registry import RecipeTag

__all__ = ["SoftThreshold"]

_THRESHOLD = "prune_threshold"


@dataclass(frozen=True, slots=True, eq=False)
class _Shrunk:
    threshold: nn.Parameter

    def __call__(self, stored: Tensor) -> Tensor:
        """``sign(w) relu(|w| - sigmoid(s))``."""
        return stored.sign() * torch.relu(stored.abs() - torch.sigmoid(self.threshold).to(stored.dtype))


@EXTENSIONS.register(
    "SoftThreshold",
    recipe_tag=RecipeTag(
        "STRPruningModifier", start_epoch=-1.0, end_epoch=-1.0, update_frequency=0.0, fixed_frequency=True
    ),
)
class SoftThreshold(ReparametrizingPolicy):
    """Soft threshold reparametrization (STR): layers compute with ``sign(w) relu(|w| - sigmoid(s))``, and learn ``s``.

    One ``s`` for each target, a parameter of its layer (``conv1.prune_threshold``), which begins at ``init_threshold``
    (before the sigmoid: -10 prunes what is below 0.00005) and has its own ``threshold_decay`` (weight decay; it pulls
    ``s`` to 0, and so makes layers sparser) and learning rate (``threshold_lr``; default: that of the first group).
    Layers find their own sparsity: there is no level to give. When the window ends weights become what layers computed
    with, and stay zero where they are (``leave_enabled``).

    Source: A. Kusupati et al., "Soft Threshold Weight Reparameterization for Learnable Sparsity",
    https://arxiv.org/abs/2002.03231. With ``s = 0`` the threshold is 0.5: the weights ``[0.7, -0.2]`` act as
    ``[0.2, 0]``::

        extensions:
          str:
            class: SoftThreshold
            init_threshold: -8.0
            threshold_decay: 0.005
        policies:
          - extension: {instance_name: str}
            starting_epoch: 0
            ending_epoch: 60

    Raises :class:`ArgumentError` for values that are no numbers, :class:`TargetError` for other parameters.
    """

    def __init__(
        self,
        weights: str | Sequence[str] = ALL_PRUNABLE,
        *,
        init_threshold: float = -8.0,
        threshold_decay: float = 5e-4,
        threshold_lr: float | None = None,
        leave_enabled: bool = True,
    ) -> None:
        super().__init__(weights)
        self.init_threshold = check_number(init_threshold, ("init_threshold",))
        self.threshold_decay = check_number(threshold_decay, ("threshold_decay",), low=0)
        self.threshold_lr = None if threshold_lr is None else check_number(threshold_lr, ("threshold_lr",), low=0)
        self.leave_enabled = check_flag("leave_enabled", leave_enabled)
        self._thresholds: dict[str, nn.Parameter] = {}

    def function(self, name: str) -> Function:
        """``sign(w) relu(|w| - sigmoid(s))``."""
        return _Shrunk(self._thresholds[name])

    def on_added(self, ctx: StepContext) -> None:
        """The thresholds join the layers and the optimizer, so that checkpoints have them."""
        for name, module in self._layers():
            weight = ctx.parameters[name]
            if name not in self._thresholds:
                start = torch.tensor(self.init_threshold, device=weight.device)
                self._thresholds[name] = nn.Parameter(start)
                module.register_parameter(_THRESHOLD, self._thresholds[name])
                average_gradients([self._thresholds[name]])
        join_optimizer(ctx, self._named(), lr=self.threshold_lr, weight_decay=self.threshold_decay)

    def on_minibatch_begin(self, ctx: StepContext) -> None:
        """As every such policy; an optimizer that came late learns the thresholds too."""
        if not self._is_over:
            join_optimizer(ctx, self._named(), lr=self.threshold_lr, weight_decay=self.threshold_decay)
        super().on_minibatch_begin(ctx)

    def finish(self, ctx: StepContext, name: str) -> None:
        """Hold the zeros; the threshold learns no longer."""
        weight = ctx.parameters[name]
        if self.leave_enabled:
            ctx.masks.set(name, (weight != 0).to(weight.dtype), owner=type(self).__name__, binary=True)
        self._thresholds[name].requires_grad_(False)
        self._thresholds[name].grad = None

    def on_finish(self, ctx: StepContext) -> None:
        """Training is over: the layers are as they were before, but for their zeros."""
        super().on_finish(ctx)
        for _, module in self._layers() if self._is_over else ():
            module._parameters.pop(_THRESHOLD, None)

    def planned_sparsity(self, window: PolicyWindow, parameters: ParameterIndex) -> Mapping[str, float | None]:
        """Learned."""
        return dict.fromkeys(self._names)

    def thresholds(self) -> dict[str, float]:
        """``{weight: threshold now}``, after the sigmoid."""
        return {name: float(torch.sigmoid(s.detach())) for name, s in self._thresholds.items()}

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [(f"{name.rpartition('.')[0]}.{_THRESHOLD}", parameter) for name, parameter in self._thresholds.items()]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        super().load_state_dict(state)
        for threshold in self._thresholds.values():
            threshold.requires_grad_(not self._is_over)
