"""Matrix-free second-order pruning (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.mask_types import MaskTypeLike
from distiller_ng.pruning._checks import check_number
from distiller_ng.pruning._second_order import SecondOrderPruner, check_count
from distiller_ng.pruning.base import PRUNERS, Scope
from distiller_ng.pruning.gradual import FinalSparsity, InitSparsity
from distiller_ng.pruning.sparsity_schedules.base import ScheduleLike
from distiller_ng.pruning.sparsity_schedules.curves import Curve
from distiller_ng.registry import RecipeTag

__all__ = ["MFACPruner"]


@PRUNERS.register(
    "MFACPruner",
    injected=("name",),
    recipe_tag=RecipeTag(
        "MFACPruningModifier",
        spellings={"available_gpus": "available_devices"},
        ignored={"grads_device": "gradients are kept where they are worked on (available_devices)"},
    ),
)
class MFACPruner(SecondOrderPruner):
    """M-FAC: prunes by large blocks of the inverse Fisher matrix, or all of it, without ever forming it.

    As :class:`~distiller_ng.pruning.obs.OBSPruner`, with fewer gradients and blocks so large that they have more
    weights than there are gradients; ``fisher_block_size: null`` is one block for each parameter. Then only the
    gradients are kept, and with ``L L^T = m damp I + G G^T``, ``m x m``, ``F^-1 = (I - C^T C) / damp`` where ``C = L^-1
    G``. ``num_grads``: how many, or by sparsity: ``{0.0: 64, 0.5: 128, 0.75: 256}`` takes the number of the smallest
    key that is not below the present sparsity (the largest key's beyond them). ``num_pages``: in how many parts, at
    least, the columns of a block are worked on. ``use_gradient_buffering``: take the gradients of the last training
    steps instead of sampling (all of them are kept); by default only where there is nothing to sample from.
    ``available_devices``: where to compute; the first one counts (default: where the parameter is). ``damp``,
    ``fisher_block_size``, ``num_recomputations``, ``grad_sampler_kwargs``: what they are for OBSPruner.

    Memory, besides the model's: four bytes for each of ``n`` weights times ``min(fisher_block_size, num_grads)`` during
    a decision (a quarter more where ``num_grads >= fisher_block_size``).

    Source: E. Frantar, E. Kurtic and D. Alistarh, "M-FAC: Efficient Matrix-Free Approximations of Second-Order
    Information", https://arxiv.org/abs/2107.03356. Weights ``[1, 1]``, one gradient ``[1, 1]``, ``damp = 1``: ``L =
    sqrt(3)``, ``C = [1, 1] / sqrt(3)``, ``F^-1 = I - [[1, 1], [1, 1]] / 3``; at 0.5 what remains is ``[0, 1.5]``::

        pruners:
          mfac:
            class: MFACPruner
            weights: __ALL_PRUNABLE__
            init_sparsity: 0.05
            final_sparsity: 0.9
            num_grads: {0.0: 64, 0.5: 128}
        policies:
          - pruner: {instance_name: mfac}
            starting_epoch: 0
            ending_epoch: 10
            frequency: 1

    Raises :class:`ArgumentError` for malformed arguments, :class:`CalibrationError` where there is nothing to sample.
    """

    epsilon: ClassVar[float] = 0.0

    def __init__(
        self,
        name: str,
        weights: str | Sequence[str] | None = None,
        *,
        init_sparsity: InitSparsity | None = None,
        final_sparsity: FinalSparsity | None = None,
        inter_func: Curve = "cubic",
        mask_type: MaskTypeLike = "unstructured",
        num_grads: int | Mapping[float, int] = 64,
        damp: float = 1e-5,
        fisher_block_size: int | None = 2000,
        num_pages: int = 1,
        use_gradient_buffering: bool | None = None,
        available_devices: Sequence[str] | None = None,
        num_recomputations: int = 1,
        grad_sampler_kwargs: Mapping[str, Any] | None = None,
        sparsity: float | None = None,
        schedule: ScheduleLike | None = None,
        scope: Scope = "layer",
        pattern: str | int | None = None,
    ) -> None:
        self.num_grads = _checked_numbers(num_grads)
        self.num_pages = check_count("num_pages", num_pages)
        if use_gradient_buffering not in (None, True, False):
            message = f"use_gradient_buffering is true, false or left out, got {use_gradient_buffering!r}"
            raise ArgumentError(message, argument=("use_gradient_buffering",))
        self.prefers_buffer = use_gradient_buffering is True
        self.device = _first_device(available_devices)
        super().__init__(
            name,
            weights,
            damp=damp,
            fisher_block_size=fisher_block_size,
            num_recomputations=num_recomputations,
            grad_sampler_kwargs=grad_sampler_kwargs,
            init_sparsity=init_sparsity,
            final_sparsity=final_sparsity,
            inter_func=inter_func,
            mask_type=mask_type,
            sparsity=sparsity,
            schedule=schedule,
            scope=scope,
            pattern=pattern,
        )

    def gradients_wanted(self, sparsity: float) -> int:
        """The number of the smallest key that is not below ``sparsity``."""
        if isinstance(self.num_grads, int):
            return self.num_grads
        keys = sorted(self.num_grads)
        return self.num_grads[next((key for key in keys if key >= sparsity), keys[-1])]

    def gradients_most(self) -> int:
        """The largest number."""
        return self.num_grads if isinstance(self.num_grads, int) else max(self.num_grads.values())


def _checked_numbers(value: Any) -> int | dict[float, int]:
    if not isinstance(value, Mapping):
        return check_count("num_grads", value)
    numbers: dict[float, int] = {}
    for key, count in value.items():
        try:
            level = float(key)
        except (TypeError, ValueError):
            message = f"num_grads maps sparsities to numbers of gradients, got the key {key!r}"
            raise ArgumentError(message, argument=("num_grads", key)) from None
        check_number(level, ("num_grads", key), low=0, high=1)
        numbers[level] = check_count("num_grads", count)
    if 0.0 not in numbers:
        message = "num_grads by sparsity must say how many at 0.0: {0.0: 64, 0.5: 128}"
        raise ArgumentError(message, argument=("num_grads",))
    return numbers


def _first_device(names: Any) -> torch.device | None:
    if names is None or names == []:
        return None
    if isinstance(names, str) or not isinstance(names, Sequence):
        message = f"available_devices is a list such as ['cuda:0'], got {names!r}"
        raise ArgumentError(message, argument=("available_devices",))
    try:
        device = torch.device(names[0])
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError) as error:
        message = f"available_devices: {names[0]!r} cannot be used here: {str(error).splitlines()[0]}"
        raise ArgumentError(message, argument=("available_devices", 0)) from None
    return device
