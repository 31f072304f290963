"""Optimizers in checkpoints: a name and plain state instead of a pickled class (layer 3)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distiller_ng.checkpoint.legacy import placeholder_name
from distiller_ng.errors import CheckpointError
from distiller_ng.names import ParameterIndex

__all__ = [
    "GroupNames",
    "check_optimizer",
    "follow_structure",
    "group_names",
    "optimizer_type_name",
    "rebuild_optimizer",
]

logger = logging.getLogger(__name__)

#: Canonical parameter names of each parameter group; None for a parameter that is not the model's.
GroupNames: TypeAlias = "list[list[str | None]]"


def optimizer_type_name(value: Any) -> str | None:
    """The class name of an optimizer, of its class, or of what a file says: ``SGD(...)`` -> ``"torch.optim.SGD"``."""
    if value is None or isinstance(value, str):
        return value
    foreign = placeholder_name(value)
    if foreign is not None:
        return f"torch.optim.{foreign.rpartition('.')[2]}" if foreign.startswith("torch.optim.") else foreign
    kind = value if isinstance(value, type) else type(value)
    if getattr(torch.optim, kind.__name__, None) is kind:
        return f"torch.optim.{kind.__name__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def group_names(optimizer: Optimizer, model: nn.Module) -> GroupNames:
    """Which parameters each group of the optimizer holds, e.g. ``[["conv.weight"], ["conv.bias"]]``."""
    names = {id(parameter): name for name, parameter in ParameterIndex(model).items()}
    return [[names.get(id(parameter)) for parameter in group["params"]] for group in optimizer.param_groups]


def follow_structure(optimizer: Optimizer, model: nn.Module, before: Mapping[str, Tensor], names: GroupNames) -> None:
    """Let ``optimizer`` hold what stands for parameters that the model had ``before`` and no longer has.

    ``names`` are those of the saved optimizer's groups. Groups stay what they are; parameters that neither model had
    (of another module) stay too; state is left to ``load_state_dict``. Where groups do not correspond nothing is done:
    :func:`check_optimizer` says why.
    """
    index = ParameterIndex(model)
    present = {id(parameter) for parameter in index.values()}
    gone = {id(parameter) for parameter in before.values()} - present
    groups = optimizer.param_groups
    if len(groups) != len(names) or not any(id(p) in gone for group in groups for p in group["params"]):
        return
    for at, (group, wanted) in enumerate(zip(groups, names, strict=True)):
        if not any(id(parameter) in gone for parameter in group["params"]):
            continue
        if any(name is None or name not in index for name in wanted):
            return
        new = [index[name] for name in wanted if name is not None]
        groups[at] = {**group, "params": new}
        if "param_names" in group:
            groups[at]["param_names"] = [index.raw_name(name) for name in wanted if name is not None]


def check_optimizer(
    optimizer: Optimizer,
    model: nn.Module,
    *,
    kind: str | None,
    state: Mapping[str, Any],
    names: GroupNames | None,
) -> None:
    """Raise :class:`CheckpointError` when the saved state is not of this optimizer; the optimizer is not changed."""
    mine = optimizer_type_name(optimizer)
    if kind is not None and kind != mine:
        raise CheckpointError(f"the checkpoint's optimizer is a {kind}, this one a {mine}: use the same, or reset it")
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    saved = [len(group["params"]) for group in state.get("param_groups", ())]
    if sizes != saved:
        raise CheckpointError(
            f"the checkpoint's optimizer has groups of {saved} parameters, this one of {sizes}: build it as the saved "
            "run did, or reset it"
        )
    if names is not None:
        for here, there in zip(_flat(group_names(optimizer, model)), _flat(names)):
            if here != there:
                raise CheckpointError(
                    f"the optimizer holds {here!r} where the checkpoint's had {there!r}: give it the parameters in the "
                    "same order"
                )
    _check_shapes([parameter for group in optimizer.param_groups for parameter in group["params"]], optimizer, state)


def _check_shapes(parameters: Sequence[Tensor], optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Raise :class:`CheckpointError` where one of torch's optimizers would get state of another parameter's shape."""
    if type(optimizer).__module__.partition(".")[0] != "torch" or isinstance(optimizer, torch.optim.LBFGS):
        return  # others keep what they like
    for number, parameter in enumerate(parameters):
        for key, value in state["state"].get(number, {}).items():
            if isinstance(value, Tensor) and value.numel() != 1 and not _fits(value, parameter):
                raise CheckpointError(
                    f"the checkpoint's optimizer keeps {key!r} of shape {list(value.shape)} for a parameter of shape "
                    f"{list(parameter.shape)}: the file is damaged or of another model"
                )


def _fits(value: Tensor, parameter: Tensor) -> bool:
    """Whether the shapes are the same, apart from dimensions a statistic was taken over (Adafactor)."""
    same = (mine in (theirs, 1) for mine, theirs in zip(value.shape, parameter.shape))
    return value.dim() == parameter.dim() and all(same)


def rebuild_optimizer(
    model: nn.Module, *, kind: str | None, state: Mapping[str, Any] | None, names: GroupNames | None
) -> Optimizer | None:
    """A new optimizer of the saved class over the model's parameters, with the saved state.

    None, with a logged reason, when the file has none or its class is not one of ``torch.optim``: then make your own
    and pass it to ``load_checkpoint(..., optimizer=...)``.
    """
    if kind is None or state is None:
        logger.info("the checkpoint holds no optimizer")
        return None
    cls = getattr(torch.optim, kind.removeprefix("torch.optim."), None)
    if not (kind.startswith("torch.optim.") and isinstance(cls, type) and issubclass(cls, Optimizer)):
        logger.warning("the checkpoint's optimizer class %s is not torch's: pass optimizer= to restore it", kind)
        return None
    groups = _parameter_groups(model, state, names)
    if groups is None:
        logger.warning("the checkpoint's optimizer holds parameters the model does not have: pass optimizer=")
        return None
    optimizer: Optimizer = cls(groups, lr=1.0)  # type: ignore[call-arg]
    _check_shapes([parameter for group in optimizer.param_groups for parameter in group["params"]], optimizer, state)
    optimizer.load_state_dict(dict(state))
    return optimizer


def _parameter_groups(
    model: nn.Module, state: Mapping[str, Any], names: GroupNames | None
) -> list[dict[str, Any]] | None:
    index = ParameterIndex(model)
    if names is None:  # Distiller's: all parameters in model order, in groups of the saved sizes
        sizes = [len(group["params"]) for group in state["param_groups"]]
        flat = list(model.parameters())
        if sum(sizes) != len(flat):
            return None
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [{"params": flat[start : start + size]} for start, size in zip(starts, sizes)]
    if any(name is None or name not in index for name in _flat(names)):
        return None
    return [{"params": [index[name] for name in group if name is not None]} for group in names]


def _flat(names: Sequence[Sequence[str | None]]) -> list[str | None]:
    return [name for group in names for name in group]
