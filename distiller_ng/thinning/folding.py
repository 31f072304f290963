"""What a channel whose filter is zero still sends on, moved into the next layer's bias (layer 2).

A zero filter in front of a batch norm leaves the norm's shift, the same value everywhere. Where the next layer is
Linear, or a convolution without padding, that constant times its weights is a bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.graph.inputs import ExampleInputs
from distiller_ng.thinning.cutting import Journal
from distiller_ng.thinning.plan import Cut
from distiller_ng.thinning.sizes import modules_by_name
from distiller_ng.thinning.verification import outputs_of

__all__ = ["fold_constants"]


@torch.no_grad()
def fold_constants(model: nn.Module, inputs: ExampleInputs, cuts: Sequence[Cut], journal: Journal) -> list[str]:
    """Add to biases what the channels about to be removed contribute as constants; names of the layers changed.

    Left alone are layers without a bias, convolutions with padding (their borders see zeros instead), and inputs that
    are not constant.
    """
    modules = modules_by_name(model)
    readers: dict[str, Cut] = {}
    for cut in cuts:
        owner, _, leaf = cut.tensor.rpartition(".")
        if leaf == "weight" and _reads_along(modules.get(owner), cut.dim):
            readers[owner] = cut
    seen: dict[str, list[Tensor]] = {}
    handles = [modules[name].register_forward_pre_hook(_recorder(name, seen)) for name in readers]
    try:
        outputs_of(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [name for name, cut in readers.items() if _fold(modules[name], cut, seen.get(name, []), journal)]


def _reads_along(module: nn.Module | None, dim: int) -> bool:
    if isinstance(module, nn.Linear):
        return dim == 1 and module.bias is not None
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        unpadded = module.padding == "valid" or (not isinstance(module.padding, str) and not any(module.padding))
        return dim == 1 and module.groups == 1 and unpadded and module.bias is not None
    return False


def _recorder(name: str, seen: dict[str, list[Tensor]]) -> Any:
    def record(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.setdefault(name, []).append(args[0].detach())

    return record


def _fold(module: nn.Module, cut: Cut, inputs: Sequence[Tensor], journal: Journal) -> bool:
    if len(inputs) != 1:  # called twice: its input is not one constant
        return False
    weight: Tensor = module.weight  # type: ignore[assignment]
    bias: Tensor = module.bias  # type: ignore[assignment]
    channel = -1 if isinstance(module, nn.Linear) else inputs[0].dim() - weight.dim() + 1
    index = torch.tensor(cut.removed, device=weight.device)
    values = inputs[0].movedim(channel, 0).flatten(1).index_select(0, index)
    constant = values[:, 0]
    if not torch.allclose(values, constant[:, None], rtol=1e-5, atol=1e-7) or not constant.any():
        return False
    rows = weight.index_select(1, index).flatten(2).sum(-1) if weight.dim() > 2 else weight.index_select(1, index)
    journal.set_data(bias, bias.data + (rows.double() @ constant.double()).to(bias.dtype))
    return True
