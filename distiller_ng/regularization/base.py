"""What every regularizer is: a penalty per parameter, and optionally a threshold that zeroes groups (layer 2)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor, nn

from distiller_ng.core.masker import ParameterMasker
from distiller_ng.errors import CheckpointError, TargetError
from distiller_ng.names import ParameterIndex, canonical_name
from distiller_ng.registry import Registry

__all__ = ["REGULARIZERS", "Regularizer"]

REGULARIZERS: Registry[Regularizer] = Registry("regularizer", "distiller_ng.regularization")


class Regularizer(ABC):
    """Base of all regularizers.

    ``reg_regims`` maps targets (exact names or ``re:`` patterns) to what the subclass documents: a strength, or
    ``[strength, group type]``. ``threshold_criteria`` is None, or how the magnitude of a group is measured when it is
    compared with the strength after every optimizer step.

    Register with ``@REGULARIZERS.register("MyRegularizer", injected=("name", "model"))``.
    """

    def __init__(
        self, name: str, model: nn.Module | None, reg_regims: Mapping[str, Any], threshold_criteria: str | None = None
    ) -> None:
        self.name = name
        self.reg_regims = dict(reg_regims)
        self.threshold_criteria = threshold_criteria
        self._bound: dict[str, str] = {}
        if model is not None:
            self.bind(ParameterIndex(model), strict=False)

    def bind(self, parameters: ParameterIndex, *, strict: bool = True) -> list[str]:
        """Resolve ``reg_regims`` on a model; exact names win over patterns, then the first pattern wins.

        Raises :class:`TargetError` for a key that matches nothing, unless ``strict`` is False.
        """
        bound: dict[str, str] = {}
        exact: dict[str, str] = {}
        for target in self.reg_regims:
            found = parameters.find(target)
            if found is not None:
                exact.setdefault(found, target)
            if found is not None or strict:
                for name in parameters.match(target, argument=("reg_regims", target)):
                    bound.setdefault(name, target)
        bound.update(exact)
        for name, target in bound.items():
            self.check_parameter(name, parameters[name], target)
        self._bound = bound
        return list(bound)

    @property
    def names(self) -> list[str]:
        """Canonical names of the regularized parameters; empty before :meth:`bind`."""
        return list(self._bound)

    def regim(self, name: str) -> Any:
        """What ``reg_regims`` says about a bound parameter."""
        return self.reg_regims[self._bound[name]]

    def check_parameter(self, name: str, parameter: Tensor, target: str) -> None:
        """Refuse a parameter this regularizer cannot work on; raises :class:`TargetError`."""

    @abstractmethod
    def penalty(self, name: str, param: Tensor) -> Tensor | None:
        """The scalar this parameter adds to the loss; None where it adds nothing."""

    def threshold_mask(self, name: str, param: Tensor) -> Tensor | None:
        """What stays after soft-thresholding (parameter's shape and dtype, 1 = keep); None without a criterion."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beyond the constructor's arguments."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        if state:
            raise CheckpointError(f"regularizer {self.name!r} keeps no state, the checkpoint holds {sorted(state)}")

    # -- Distiller's direct calls -----------------------------------------------------------------------------------

    def loss(
        self,
        param: Tensor,
        param_name: str,
        regularizer_loss: Tensor,
        zeros_mask_dict: Mapping[str, ParameterMasker] | None = None,
    ) -> Tensor:
        """``regularizer_loss`` plus this parameter's penalty; Distiller's entry point (ours adds out of place)."""
        name = self._direct_name(param, param_name)
        penalty = self.penalty(name, param) if name is not None else None
        return regularizer_loss if penalty is None else regularizer_loss + penalty

    def threshold(
        self, param: Tensor, param_name: str, zeros_mask_dict: MutableMapping[str, ParameterMasker]
    ) -> None:
        """Put the threshold mask in ``zeros_mask_dict`` as a mask to apply once; Distiller's entry point."""
        name = self._direct_name(param, param_name)
        mask = self.threshold_mask(name, param.detach()) if name is not None else None
        if mask is not None:
            masker = zeros_mask_dict[param_name]
            masker.set(mask, owner=self.name)
            masker.is_regularization_mask = True

    def _direct_name(self, param: Tensor, param_name: str) -> str | None:
        name = canonical_name(param_name)
        if name in self._bound:
            return name
        alone = ParameterIndex.of_tensors({name: param})
        target = next((t for t in self.reg_regims if canonical_name(t) == name or _matches(alone, t)), None)
        if target is not None:
            self._bound[name] = target
        return None if target is None else name


def _matches(parameters: ParameterIndex, target: str) -> bool:
    try:
        return bool(parameters.match(target))
    except TargetError:
        return False
