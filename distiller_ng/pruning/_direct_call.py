"""What a pruner sees when its ``set_param_mask`` is called outside any schedule (layer 2)."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor, nn

from distiller_ng.core.context import StepContext
from distiller_ng.core.masker import ParameterMasker
from distiller_ng.core.masks import MaskRegistry
from distiller_ng.core.position import TrainPosition
from distiller_ng.core.window import PolicyWindow
from distiller_ng.names import ParameterIndex

__all__ = ["direct_context"]


def direct_context(
    param: Tensor, param_name: str, masks: MutableMapping[str, ParameterMasker], meta: Mapping[str, Any]
) -> StepContext:
    """A context around one parameter, with the window and position that ``meta`` tells."""
    model = meta.get("model")
    if isinstance(masks, MaskRegistry) and param_name in masks.parameters:
        parameters = masks.parameters
        registry = masks
    else:
        parameters = ParameterIndex.of_tensors({param_name: param})
        if isinstance(model, nn.Module) and ParameterIndex(model).get(param_name) is param:
            parameters = ParameterIndex(model)
        registry = MaskRegistry(parameters)
        for name, masker in masks.items():
            if name in parameters and masker is not None:
                for owner, mask in masker.owners.items():
                    registry.set(name, mask, owner=owner)
    start, end = meta.get("starting_epoch", 0), meta.get("ending_epoch", 1)
    frequency = meta.get("frequency") or 1
    return StepContext(
        model=model if isinstance(model, nn.Module) else nn.Identity(),
        parameters=parameters,
        masks=registry,
        window=PolicyWindow.from_range(start, end, frequency),
        position=TrainPosition(int(meta.get("current_epoch", start))),
    )
