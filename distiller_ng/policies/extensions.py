"""Extensions: policies that a schedule defines by name in its ``extensions`` section (layer 3).

``@EXTENSIONS.register("MyPolicy")`` on a subclass of :class:`distiller_ng.Policy` is all it takes; the constructor's
arguments are what the schedule writes.
"""

from __future__ import annotations

from distiller_ng.core.policy import Policy
from distiller_ng.registry import Registry

__all__ = ["EXTENSIONS"]

EXTENSIONS: Registry[Policy] = Registry("extension", "distiller_ng.policies")
