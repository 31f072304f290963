"""Every scheduler class of ``torch.optim.lr_scheduler``, registered under its own name (layer 2)."""

from __future__ import annotations

import inspect

from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from distiller_ng.learning_rate.base import INJECTED, LR_SCHEDULERS

__all__ = ["SHADOWED", "torch_classes"]

#: torch's classes whose name one of ours has: the arguments decide which is meant.
SHADOWED: dict[str, type[LRScheduler]] = {"PolynomialLR": lr_scheduler.PolynomialLR}


def torch_classes() -> dict[str, type[LRScheduler]]:
    """``{name: class}`` of torch's schedulers, abstract bases left out: ``StepLR``, ``OneCycleLR``, ..."""
    return {
        name: cls
        for name, cls in vars(lr_scheduler).items()
        if isinstance(cls, type) and issubclass(cls, LRScheduler) and cls.__name__ == name
        if name not in ("LRScheduler", "_LRScheduler")
    }


for _name, _cls in torch_classes().items():
    if _name not in SHADOWED:
        _given = tuple(name for name in INJECTED if name in inspect.signature(_cls).parameters)
        LR_SCHEDULERS.register(_name, injected=_given)(_cls)
