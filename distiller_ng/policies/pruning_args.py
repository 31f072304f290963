"""What a pruner policy takes below ``args`` (layer 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from distiller_ng.errors import ArgumentError, did_you_mean

__all__ = ["PruningArgs"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningArgs:
    """The ``args:`` of a pruner policy.

    ``levels``: overrides the pruner's levels while this policy runs. ``keep_mask``: at the end of the window the masks
    become permanent, whatever backend was used. ``mini_batch_pruning_frequency``: decide again every that many
    optimizer steps (0: once an epoch). ``mask_on_forward_only``: do not mask again after the optimizer step.
    ``mask_gradients``: mask gradients too (needs ``mask_on_forward_only``). ``use_double_copies``: masked weights for
    forward and backward, the step updates an unmasked copy. ``discard_masks_at_minibatch_end``: a decision lasts one
    minibatch. ``skip_first_minibatch``: decide first in the second minibatch of the first epoch. ``fold_batchnorm``:
    rank filters as the batch norm behind them scales them.

    Ours, not Distiller's: ``zero_masked_gradients`` zeroes gradients of masked weights whatever the backend, so that
    gradient clipping does not count dead weights; ``reset_optimizer_state`` zeroes the optimizer's state of weights
    that change between pruned and live (default: what the pruner says, off for Distiller's pruners). ``mask_group``:
    a masked filter or channel takes everything with it that belongs to it (bias, norm, coupled layers, the next layers'
    inputs), decided once for coupled layers, so that the model that trains is the one that remains after thinning; by
    default wherever the model's channels can be followed (with ``compat: distiller`` nowhere), with ``true`` it is an
    error where they cannot. ``leave_enabled: false`` drops the masks when the window ends: what was pruned stays zero
    there and trains again.
    """

    levels: float | Mapping[str, float] | None = None
    keep_mask: bool = False
    mini_batch_pruning_frequency: int = 0
    mask_on_forward_only: bool = False
    mask_gradients: bool = False
    use_double_copies: bool = False
    discard_masks_at_minibatch_end: bool = False
    skip_first_minibatch: bool = False
    fold_batchnorm: bool = False
    zero_masked_gradients: bool = False
    reset_optimizer_state: bool | None = None
    mask_group: bool | None = None
    leave_enabled: bool = True

    def __post_init__(self) -> None:
        frequency = self.mini_batch_pruning_frequency
        if isinstance(frequency, bool) or not isinstance(frequency, int) or frequency < 0:
            raise ArgumentError(
                f"mini_batch_pruning_frequency is a number of steps, 0 = once an epoch; got {frequency!r}",
                argument=("mini_batch_pruning_frequency",),
            )
        if self.mask_gradients and not self.mask_on_forward_only:
            raise ArgumentError(
                "mask_gradients needs mask_on_forward_only: true; to zero the gradients of masked weights with any "
                "backend write zero_masked_gradients: true",
                argument=("mask_gradients",),
            )

    @classmethod
    def of(cls, values: Mapping[str, Any] | PruningArgs | None) -> PruningArgs:
        """From a mapping; raises :class:`ArgumentError` for a key that does not exist."""
        if isinstance(values, PruningArgs):
            return values
        known = [field.name for field in fields(cls)]
        for key in values or {}:
            if key not in known:
                raise ArgumentError(
                    f"PruningPolicy has no argument {key!r}. {did_you_mean(key, known)}", argument=(key,)
                )
        return cls(**(values or {}))
