"""Places in a recipe, for paths by which components know their arguments (layer 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from distiller_ng.config.marks import Marks, Path

__all__ = ["RecipeMarks"]


@dataclass(frozen=True, slots=True)
class RecipeMarks(Marks):
    """Marks that follow an argument to the property it comes from.

    ``renamed``: by modifier, which property each renamed argument comes from. A path such as ``(..., "schedule",
    "final_sparsity")`` or ``(..., "pruner", "args", "leave_enabled")`` is taken for the property that it contains.
    """

    renamed: Mapping[Path, Mapping[str, str]] = field(default_factory=dict)

    def written(self, path: Path) -> Path:
        """The property's path."""
        prefix = next((path[:end] for end in range(len(path), -1, -1) if path[:end] in self.renamed), None)
        if prefix is None:
            return path
        names = self.renamed[prefix]
        for at in range(len(path) - 1, len(prefix) - 1, -1):
            part = path[at]
            here = (*prefix, names.get(part, part) if isinstance(part, str) else part)
            if here in self.keys or here in self.values:
                return (*here, *path[at + 1 :])
        return prefix
