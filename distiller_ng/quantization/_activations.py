"""Modules of a quantizer that wait: they stand in the model from the start and act later (layer 2)."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["PausedModule", "pause_", "resume_", "set_bypass", "touched"]


class PausedModule(nn.Module):
    """What the subclasses made here add to a module's own class: ``forward`` is that of what it replaced.

    Parameters, buffers and names are those of the module itself, so an optimizer or a data-parallel wrapper sees them
    while the model still computes in floating point. The module's attribute ``bypass`` says how: it is the original
    module, or its path inside this one.
    """

    bypass: nn.Module | str

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model computed before it was quantized."""
        bypass = self.__dict__["bypass"]
        original = self.get_submodule(bypass) if isinstance(bypass, str) else bypass
        return touched(original(*args, **kwargs), self)

    def extra_repr(self) -> str:
        """The module's own description, and that it waits."""
        return ", ".join(part for part in (super().extra_repr(), "paused") if part)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class cannot be found by its name, so copies and pickles make it again.
        return _rebuild, (_own_class(type(self)),), dict(self.__dict__)


def set_bypass(module: nn.Module, original: nn.Module) -> None:
    """Note how ``module`` can still compute what ``original`` did: by a part of itself, or the original itself."""
    path = next((name for name, part in module.named_modules() if part is original and name), None)
    # Not as a registered module: it is no part of the model.
    module.__dict__["bypass"] = original if path is None else path


def pause_(module: nn.Module) -> None:
    """Make ``module``, in place, compute what its bypass does until :func:`resume_`; of it only the class changes."""
    if not isinstance(module, PausedModule):
        module.__class__ = _paused_class(type(module))  # type: ignore[arg-type]


def resume_(module: nn.Module) -> None:
    """Undo :func:`pause_`."""
    if isinstance(module, PausedModule):
        module.__class__ = _own_class(type(module))  # type: ignore[assignment]


def touched(output: Any, module: nn.Module) -> Any:
    """``output`` in a way that gives the parameters of ``module`` a gradient of zero.

    Under DistributedDataParallel every parameter must take part in every step, and those of a quantizer that still
    waits would not.
    """
    waiting = [p for p in module.parameters() if p.requires_grad]
    if not (waiting and isinstance(output, Tensor) and torch.is_grad_enabled()):
        return output
    if not (dist.is_available() and dist.is_initialized()):
        return output
    return output + sum(parameter.sum() * 0 for parameter in waiting).to(output.dtype)  # type: ignore[union-attr]


@cache
def _paused_class(cls: type[Any]) -> type[nn.Module]:
    return type(f"Paused{cls.__name__}", (PausedModule, cls), {"__module__": cls.__module__})


def _own_class(cls: type[nn.Module]) -> type[nn.Module]:
    return cast(type[nn.Module], cls.__mro__[cls.__mro__.index(PausedModule) + 1])


def _rebuild(cls: type[nn.Module]) -> nn.Module:
    paused = _paused_class(cls)  # type: ignore[arg-type]
    return paused.__new__(paused)
