"""What user code may raise while it is run or traced by us; anything else is not about the model (layer 1)."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType

import torch.fx
from torch import nn

__all__ = ["MODEL_FAILURES", "failed_at"]

MODEL_FAILURES: tuple[type[Exception], ...] = (
    *(RuntimeError, TypeError, ValueError, AttributeError, LookupError, NameError, ArithmeticError),
    *(AssertionError, NotImplementedError, torch.fx.proxy.TraceError),
)

_NOT_THEIRS = (str(Path(torch.__file__).parent), str(Path(__file__).parent.parent), "<")


def failed_at(model: nn.Module, error: BaseException) -> tuple[str, str]:
    """``("RuntimeError: shape ... is invalid, in module 'attn', model.py:12 (x = x.view(2, 8))", "attn")``.

    The innermost line of the user's code, and the module whose forward it is part of ("": the model itself).
    """
    found, line = error.__traceback__, ""
    module: nn.Module | None = None
    while found is not None:
        owner = found.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and not found.tb_frame.f_code.co_filename.startswith(_NOT_THEIRS):
            module, line = owner, _line(found)
        found = found.tb_next
    name = next((name for name, other in model.named_modules() if other is module), None)
    first = next((text.strip() for text in str(error).splitlines() if text.strip()), "")
    where = f", in module {name!r}" if name else ""
    return f"{type(error).__name__}: {first}{where}{line}", name or ""


def _line(found: TracebackType) -> str:
    (frame,) = traceback.extract_tb(found, limit=1)
    return f", {frame.filename}:{frame.lineno}" + (f" ({frame.line})" if frame.line else "")
