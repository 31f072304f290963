"""What one sample costs in a network with early exits, by the exit that answers for it (layer 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from distiller_ng.modules import BranchPoint
from distiller_ng.names import unwrap
from distiller_ng.reports.compute import layer_costs

__all__ = ["ExitCosts", "exit_costs"]


@dataclass(frozen=True, slots=True)
class ExitCosts:
    """MACs of one sample: ``exits[i]`` if exit ``i`` answers (the network's end last), ``plain`` without exits."""

    exits: tuple[int, ...]
    plain: int


class _Reached(Exception):
    """Leaves a forward pass at an exit."""


class _UpTo(nn.Module):
    """Runs a model up to one of its exits."""

    def __init__(self, model: nn.Module, point: nn.Module) -> None:
        super().__init__()
        self.model, self._point = model, [point]  # in a list: not a second submodule

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Stops when the exit has its result."""

        def stop(*_: Any) -> None:
            raise _Reached

        handle = self._point[0].register_forward_hook(stop)
        try:
            self.model(*args, **kwargs)
        except _Reached:
            pass
        finally:
            handle.remove()


def exit_costs(model: nn.Module, inputs: Any) -> ExitCosts | None:
    """What one sample costs, by the exit that answers for it; None where exits are no branches that can be found.

    ``inputs``: what one sample's forward pass takes. An exit's cost has the branches that were asked before it. With
    convolutions of 100 and 300 MACs, an exit of 10 between them: ``exits=(110, 410), plain=400``.
    """
    bare = unwrap(model)
    points = {name: module for name, module in bare.named_modules() if isinstance(module, BranchPoint)}
    if not points:
        return None
    whole = layer_costs(bare, inputs)
    branches = tuple(f"{name}.branch_net" for name in points)
    branch = sum(cost.macs for cost in whole if cost.name.startswith(branches))
    total = sum(cost.macs for cost in whole)
    upto = [sum(cost.macs for cost in layer_costs(_UpTo(bare, point), inputs)) for point in points.values()]
    for point in points.values():
        point.clear()
    return ExitCosts((*upto, total), total - branch)
