"""The policy base class: Distiller's hook names, one argument each (layer 1)."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.core.window import PolicyWindow
from distiller_ng.errors import CheckpointError
from distiller_ng.names import ParameterIndex

__all__ = ["HOOKS", "LossComponent", "Policy", "PolicyLoss"]

HOOKS = (
    "on_epoch_begin",
    "on_minibatch_begin",
    "before_backward_pass",
    "before_parameter_optimization",
    "on_minibatch_end",
    "on_epoch_end",
)


class LossComponent(NamedTuple):
    """A named term a policy added to the loss."""

    name: str
    value: Tensor


class PolicyLoss(NamedTuple):
    """The loss after a policy, and the component(s) it added."""

    overall_loss: Tensor
    loss_components: LossComponent | Sequence[LossComponent]


class Policy(ABC):
    """What one kind of component does at each point of the training loop.

    Override the hooks you need and nothing else: a hook that is not overridden costs nothing. Every hook receives one
    :class:`StepContext`. Policies with whole windows get all hooks in every active epoch; policies with fractional
    windows get ``on_update`` at each due step instead of the epoch hooks, and the minibatch hooks while inside.

    Example, a policy that adds ``0.1 * loss`` to the loss::

        class Inflate(Policy):
            def before_backward_pass(self, ctx):
                extra = 0.1 * ctx.loss
                return PolicyLoss(ctx.loss + extra, LossComponent("inflation", extra))
    """

    #: Whether minibatch hooks are called after a window with ``trigger: step`` ended, too.
    outlives_window: ClassVar[bool] = False

    @property
    def observes_preceding_epoch(self) -> bool:
        """Whether the ``on_preceding_epoch_*`` hooks are wanted, to collect what the next decision needs."""
        return False

    def on_epoch_begin(self, ctx: StepContext) -> None:
        """An active epoch begins, before its first minibatch."""

    def on_minibatch_begin(self, ctx: StepContext) -> None:
        """Before the forward pass of a minibatch."""

    def before_backward_pass(self, ctx: StepContext) -> PolicyLoss | None:
        """After the forward pass; may return a new loss. ``ctx.loss`` must not be changed in place."""
        return None

    def before_parameter_optimization(self, ctx: StepContext) -> None:
        """After the backward pass, before ``optimizer.step()``."""

    def on_minibatch_end(self, ctx: StepContext) -> None:
        """After ``optimizer.step()``."""

    def on_epoch_end(self, ctx: StepContext) -> None:
        """An active epoch ends, after validation."""

    def on_update(self, ctx: StepContext) -> None:
        """A fractional window is due: at its start and every ``frequency`` epochs after it.

        With ``trigger: step`` this is after backward, right before the optimizer's step.
        """

    def on_window_end(self, ctx: StepContext) -> None:
        """The window closes; called once, by ``finish()`` at the latest."""

    def on_finish(self, ctx: StepContext) -> None:
        """Training is over."""

    def on_preceding_epoch_begin(self, ctx: StepContext) -> None:
        """The epoch before an active one begins (``observes_preceding_epoch`` only)."""

    def on_preceding_epoch_end(self, ctx: StepContext) -> None:
        """The epoch before an active one ends (``observes_preceding_epoch`` only)."""

    def check(self, window: PolicyWindow, parameters: ParameterIndex) -> None:
        """Refuse, before anything changes, what cannot work in this window on this model. Raises ``DistillerError``."""

    def on_added(self, ctx: StepContext) -> None:
        """The policy was checked and joins a schedule: make the changes to the model that it needs.

        New parameters come into the model (and its optimizer) here, before training, although they may act later.
        """

    def planned_sparsity(self, window: PolicyWindow, parameters: ParameterIndex) -> Mapping[str, float | None]:
        """The sparsity each written parameter should end with; None where it depends on the weights."""
        return {}

    def listens_to(self, hook: str) -> bool:
        """Whether this policy wants ``hook`` called; by default: whether its class overrides it."""
        return getattr(type(self), hook) is not getattr(Policy, hook)

    def describe(self) -> str:
        """One short line for messages and tables."""
        return type(self).__name__

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, as plain values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`. Raises :class:`CheckpointError` for keys this policy does not know."""
        if state:
            raise CheckpointError(f"{self.describe()} keeps no state, but the checkpoint holds {sorted(state)}")
