"""Forward passes that are still to be made, with other weights in place of some of the model's (layer 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from distiller_ng.names import unwrap

__all__ = ["ForwardPass", "StandIn"]


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """One forward pass that is still to be made."""

    run: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    def __call__(self) -> Any:
        """The model's outputs."""
        with torch.no_grad():
            return self.run(*self.args, **self.kwargs)

    @property
    def samples(self) -> int:
        """How many samples the minibatch has: the first size of its first tensor."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return next((len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()), 1)


class StandIn:
    """Calls a model, with other tensors in the place of some of its parameters."""

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor] | None
    ) -> None:
        self._model = unwrap(model)
        self._instead: dict[str, Tensor] = {}
        #: What is differentiated, by name.
        self.tensors: dict[str, Tensor] = dict(parameters)
        if weights:
            places = _places(self._model)
            for name, weight in weights.items():
                self.tensors[name] = weight.detach().requires_grad_()
                self._instead.update(dict.fromkeys(places[id(parameters[name])], self.tensors[name]))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._instead:
            return self._model(*args, **kwargs)
        # Not torch's own tying: it puts the wrong tensor back into a module that is used under two names.
        return torch.func.functional_call(self._model, self._instead, args, kwargs, tie_weights=False)


def _places(model: nn.Module) -> dict[int, list[str]]:
    """By the parameter's identity: its names in the different modules that have it, one for each module."""
    places: dict[int, list[str]] = {}
    for owner, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            places.setdefault(id(parameter), []).append(f"{owner}.{name}" if owner else name)
    return places
