"""Parameters that a policy trains beside the model's own (layer 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from distiller_ng.core.context import StepContext

__all__ = ["join_optimizer"]


def join_optimizer(
    ctx: StepContext,
    named: Sequence[tuple[str, nn.Parameter]],
    *,
    lr: float | None = None,
    weight_decay: float | None = None,
) -> None:
    """Give the parameters that no optimizer of the run has to the scheduler's, as a group of their own.

    ``lr``: its learning rate (None: the first group's). Nothing happens while there is no optimizer.
    """
    optimizer = ctx.optimizer
    if optimizer is None or not named:
        return
    known = {id(p) for o in [optimizer, *ctx.masks.optimizers] for group in o.param_groups for p in group["params"]}
    fresh = [(name, parameter) for name, parameter in named if id(parameter) not in known]
    if not fresh:
        return
    first = optimizer.param_groups[0]
    group: dict[str, Any] = {"params": fresh if "param_names" in first else [parameter for _, parameter in fresh]}
    group |= {key: first[key] if lr is None else lr for key in ("lr", "initial_lr") if key in first}
    if weight_decay is not None and "weight_decay" in optimizer.defaults:
        group["weight_decay"] = weight_decay
    optimizer.add_param_group(group)
