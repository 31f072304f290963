"""What user code may raise while it is run or traced by us; anything else is not about the model (layer 1)."""

from __future__ import annotations

import torch.fx

__all__ = ["MODEL_FAILURES"]

MODEL_FAILURES: tuple[type[Exception], ...] = (
    *(RuntimeError, TypeError, ValueError, AttributeError, LookupError, NameError, ArithmeticError),
    *(AssertionError, NotImplementedError, torch.fx.proxy.TraceError),
)
