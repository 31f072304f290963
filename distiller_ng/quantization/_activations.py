"""Modules of a quantizer that wait: they stand in the model from the start and act later (layer 2)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distiller_ng.quantization._derived import Derived, derive_, underive_

__all__ = ["PausedModule", "pause_", "resume_", "set_bypass", "touched"]


class PausedModule(Derived):
    """What the subclasses made here add to a module's own class: ``forward`` is that of what it replaced.

    Parameters, buffers and names are those of the module itself, so an optimizer or a data-parallel wrapper sees them
    while the model still computes in floating point. The module's attribute ``bypass`` says how: it is the original
    module, or its path inside this one.
    """

    prefix: ClassVar[str] = "Paused"
    bypass: nn.Module | str

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model computed before it was quantized."""
        bypass = self.__dict__["bypass"]
        original = self.get_submodule(bypass) if isinstance(bypass, str) else bypass
        return touched(original(*args, **kwargs), self)

    def extra_repr(self) -> str:
        """The module's own description, and that it waits."""
        return ", ".join(part for part in (super().extra_repr(), "paused") if part)


def set_bypass(module: nn.Module, original: nn.Module) -> None:
    """Note how ``module`` can still compute what ``original`` did: by a part of itself, or the original itself."""
    path = next((name for name, part in module.named_modules() if part is original and name), None)
    # Not as a registered module: it is no part of the model.
    module.__dict__["bypass"] = original if path is None else path


def pause_(module: nn.Module) -> None:
    """Make ``module``, in place, compute what its bypass does until :func:`resume_`; of it only the class changes."""
    derive_(module, PausedModule)


def resume_(module: nn.Module) -> None:
    """Undo :func:`pause_`."""
    underive_(module, PausedModule)


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
