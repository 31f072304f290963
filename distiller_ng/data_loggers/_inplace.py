"""Modules that overwrite their input: noticing them, and asking them not to (layer 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from distiller_ng.errors import CalibrationError

__all__ = ["InplaceError", "InplaceGuard", "disabled_inplace_attributes"]


class InplaceError(CalibrationError, RuntimeError):
    """A module overwrote its input while statistics of it were collected, and the collector was told to refuse that."""


class InplaceGuard:
    """Compares the write counters of a module's inputs before and after it ran."""

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[Tensor, int | None]]] = {}

    def remember(self, name: str, inputs: Sequence[Tensor]) -> None:
        """Before the module ``name`` runs."""
        self._seen[name] = [(tensor, None if tensor.is_inference() else tensor._version) for tensor in inputs]

    def check(self, name: str, outputs: Sequence[Tensor]) -> None:
        """After it ran. Raises :class:`InplaceError` when an input was written to.

        Tensors of inference mode have no counter: there an output that is the input itself counts.
        """
        for tensor, version in self._seen.pop(name, []):
            written = any(one is tensor for one in outputs) if version is None else tensor._version != version
            if written:
                raise InplaceError(
                    f"{name!r} works in place: it overwrote its input. Statistics are right all the same, as inputs "
                    "are recorded before; drop inplace_runtime_check, or pass disable_inplace_attrs=True"
                )


class _Restored:
    """Puts attributes back; looks like the handle of a hook."""

    def __init__(self, restore: Callable[[], None]) -> None:
        self.remove = restore


def disabled_inplace_attributes(model: nn.Module, names: Sequence[str]) -> _Restored:
    """Set the boolean attributes called ``names`` of all modules to False, until ``remove()`` is called."""
    changed = [(module, name) for module in model.modules() for name in names if getattr(module, name, False) is True]
    for module, name in changed:
        setattr(module, name, False)

    def restore() -> None:
        for module, name in changed:
            setattr(module, name, True)

    return _Restored(restore)
