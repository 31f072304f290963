"""Changes to how a whole model trains: frozen parameters and dropout (layer 2)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.names import ParameterIndex

__all__ = ["adjust_dropout", "freeze_all", "freeze_training"]


def freeze_training(model: nn.Module, which_params: str | Iterable[str], freeze: bool = True) -> None:
    """Stop (or resume, ``freeze=False``) the training of some parameters, by ``requires_grad``.

    ``which_params`` is a name, a ``re:`` pattern or a token such as ``__ALL_PRUNABLE__``, or a list of them; the name
    of a module means all its parameters. Optimizers with momentum or weight decay skip a parameter only once its
    ``.grad`` is None, so that is cleared too.

    Example: ``freeze_training(model, ["conv1", "fc.weight"])``. Raises :class:`TargetError` for what matches nothing;
    nothing is changed then.
    """
    index = ParameterIndex(model)
    wanted = [which_params] if isinstance(which_params, str) else list(which_params)
    names: list[str] = []
    for position, target in enumerate(wanted):
        inside = [name for name in index if name.startswith(f"{target}.")]
        names += inside or index.match(target, argument=("which_params", position))
    for name in names:
        _freeze(index[name], freeze)


def freeze_all(model: nn.Module, freeze: bool = True) -> None:
    """Stop (or resume) the training of every parameter."""
    for parameter in model.parameters():
        _freeze(parameter, freeze)


def adjust_dropout(module: nn.Module, new_probability: float) -> None:
    """Set the probability of every dropout layer in ``module`` (itself included): ``model.apply`` is not needed.

    A model without dropout is left as it is. Raises :class:`ArgumentError` unless ``0 <= new_probability <= 1``.
    """
    if not 0 <= new_probability <= 1:
        raise ArgumentError(f"a dropout probability lies between 0 and 1, got {new_probability}")
    for layer in module.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.p = new_probability


def _freeze(parameter: nn.Parameter, freeze: bool) -> None:
    parameter.requires_grad_(not freeze)
    if freeze:
        parameter.grad = None
