"""Masks: who masks which parameter, and the fused pass that keeps masked weights at zero (layer 1).

A mask has its parameter's shape and dtype, 1 = keep. Several owners may mask one parameter: the effective mask is
their product. A mask assigned directly (``registry[name].mask = t``) belongs to the owner "user" and wins.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from distiller_ng.core.masker import ParameterMasker
from distiller_ng.errors import CheckpointError, TargetError, did_you_mean
from distiller_ng.names import ParameterIndex, UnknownName

__all__ = ["RESTORED", "MaskRegistry", "create_model_masks_dict"]

#: Owner of masks read from a checkpoint that says nothing about owners; it yields to the first pruner that decides.
RESTORED = "restored"


class MaskRegistry(MutableMapping[str, ParameterMasker]):
    """All maskers of one model, by canonical parameter name; Distiller's ``zeros_mask_dict``.

    Names written for a wrapped model find the same masker. Deleting a masker releases its masks.
    """

    def __init__(self, parameters: ParameterIndex) -> None:
        self.parameters = parameters
        self._maskers: dict[str, ParameterMasker] = {name: self._new_masker(name) for name in parameters}
        self._pending: dict[str, None] = {}  # names whose mask changed since it was last applied
        self._projection: tuple[list[Tensor], list[Tensor]] | None = None
        self._mask_of: dict[int, Tensor] = {}  # the same, by the weight's identity
        self._forward_names: list[str] = []  # names the forward-only and double-copy backends handle
        self._attached: list[tuple[Optimizer, list[RemovableHandle]]] = []
        #: Real (not skipped) steps of attached optimizers so far.
        self.steps = 0
        #: Called at the beginning of every step of an attached optimizer.
        self.before_step: Callable[[], None] | None = None

    # -- mapping ----------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> ParameterMasker:
        found = name if name in self._maskers else self.parameters.find(name)
        if found is None or found not in self._maskers:
            raise UnknownName(name, self._maskers)
        return self._maskers[found]

    def __setitem__(self, name: str, masker: ParameterMasker) -> None:
        found = self._resolve(name)
        self._maskers[found] = self._adopt(masker, found)
        self._mark(found)

    def __delitem__(self, name: str) -> None:
        self[name].clear()
        del self._maskers[self._resolve(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._maskers)

    def __len__(self) -> int:
        return len(self._maskers)

    # -- writing ----------------------------------------------------------------------------------------------------

    def set(
        self, name: str, mask: Tensor | None, *, owner: str, binary: bool | None = None, reset_state: bool = False
    ) -> None:
        """Give ``owner``'s mask for the parameter ``name``; it replaces that owner's earlier one, None releases it.

        ``binary`` says whether the mask holds only 0 and 1 (None: look). ``reset_state`` zeroes the optimizer state of
        weights that change between pruned and live. Raises :class:`ArgumentError` for a mask of another shape and
        :class:`TargetError` for a name the model does not have.
        """
        found = self._resolve(name)
        masker = self._maskers.setdefault(found, self._new_masker(found))
        masker.reset_state = masker.reset_state or reset_state
        if owner != RESTORED:
            masker.set(None, owner=RESTORED)
        masker.set(mask, owner=owner, binary=binary)

    def release(self, owner: str, names: Iterable[str] | None = None) -> None:
        """Drop the masks of one owner, everywhere or for ``names``; other owners' masks stay."""
        for name in list(self._maskers) if names is None else names:
            self[name].set(None, owner=owner)

    def masked(self) -> dict[str, Tensor]:
        """``{name: effective mask}`` of the parameters that have one."""
        return {name: mask for name, masker in self._maskers.items() if (mask := masker.mask) is not None}

    # -- applying ---------------------------------------------------------------------------------------------------

    @property
    def has_changes(self) -> bool:
        """Whether a mask changed since masks were last applied."""
        return bool(self._pending)

    @property
    def has_forward_masks(self) -> bool:
        """Whether any masker masks in the forward pass only (Distiller's ``mask_on_forward_only``, double copies)."""
        self.prepare()
        return bool(self._forward_names)

    @torch.no_grad()
    def apply_changes_(self) -> None:
        """Multiply the weights whose mask changed, once, and zero optimizer state where that was asked for."""
        pending, self._pending = self._pending, {}
        for name in pending:
            masker = self._maskers.get(name)
            if masker is None:
                continue
            parameter = self.parameters[name]
            if masker.reset_state:
                self._reset_state(parameter, masker)
            mask = masker.mask
            if mask is not None and not masker.is_forward_only:
                parameter.mul_(mask.to(parameter.device))
            masker.mark_applied()

    def project_(self) -> None:
        """Zero every masked weight in place: one fused pass over the parameters that have a mask, idempotent."""
        if self._pending:
            self.apply_changes_()
        self.prepare()
        weights, masks = self._projection  # type: ignore[misc]
        if weights:
            if weights[0].device != masks[0].device:  # the model moved
                self._projection = None
                return self.project_()
            with torch.no_grad():
                torch._foreach_mul_(weights, masks)
        return None

    def apply_forward_(self, names: Iterable[str] | None = None) -> None:
        """Mask, before a forward pass, weights of the forward-only and double-copy backends: all, or ``names``."""
        if self.has_forward_masks:
            for name in self._forward_names if names is None else names:
                if self._maskers[name].is_forward_only:
                    self._maskers[name].apply_mask(self.parameters[name])

    def revert_(self, names: Iterable[str] | None = None) -> None:
        """Put back the unmasked copies that the double-copy backend kept."""
        for name in self._forward_names if names is None else names:
            self._maskers[name].revert_weights(self.parameters[name])

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Project after every real step of ``optimizer``; attaching the same one again changes nothing."""
        for known, hooks in self._attached:
            if known is optimizer:
                return hooks[-1]
        before = optimizer.register_step_pre_hook(self._before_step)
        after = optimizer.register_step_post_hook(self._after_step)
        self._attached.append((optimizer, [before, after]))
        return after

    def detach(self) -> None:
        """Remove every optimizer hook."""
        for _, hooks in self._attached:
            for hook in hooks:
                hook.remove()
        self._attached.clear()

    @property
    def optimizers(self) -> list[Optimizer]:
        """The attached optimizers."""
        return [optimizer for optimizer, _ in self._attached]

    @property
    def is_attached(self) -> bool:
        """Whether some optimizer projects by itself."""
        return bool(self._attached)

    @contextlib.contextmanager
    def gradients_unmasked(self) -> Iterator[None]:
        """Inside, gradients of masked weights are what they are: the hooks that zero them are off."""
        for masker in self._maskers.values():
            masker.drop_gradient_hook()
        try:
            yield
        finally:
            for name, masker in self._maskers.items():
                masker.sync_gradient_hook(self.parameters[name])

    # -- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Masks by owner and the flags of every masker that holds something."""
        return {name: masker.state_dict() for name, masker in self._maskers.items() if not masker.is_idle}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; raises :class:`CheckpointError` and changes nothing if a mask does not fit."""
        for name, saved in state.items():
            if name not in self.parameters:
                raise CheckpointError(f"checkpoint masks {name!r}, unknown here. {did_you_mean(name, self)}")
            shape = list(self.parameters[name].shape)
            for owner, mask in saved["owners"].items():
                if list(mask.shape) != shape:
                    raise CheckpointError(f"mask of {name!r} by {owner!r} is {list(mask.shape)}, the weight {shape}")
        self.put_back(state)

    def put_back(self, state: Mapping[str, Any]) -> None:
        """:meth:`load_state_dict` without looking at shapes: whoever calls it puts the parameters back too."""
        for name, masker in self._maskers.items():
            masker.load_state_dict(state.get(name), like=self.parameters[name])
        self._pending = {name: None for name, masker in self._maskers.items() if masker.is_pending}
        self._projection = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hook the (copied) optimizers anew: hooks belong to one registry."""
        return {**self.__dict__, "_attached": self.optimizers, "_projection": None, "_mask_of": {}, "before_step": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "_attached": []})
        for optimizer in state["_attached"]:
            self.attach(optimizer)

    # -- following the model ----------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Adapt to parameters that the model gained, lost or replaced (``parameters`` was refreshed)."""
        for name in [name for name in self._maskers if name not in self.parameters]:
            del self._maskers[name]
        for name, parameter in self.parameters.items():
            masker = self._maskers.get(name)
            if masker is None:
                self._maskers[name] = self._new_masker(name)
            elif masker.parameter() is not parameter:
                masker.drop_gradient_hook()
                self._adopt(masker, name)
        self._pending = {name: None for name, masker in self._maskers.items() if masker.mask is not None}
        self._projection = None

    def prepare(self) -> None:
        """Bring the fused lists and the gradient hooks up to date; nothing to do while no mask or flag changes."""
        if self._projection is None:
            self._rebuild()

    # -- internals --------------------------------------------------------------------------------------------------

    def _resolve(self, name: str) -> str:
        found = self.parameters.find(name)
        if found is None:
            raise TargetError(f"{name!r} is no parameter of the model. {did_you_mean(name, self.parameters)}")
        return found

    def _new_masker(self, name: str) -> ParameterMasker:
        return self._adopt(ParameterMasker(name), name)

    def _adopt(self, masker: ParameterMasker, name: str) -> ParameterMasker:
        masker.belongs_to(self.parameters[name], partial(self._mark, name))
        return masker

    def _mark(self, name: str, apply: bool = True) -> None:
        if apply:
            self._pending[name] = None
        self._projection = None

    def _rebuild(self) -> None:
        weights: list[Tensor] = []
        masks: list[Tensor] = []
        self._forward_names = []
        for name, masker in self._maskers.items():
            masker.sync_gradient_hook(self.parameters[name])
            if masker.is_forward_only:
                self._forward_names.append(name)
            elif (mask := masker.projection_mask) is not None:
                weights.append(self.parameters[name])
                masks.append(mask.to(device=weights[-1].device, dtype=weights[-1].dtype))
        self._projection = (weights, masks)
        self._mask_of = {id(weight): mask for weight, mask in zip(weights, masks, strict=True)}

    def _reset_state(self, parameter: nn.Parameter, masker: ParameterMasker) -> None:
        changed = masker.changed_weights(parameter)
        if changed is None:
            return
        for optimizer, _ in self._attached:
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.masked_fill_(changed, 0)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.before_step is not None:
            self.before_step()
        if self._forward_names:
            self.revert_()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # Fused optimizers run step() even when GradScaler found infinities: they skip inside, so we must look.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(torch.as_tensor(found_inf).any()):
            return
        self.steps += 1
        if len(self._attached) == 1 or self._pending:
            self.project_()
        else:
            self._project_of(optimizer)

    @torch.no_grad()
    def _project_of(self, optimizer: Optimizer) -> None:
        """Project what this one of several optimizers stepped: another's weights may still be needed for backward."""
        self.prepare()
        for parameter in chain.from_iterable(group["params"] for group in optimizer.param_groups):
            if id(parameter) in self._mask_of:
                parameter.mul_(self._mask_of[id(parameter)].to(parameter.device))


def create_model_masks_dict(model: nn.Module) -> MaskRegistry:
    """A :class:`MaskRegistry` with one (empty) masker for each parameter of ``model``."""
    return MaskRegistry(ParameterIndex(model))
