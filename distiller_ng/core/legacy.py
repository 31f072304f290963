"""Policies written against Distiller's hooks run unchanged through one adapter (layer 1)."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from distiller_ng.core.context import StepContext
from distiller_ng.core.policy import HOOKS, Policy, PolicyLoss
from distiller_ng.errors import ArgumentError

__all__ = ["LegacyPolicyAdapter", "ScheduledTrainingPolicy", "as_policy"]


class ScheduledTrainingPolicy:
    """Distiller's base class: hooks with its positional arguments, all doing nothing.

    For ported code only; write new policies as :class:`distiller_ng.Policy`.
    """

    def __init__(self, classes: Any = None, layers: Any = None) -> None:
        self.classes = classes
        self.layers = layers

    def on_epoch_begin(self, model: Any, zeros_mask_dict: Any, meta: dict[str, Any], **kwargs: Any) -> None:
        """A new epoch is about to begin."""

    def on_minibatch_begin(
        self,
        model: Any,
        epoch: int,
        minibatch_id: int,
        minibatches_per_epoch: int,
        zeros_mask_dict: Any,
        meta: dict[str, Any],
        optimizer: Any = None,
    ) -> None:
        """The forward pass of a minibatch is about to begin."""

    def before_backward_pass(
        self,
        model: Any,
        epoch: int,
        minibatch_id: int,
        minibatches_per_epoch: int,
        loss: Tensor,
        zeros_mask_dict: Any,
        optimizer: Any = None,
    ) -> PolicyLoss | None:
        """The loss was computed; may return a new one."""

    def before_parameter_optimization(
        self,
        model: Any,
        epoch: int,
        minibatch_id: int,
        minibatches_per_epoch: int,
        zeros_mask_dict: Any,
        meta: dict[str, Any],
        optimizer: Any,
    ) -> None:
        """``optimizer.step()`` is about to be called."""

    def on_minibatch_end(
        self,
        model: Any,
        epoch: int,
        minibatch_id: int,
        minibatches_per_epoch: int,
        zeros_mask_dict: Any,
        optimizer: Any,
    ) -> None:
        """``optimizer.step()`` was called."""

    def on_epoch_end(self, model: Any, zeros_mask_dict: Any, meta: dict[str, Any], **kwargs: Any) -> None:
        """The epoch is over."""


class LegacyPolicyAdapter(Policy):
    """Calls a Distiller-style policy from ours."""

    def __init__(self, legacy: Any) -> None:
        self.legacy = legacy

    def on_epoch_begin(self, ctx: StepContext) -> None:
        """Distiller's ``on_epoch_begin``."""
        self.legacy.on_epoch_begin(ctx.model, ctx.masks, _meta(ctx))

    def on_minibatch_begin(self, ctx: StepContext) -> None:
        """Distiller's ``on_minibatch_begin``."""
        self.legacy.on_minibatch_begin(ctx.model, *_where(ctx), ctx.masks, _meta(ctx), ctx.optimizer)

    def before_backward_pass(self, ctx: StepContext) -> PolicyLoss | None:
        """Distiller's ``before_backward_pass``."""
        result: PolicyLoss | None = self.legacy.before_backward_pass(
            ctx.model, *_where(ctx), ctx.loss, ctx.masks, ctx.optimizer
        )
        return result

    def before_parameter_optimization(self, ctx: StepContext) -> None:
        """Distiller's ``before_parameter_optimization``."""
        self.legacy.before_parameter_optimization(ctx.model, *_where(ctx), ctx.masks, _meta(ctx), ctx.optimizer)

    def on_minibatch_end(self, ctx: StepContext) -> None:
        """Distiller's ``on_minibatch_end``."""
        self.legacy.on_minibatch_end(ctx.model, *_where(ctx), ctx.masks, ctx.optimizer)

    def on_epoch_end(self, ctx: StepContext) -> None:
        """Distiller's ``on_epoch_end``, with ``metrics`` as a keyword where the loop gave any."""
        extra = {"metrics": dict(ctx.metrics)} if ctx.metrics else {}
        self.legacy.on_epoch_end(ctx.model, ctx.masks, _meta(ctx), **extra)

    def listens_to(self, hook: str) -> bool:
        """Whether the wrapped policy has a hook of its own."""
        own = getattr(type(self.legacy), hook, None)
        return own is not None and own is not getattr(ScheduledTrainingPolicy, hook)

    def describe(self) -> str:
        """The wrapped policy's class."""
        return type(self.legacy).__name__

    def state_dict(self) -> dict[str, Any]:
        """The wrapped policy's, if it keeps one."""
        saved: dict[str, Any] = self.legacy.state_dict() if hasattr(self.legacy, "state_dict") else {}
        return saved

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The wrapped policy's, if it keeps one."""
        if hasattr(self.legacy, "load_state_dict"):
            self.legacy.load_state_dict(state)
        else:
            super().load_state_dict(state)


def as_policy(policy: Any) -> Policy:
    """``policy`` itself, or an adapter (with a deprecation warning) around one written for Distiller.

    Raises :class:`ArgumentError` for an object that has none of the hooks.
    """
    if isinstance(policy, Policy):
        _check_signatures(policy)
        return policy
    if isinstance(policy, type) or not any(callable(getattr(policy, hook, None)) for hook in HOOKS):
        raise ArgumentError(f"not a policy: {policy!r}. Give an instance of a subclass of distiller_ng.Policy")
    warnings.warn(
        f"{type(policy).__name__} uses Distiller's positional hooks; derive from distiller_ng.Policy, whose hooks "
        "take one StepContext",
        DeprecationWarning,
        stacklevel=3,
    )
    return LegacyPolicyAdapter(policy)


def _check_signatures(policy: Policy) -> None:
    """Refuse a subclass of ours whose hooks take Distiller's arguments: its base class cannot be driven that way."""
    for hook in HOOKS:
        needed = [
            parameter
            for parameter in inspect.signature(getattr(policy, hook)).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        if len(needed) > 1:
            raise ArgumentError(
                f"{type(policy).__name__}.{hook} takes {', '.join(p.name for p in needed)}; hooks of a "
                "distiller_ng.Policy take one StepContext. Change the signature, or derive from "
                "distiller_ng.ScheduledTrainingPolicy to keep Distiller's"
            )


def _where(ctx: StepContext) -> tuple[int, int, int]:
    return ctx.position.epoch, ctx.position.minibatch_id, ctx.position.minibatches_per_epoch


def _meta(ctx: StepContext) -> dict[str, Any]:
    return {**ctx.window.meta(ctx.epoch), "model": ctx.model, "optimizer": ctx.optimizer}
