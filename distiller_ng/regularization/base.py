"""What every regularizer is: a penalty per parameter, and optionally a threshold that zeroes groups (layer 2)."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, MutableMapping
from numbers import Real
from typing import Any, ClassVar

from torch import Tensor, nn

from distiller_ng.core.masker import ParameterMasker
from distiller_ng.errors import ArgumentError, CheckpointError, ScheduleWarning, TargetError, did_you_mean
from distiller_ng.names import ParameterIndex, canonical_name
from distiller_ng.registry import Registry

__all__ = ["REGULARIZERS", "Regularizer", "check_strength"]

REGULARIZERS: Registry[Regularizer] = Registry("regularizer", "distiller_ng.regularization")


class Regularizer(ABC):
    """Base of all regularizers.

    ``reg_regims`` maps targets (exact names or ``re:`` patterns) to what the subclass documents: a strength, or
    ``[strength, group type]``. ``threshold_criteria`` is None, or how the magnitude of a group is measured when it is
    compared with the strength after every optimizer step. Raises :class:`ArgumentError` for an empty ``reg_regims``
    or an unknown criterion, and :class:`TargetError` for a parameter the subclass cannot work on.

    A complete one: override ``penalty``, and ``check_regim`` to refuse what ``reg_regims`` must not hold::

        @REGULARIZERS.register("MyRegularizer", injected=("name", "model"))
        class MyRegularizer(Regularizer):
            def check_regim(self, target, regim):
                check_strength(regim, ("reg_regims", target))

            def penalty(self, name, param):
                return self.regim(name) * param.abs().sum()
    """

    #: What ``threshold_criteria`` may be, besides None.
    criteria: ClassVar[tuple[str, ...]] = ("Max", "Mean_Abs")

    def __init__(
        self, name: str, model: nn.Module | None, reg_regims: Mapping[str, Any], threshold_criteria: str | None = None
    ) -> None:
        if not isinstance(reg_regims, Mapping) or not reg_regims:
            raise ArgumentError(
                f"reg_regims maps parameter names to strengths and must name at least one, got {reg_regims!r}",
                argument=("reg_regims",),
            )
        if threshold_criteria is not None and threshold_criteria not in self.criteria:
            raise ArgumentError(
                f"unknown threshold_criteria {threshold_criteria!r}. "
                f"{did_you_mean(str(threshold_criteria), self.criteria)} Leave it out for no thresholds",
                argument=("threshold_criteria",),
            )
        self.name = name
        self.reg_regims = dict(reg_regims)
        self.threshold_criteria = threshold_criteria
        for target, regim in self.reg_regims.items():
            self.check_regim(target, regim)
        self._bound: dict[str, str] = {}
        self._direct: dict[str, str] = {}  # names that only loss() and threshold() were asked about
        if model is not None:
            self.bind(ParameterIndex(model), strict=False)

    def bind(self, parameters: ParameterIndex, *, strict: bool = True) -> list[str]:
        """Resolve ``reg_regims`` on a model; exact names win over patterns, then the first target wins.

        Raises :class:`TargetError` for a key that matches nothing, unless ``strict`` is False, and for a parameter
        this regularizer cannot work on. Warns when two keys are names of one parameter.
        """
        bound: dict[str, str] = {}
        exact: dict[str, str] = {}
        for target in self.reg_regims:
            found = parameters.find(target)
            if found is not None:
                first = exact.setdefault(found, target)
                if first != target:
                    warnings.warn(
                        f"regularizer {self.name!r}: {first!r} and {target!r} are the same parameter; {first!r} counts",
                        ScheduleWarning,
                        stacklevel=3,
                    )
            for name in _match(parameters, target, strict):
                bound.setdefault(name, target)
        bound.update(exact)
        for name, target in bound.items():
            self.check_parameter(name, parameters[name], target)
        self._bound = {name: bound[name] for name in parameters if name in bound}
        return list(self._bound)

    @property
    def names(self) -> list[str]:
        """Canonical names of the regularized parameters, in model order; empty before :meth:`bind`."""
        return list(self._bound)

    def regim(self, name: str) -> Any:
        """What ``reg_regims`` says about a bound parameter."""
        target = self._bound.get(name)
        return self.reg_regims[self._direct[name] if target is None else target]

    def check_regim(self, target: str, regim: Any) -> None:
        """Refuse a value of ``reg_regims``; raises :class:`ArgumentError`."""

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
        """Add this parameter's penalty to ``regularizer_loss`` in place and return it; Distiller's entry point."""
        name = self._direct_name(param, param_name)
        penalty = self.penalty(name, param) if name is not None else None
        return regularizer_loss if penalty is None else regularizer_loss.add_(penalty)

    def threshold(self, param: Tensor, param_name: str, zeros_mask_dict: MutableMapping[str, ParameterMasker]) -> None:
        """Put the threshold mask in ``zeros_mask_dict`` as a mask to apply once; Distiller's entry point."""
        name = self._direct_name(param, param_name)
        mask = self.threshold_mask(name, param.detach()) if name is not None else None
        if mask is not None:
            masker = zeros_mask_dict[param_name]
            masker.set(mask, owner=self.name)
            masker.is_regularization_mask, masker.regularization_owner = True, self.name

    def _direct_name(self, param: Tensor, param_name: str) -> str | None:
        name = canonical_name(param_name)
        if name in self._bound or name in self._direct:
            return name
        alone = ParameterIndex.of_tensors({name: param})
        exact = [t for t in self.reg_regims if canonical_name(t) == name]
        target = next((t for t in exact or self.reg_regims if _match(alone, t, strict=False)), None)
        if target is None:
            return None
        self.check_parameter(name, param, target)
        self._direct[name] = target
        return name


def check_strength(value: Any, argument: tuple[str | int, ...]) -> float:
    """``value`` as a strength: a finite number from 0. Raises :class:`ArgumentError` that carries ``argument``.

    >>> check_strength(2, ("reg_regims", "conv1.weight"))
    2.0
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ArgumentError(f"strength must be a number from 0, got {value!r}.{_yaml_hint(value)}", argument=argument)
    if not math.isfinite(value) or value < 0:
        raise ArgumentError(f"strength must be a finite number from 0, got {value!r}", argument=argument)
    return float(value)


def _yaml_hint(value: Any) -> str:
    """YAML 1.1 reads ``1e-5`` as text: only ``1.0e-5`` is a number there."""
    try:
        number = float(value) if isinstance(value, str) else None
    except ValueError:
        number = None
    return "" if number is None else f" This is text: write {number!r} or {number:.1e}"


def _match(parameters: ParameterIndex, target: str, strict: bool) -> list[str]:
    try:
        return parameters.match(target, argument=("reg_regims", target))
    except TargetError:
        if strict:
            raise
        return []
