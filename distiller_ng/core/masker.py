"""The mask of one parameter, with its owners and its backend (layer 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from distiller_ng.errors import ArgumentError

__all__ = ["USER", "ParameterMasker"]

#: Owner of masks assigned directly (``masker.mask = t``).
USER = "user"
_LAYOUT = ("_owners", "unmasked_copy", "_effective", "_projection", "_applied")


class ParameterMasker:
    """Masks one parameter; Distiller's class of that name.

    Backends: projection (default: the weight itself is zeroed, and again after every step), forward-only
    (``mask_on_forward_only``: zeroed before each forward, free to move in the step) and double copies
    (``use_double_copies``: masked for forward and backward, the unmasked copy is what the step updates).
    """

    def __init__(self, param_name: str) -> None:
        self.param_name = param_name
        self.is_regularization_mask = False
        #: Whose mask a regularization mask is; it alone is dropped after one application.
        self.regularization_owner = USER
        self.reset_state = False
        self.unmasked_copy: Tensor | None = None
        self.backward_hook_handle: RemovableHandle | None = None
        self._listener: Callable[[bool], None] | None = None
        self._parameter: Tensor | None = None
        self._masks_gradients = False
        self._mask_on_forward_only = False
        self._use_double_copies = False
        self._owners: dict[str, Tensor] = {}
        self._binary: dict[str, bool] = {}
        self._effective: Tensor | None = None
        self._projection: Tensor | None = None
        self._applied: Tensor | None = None

    def belongs_to(self, parameter: Tensor, listener: Callable[[bool], None]) -> None:
        """Mask this parameter from now on: masks must have its shape, and ``listener`` hears of every change.

        It is called with True where the mask has to be applied again.
        """
        self._parameter, self._listener = parameter, listener

    def parameter(self) -> Tensor | None:
        """The parameter a registry gave this masker; None for one made by hand."""
        return self._parameter

    @property
    def mask(self) -> Tensor | None:
        """The effective mask: the user's own if there is one, else the product over owners; None = dense."""
        if self._effective is None and self._owners:
            if USER in self._owners:
                self._effective = self._owners[USER]
            else:
                masks = list(self._owners.values())
                product = masks[0]
                for other in masks[1:]:
                    product = product * other
                self._effective = product
        return self._effective

    @mask.setter
    def mask(self, mask: Tensor | None) -> None:
        if mask is None:  # Distiller's way of dropping whatever mask there is
            self.clear()
        else:
            self.set(mask, owner=USER)

    @property
    def owners(self) -> Mapping[str, Tensor]:
        """``{owner: mask}``."""
        return dict(self._owners)

    def set(self, mask: Tensor | None, *, owner: str, binary: bool | None = None) -> None:
        """Replace (or with None release) one owner's mask.

        It takes the parameter's device and dtype. Raises :class:`ArgumentError` for a mask of another shape.
        """
        if mask is not None and self._parameter is not None:
            if mask.shape != self._parameter.shape:
                raise ArgumentError(
                    f"mask for {self.param_name!r} has shape {list(mask.shape)}; the parameter's is "
                    f"{list(self._parameter.shape)}"
                )
            mask = mask.detach().to(device=self._parameter.device, dtype=self._parameter.dtype)
        if mask is None:
            if self._owners.pop(owner, None) is None:
                return
            self._binary.pop(owner, None)
        else:
            self._owners[owner] = mask
            self._binary[owner] = bool(((mask == 0) | (mask == 1)).all()) if binary is None else binary
        self._changed()

    def clear(self) -> None:
        """Drop the masks of all owners."""
        if self._owners:
            self._owners.clear()
            self._binary.clear()
            self._changed()

    @property
    def projection_mask(self) -> Tensor | None:
        """The mask for repeated application: scaled masks (Bernoulli's) count as 0/1 here, so it is idempotent."""
        mask = self.mask
        if mask is None or all(self._binary.values()):
            return mask
        if self._projection is None:
            self._projection = (mask != 0).to(mask.dtype)
        return self._projection

    # -- backends ---------------------------------------------------------------------------------------------------

    @property
    def mask_on_forward_only(self) -> bool:
        """Distiller's flag: the mask is not applied again after ``optimizer.step()``."""
        return self._mask_on_forward_only

    @mask_on_forward_only.setter
    def mask_on_forward_only(self, value: bool) -> None:
        self._mask_on_forward_only = bool(value)
        self._changed()

    @property
    def use_double_copies(self) -> bool:
        """Distiller's flag: keep and update an unmasked copy of the weights."""
        return self._use_double_copies

    @use_double_copies.setter
    def use_double_copies(self, value: bool) -> None:
        self._use_double_copies = bool(value)
        self._changed()

    @property
    def is_forward_only(self) -> bool:
        """Whether the mask acts in forward passes only (either flag)."""
        return self._mask_on_forward_only or self._use_double_copies

    @property
    def masks_gradients(self) -> bool:
        """Whether gradients of masked weights are zeroed; the registry keeps the hook for it."""
        return self._masks_gradients

    @masks_gradients.setter
    def masks_gradients(self, value: bool) -> None:
        if self._masks_gradients != bool(value):
            self._masks_gradients = bool(value)
            if self._listener is not None:
                self._listener(False)

    def sync_gradient_hook(self, parameter: nn.Parameter) -> None:
        """Install or remove the gradient hook, as :attr:`masks_gradients` says."""
        if not self._masks_gradients:
            self.drop_gradient_hook()
        elif self.backward_hook_handle is None and parameter.requires_grad:
            self.backward_hook_handle = parameter.register_hook(self.mask_gradient)  # type: ignore[no-untyped-call]

    def drop_gradient_hook(self) -> None:
        """Remove the gradient hook, if there is one."""
        if self.backward_hook_handle is not None:
            self.backward_hook_handle.remove()
            self.backward_hook_handle = None

    @torch.no_grad()
    def apply_mask(self, parameter: nn.Parameter) -> nn.Parameter | None:
        """Multiply the parameter by the mask in place and return it; None when there is no mask.

        With double copies the unmasked values are kept until :meth:`revert_weights`; a mask that belongs to a
        regularizer (``is_regularization_mask``) is dropped afterwards.
        """
        mask = self.mask
        if mask is None:
            return None
        if self._use_double_copies:
            if self.unmasked_copy is None:
                self.unmasked_copy = parameter.detach().clone()
            else:  # another forward before the step: a scaled mask must not act twice
                parameter.data.copy_(self.unmasked_copy)
        self.mask_tensor(parameter)
        if self.is_regularization_mask:
            self.set(None, owner=self.regularization_owner)
        return parameter

    @torch.no_grad()
    def mask_tensor(self, tensor: Tensor) -> Tensor:
        """Multiply any tensor of the parameter's shape by the mask in place."""
        mask = self.mask
        if mask is not None:
            tensor.data.mul_(mask.to(device=tensor.device, dtype=tensor.dtype))
        return tensor

    def mask_gradient(self, gradient: Tensor) -> Tensor | None:
        """``gradient * mask``, or None (leave it alone) without a mask; a hook for ``Tensor.register_hook``."""
        mask = self.mask
        return None if mask is None else gradient * mask.to(device=gradient.device, dtype=gradient.dtype)

    @torch.no_grad()
    def revert_weights(self, parameter: nn.Parameter) -> None:
        """Put the unmasked copy back, once."""
        if self.unmasked_copy is not None:
            parameter.data.copy_(self.unmasked_copy)
            self.unmasked_copy = None

    # -- bookkeeping ------------------------------------------------------------------------------------------------

    def changed_weights(self, like: Tensor) -> Tensor | None:
        """Where a weight changed between pruned and live since masks were last applied; None = nowhere."""
        before, after = self._applied, self.mask
        if before is None and after is None:
            return None
        dead_before = torch.zeros_like(like, dtype=torch.bool) if before is None else before == 0
        dead_after = torch.zeros_like(like, dtype=torch.bool) if after is None else after == 0
        return dead_before ^ dead_after

    def mark_applied(self) -> None:
        """Remember the present mask as the one the weights carry."""
        self._applied = self.mask

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to save."""
        flags = self.is_forward_only or self._masks_gradients
        return not (self._owners or flags or self._applied is not None)

    @property
    def is_pending(self) -> bool:
        """Whether the weights do not carry the present mask yet."""
        return self._applied is not self.mask

    # -- a parameter that gets smaller --------------------------------------------------------------------------------

    def select(self, dim: int, kept: Sequence[int]) -> None:
        """Keep these entries of dimension ``dim`` of every mask and copy: the parameter is about to lose the others."""

        def part(tensor: Tensor) -> Tensor:
            return tensor.index_select(dim, torch.tensor(kept, device=tensor.device))

        applied_is_current = self._applied is self.mask
        self._owners = {owner: part(mask) for owner, mask in self._owners.items()}
        self.unmasked_copy = None if self.unmasked_copy is None else part(self.unmasked_copy)
        applied = self._applied
        self._effective = self._projection = None
        self._applied = self.mask if applied_is_current or applied is None else part(applied)
        if self._listener is not None:
            self._listener(not applied_is_current)

    def layout(self) -> dict[str, Any]:
        """Everything :meth:`select` changes, for :meth:`restore_layout`."""
        return {name: getattr(self, name) for name in _LAYOUT}

    def restore_layout(self, layout: Mapping[str, Any]) -> None:
        """Take :meth:`select` back."""
        for name, value in layout.items():
            setattr(self, name, value)
        if self._listener is not None:
            self._listener(False)

    def state_dict(self) -> dict[str, Any]:
        """Masks by owner and flags, as plain values and tensors."""
        return {
            "owners": dict(self._owners),
            "binary": dict(self._binary),
            "mask_on_forward_only": self._mask_on_forward_only,
            "use_double_copies": self._use_double_copies,
            "masks_gradients": self._masks_gradients,
            "is_regularization_mask": self.is_regularization_mask,
            "regularization_owner": self.regularization_owner,
            "reset_state": self.reset_state,
            "unmasked_copy": self.unmasked_copy,
            "pending": self.is_pending,
        }

    def load_state_dict(self, state: Mapping[str, Any] | None, *, like: Tensor) -> None:
        """Restore :meth:`state_dict` onto the device of ``like``; None clears everything."""
        saved = state or {}
        self._owners = {o: m.to(device=like.device, dtype=like.dtype) for o, m in saved.get("owners", {}).items()}
        self._binary = dict(saved.get("binary", {}))
        self._effective = self._projection = None
        self._mask_on_forward_only = saved.get("mask_on_forward_only", False)
        self._use_double_copies = saved.get("use_double_copies", False)
        self._masks_gradients = saved.get("masks_gradients", False)
        self.is_regularization_mask = saved.get("is_regularization_mask", False)
        self.regularization_owner = saved.get("regularization_owner", USER)
        self.reset_state = saved.get("reset_state", False)
        copy = saved.get("unmasked_copy")
        self.unmasked_copy = None if copy is None else copy.to(like.device)
        self._applied = None if saved.get("pending") else self.mask

    def _changed(self) -> None:
        self._effective = self._projection = None
        if self._listener is not None:
            self._listener(True)

    def __getstate__(self) -> dict[str, Any]:
        """A copy gets a gradient hook of its own when its registry is next prepared."""
        return {**self.__dict__, "backward_hook_handle": None}
