"""Run-time subclasses of a module's own class, for this package (re-exports of :mod:`distiller_ng.ops.derived`)."""

from distiller_ng.ops.derived import Derived, derive_, original_class, underive_

__all__ = ["Derived", "derive_", "original_class", "underive_"]
