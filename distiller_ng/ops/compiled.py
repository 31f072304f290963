"""Forward hooks and torch.compile: code compiled before a hook came does not call it (layer 1)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["forget_compiled_code", "uncompiled"]

F = TypeVar("F", bound=Callable[..., Any])


def uncompiled(function: F) -> F:
    """``function``, never traced by torch.compile: the graph breaks there. Unchanged while nothing was compiled."""
    if "torch._dynamo" not in sys.modules:  # importing it takes seconds, for nothing
        return function
    disabled: F = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return disabled


def forget_compiled_code() -> None:
    """Make torch.compile look at modules again, so that hooks that came or went are noticed. Free if unused."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
