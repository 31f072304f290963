"""Where the activation that a layer's filters produce can be watched (layer 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distiller_ng.graph.module_flow import ACTIVATIONS, PASS_THROUGH, ModuleFlow

__all__ = ["ActivationPoint", "point_by_flow", "point_by_name"]


@dataclass(frozen=True, slots=True)
class ActivationPoint:
    """Watch the output of ``module``, then apply ``activation`` (None: the output is the activation already)."""

    module: str
    activation: Callable[[Tensor], Tensor] | None = None

    def value(self, output: Tensor) -> Tensor:
        """The activation, from what the module returned."""
        detached = output.detach()
        return detached if self.activation is None else self.activation(detached)


def point_by_name(layer: str, modules: Mapping[str, nn.Module]) -> ActivationPoint | None:
    """Distiller's convention: the activation of ``layer1.0.conv1`` is ``layer1.0.relu1``; None without one."""
    head, _, last = layer.rpartition(".")
    candidates = [layer.replace(".conv", ".relu")]
    if last.startswith("conv"):
        candidates.append(".".join(part for part in (head, "relu" + last.removeprefix("conv")) if part))
    for candidate in candidates:
        if candidate != layer and isinstance(modules.get(candidate), ACTIVATIONS):
            return ActivationPoint(candidate)
    return None


def point_by_flow(layer: str, modules: Mapping[str, nn.Module], flow: ModuleFlow) -> ActivationPoint:
    """The first activation module behind ``layer``, through norms and dropout; else ReLU of what comes last of these.

    An activation module that runs more than once in a pass sees other layers too, so its function is applied to the
    output of the module before it instead.
    """
    source = layer
    seen = {layer}
    while True:
        readers = [name for name in flow.consumers(source) if name not in seen]
        activation = next((name for name in readers if isinstance(modules[name], ACTIVATIONS)), None)
        if activation is not None:
            if flow.calls(activation) == 1:
                return ActivationPoint(activation)
            return ActivationPoint(source, _function_of(modules[activation]))
        between = next((name for name in readers if isinstance(modules[name], PASS_THROUGH)), None)
        if between is None or flow.calls(between) != 1:
            return ActivationPoint(source, torch.relu)
        source = between
        seen.add(between)


def _function_of(activation: nn.Module) -> Callable[[Tensor], Tensor]:
    def apply(value: Tensor) -> Tensor:
        # forward() itself, so that no hook fires twice; a copy, as the module may work in place
        result: Tensor = type(activation).forward(activation, value.clone())
        return result

    return apply
