"""The extension that presses activations towards zero (layer 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import LossComponent, Policy, PolicyLoss
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import ArgumentError
from distiller_ng.names import ParameterIndex
from distiller_ng.policies._layers import check_layer_names, select_layers
from distiller_ng.policies._reparametrized import check_flag
from distiller_ng.policies.extensions import EXTENSIONS
from distiller_ng.pruning._checks import check_number
from distiller_ng.registry import RecipeTag

__all__ = ["ActivationPenalty", "ActivationRegularizer", "WatchedTensor"]

ActivationPenalty: TypeAlias = Literal["l1", "l2", "relu", "hs"]
WatchedTensor: TypeAlias = Literal["inp", "out"]

_PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {
    "l1": lambda t: t.abs().sum(),
    "l2": lambda t: t.square().sum(),
    "relu": lambda t: torch.relu(t).sum(),
    "hs": lambda t: t.abs().sum().square() / t.square().sum().clamp_min(torch.finfo(t.dtype).tiny),
}


@EXTENSIONS.register(
    "ActivationRegularizer",
    recipe_tag=RecipeTag(
        "ASRegModifier",
        start_epoch=-1.0,
        end_epoch=-1.0,
        update_frequency=0.0,
        fixed_frequency=True,
        params=None,
    ),
)
class ActivationRegularizer(Policy):
    """Adds ``sum alpha * penalty(activations) / batch size`` over layers to the loss, so that activations get sparse.

    ``layers``: names of modules, ``re:`` patterns from the start of a name, or ``__ALL_PRUNABLE__``. ``alpha``: a
    number, or one for each of ``layers``. ``layer_normalized``: divide by the number of layers. ``reg_func``: ``l1``
    ``sum |t|``, ``l2`` ``sum t^2``, ``relu`` ``sum max(t, 0)``, ``hs`` (Hoyer) ``(sum |t|)^2 / sum t^2``. ``reg_tens``:
    what is pressed, a layer's input (``inp``) or output (``out``).

    Source: M. Kurtz et al., "Inducing and Exploiting Activation Sparsity for Fast Neural Network Inference", ICML 2020,
    https://proceedings.mlr.press/v119/kurtz20a.html. The activations ``[1, -2, 0, 1]`` of one sample cost 4 (l1), 6
    (l2) and 16 / 6 (hs)::

        extensions:
          quiet:
            class: ActivationRegularizer
            layers: ['re:.*relu']
            alpha: 0.00001
            reg_func: hs
            reg_tens: out
        policies:
          - extension: {instance_name: quiet}
            starting_epoch: 0
            ending_epoch: 10

    Raises :class:`ArgumentError` for values out of range, :class:`TargetError` for names that match no module.
    """

    def __init__(
        self,
        layers: str | Sequence[str],
        alpha: float | Sequence[float],
        *,
        layer_normalized: bool = False,
        reg_func: ActivationPenalty = "l1",
        reg_tens: WatchedTensor = "inp",
    ) -> None:
        self.layers = check_layer_names(layers)
        self.alpha = _alphas(alpha, len(self.layers))
        self.layer_normalized = check_flag("layer_normalized", layer_normalized)
        for argument, value, allowed in (
            ("reg_func", reg_func, get_args(ActivationPenalty)),
            ("reg_tens", reg_tens, get_args(WatchedTensor)),
        ):
            if value not in allowed:
                message = f"{argument} is one of {', '.join(allowed)}; got {value!r}"
                raise ArgumentError(message, argument=(argument,))
        self.reg_func, self.reg_tens = reg_func, reg_tens
        self._terms: dict[str, list[Tensor]] = {}
        self._weights: dict[str, float] = {}
        self._handles: list[RemovableHandle] = []
        self._is_open = False

    def on_added(self, ctx: StepContext) -> None:
        """Set the hooks, while nothing is compiled yet; they see nothing outside minibatches."""
        self._weights = {}
        for position, name in enumerate(self.layers):
            for found, module in select_layers(ctx.model, [name]).items():
                if found not in self._weights:
                    self._weights[found] = self.alpha[position]
                    self._handles.append(module.register_forward_hook(partial(self._see, found)))

    def on_minibatch_begin(self, ctx: StepContext) -> None:
        """From here on activations count."""
        self._terms, self._is_open = {}, True

    def before_backward_pass(self, ctx: StepContext) -> PolicyLoss | None:
        """Add what was seen."""
        self._is_open = False
        terms, self._terms = self._terms, {}
        if ctx.loss is None or not terms:
            return None
        device, scale = ctx.loss.device, 1 / len(self._weights) if self.layer_normalized else 1.0
        parts = [self._weights[name] * torch.stack(values).sum().to(device) for name, values in terms.items()]
        term = scale * torch.stack(parts).sum()
        return PolicyLoss(ctx.loss + term, LossComponent("activation_regularizer", term))

    def on_minibatch_end(self, ctx: StepContext) -> None:
        """Evaluation does not count."""
        self._terms, self._is_open = {}, False

    def on_window_end(self, ctx: StepContext) -> None:
        """Nothing counts any more."""
        self._terms, self._is_open = {}, False

    def on_finish(self, ctx: StepContext) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """The names must exist."""
        select_layers(parameters.model, self.layers)

    def _see(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen = output if self.reg_tens == "out" else next(iter(args), None)
        if self._is_open and torch.is_grad_enabled() and isinstance(seen, Tensor) and seen.is_floating_point():
            wide = seen.float() if seen.element_size() < 4 else seen
            value = _PENALTIES[self.reg_func](wide) / max(seen.shape[0] if seen.dim() else 1, 1)
            self._terms.setdefault(name, []).append(value)

    def __getstate__(self) -> dict[str, Any]:
        """Copies have hooks of their own, set when they are added to a schedule."""
        return {**self.__dict__, "_handles": [], "_terms": {}}


def _alphas(alpha: Any, count: int) -> list[float]:
    if isinstance(alpha, str) or not isinstance(alpha, Sequence):
        return [check_number(alpha, ("alpha",), low=0)] * count
    if len(alpha) != count:
        message = f"alpha has {len(alpha)} numbers for {count} layers: one for each, or a single number"
        raise ArgumentError(message, argument=("alpha",))
    return [check_number(value, ("alpha", position), low=0) for position, value in enumerate(alpha)]
