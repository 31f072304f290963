"""Distiller's thinning recipes: what its checkpoints of thinned models say was removed (layer 2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distiller_ng.core.masker import ParameterMasker
from distiller_ng.errors import DistillerError, GraphError, TargetError, did_you_mean
from distiller_ng.graph.changes import record_change
from distiller_ng.names import canonical_name, unwrap
from distiller_ng.thinning.cutting import Journal, cut_tensors, tensors_of
from distiller_ng.thinning.plan import Cut
from distiller_ng.thinning.sizes import modules_by_name

__all__ = ["ThinningRecipe", "execute_thinning_recipes_list", "get_normalized_recipe"]


class ThinningRecipe(NamedTuple):
    """What is kept, by name.

    ``modules``: ``{module: {attribute: value}}``, where a value is a number or ``(dim, kept indices)`` of a buffer.
    ``parameters``: ``{parameter: [(dim, kept indices)]}``; ``(dim, kept, shape4d, shape2d)`` is a matrix seen as
    (outputs, channels, height, width) whose channels are kept.
    """

    modules: Mapping[str, Mapping[str, Any]]
    parameters: Mapping[str, Sequence[Any]]


def get_normalized_recipe(recipe: ThinningRecipe) -> ThinningRecipe:
    """The recipe with names as they are on an unwrapped model: ``module.conv1`` -> ``conv1``."""
    return ThinningRecipe(
        {canonical_name(name): dict(values) for name, values in recipe.modules.items()},
        {canonical_name(name): list(values) for name, values in recipe.parameters.items()},
    )


def execute_thinning_recipes_list(
    model: nn.Module, zeros_mask_dict: Mapping[str, ParameterMasker] | None, recipes: Iterable[ThinningRecipe]
) -> None:
    """Remove what the recipes do not keep, in place; tensors that have the small size already are left alone.

    Raises :class:`TargetError` for a name the model does not have and :class:`GraphError` for indices that do not fit;
    then nothing was changed.
    """
    inner = unwrap(model)
    journal = Journal()
    changes = []
    try:
        for recipe in recipes:
            plain = get_normalized_recipe(recipe)
            cuts = _cuts(inner, plain)
            cut_tensors(inner, cuts, journal, masks=zeros_mask_dict)
            attributes = _set_attributes(inner, plain, journal)
            changes.append(
                {
                    "cuts": [[cut.tensor, cut.dim, list(cut.removed), cut.size] for cut in cuts],
                    "groups": {},
                    "attention": [],
                    "attributes": attributes,
                }
            )
    except (DistillerError, RuntimeError):
        journal.undo()
        raise
    for change in changes:
        if change["cuts"]:
            record_change(inner, "thinning", change, {"source": "recipe"})


def _cuts(model: nn.Module, recipe: ThinningRecipe) -> list[Cut]:
    tensors = tensors_of(model)
    wanted: list[tuple[str, Any]] = []
    for name, directives in recipe.parameters.items():
        wanted += [(name, directive) for directive in directives]
    for module, values in recipe.modules.items():
        wanted += [(f"{module}.{key}", value) for key, value in values.items() if isinstance(value, tuple | list)]
    cuts = []
    for name, directive in wanted:
        if name not in tensors:
            raise TargetError(f"the recipe thins {name!r}, which the model lacks. {did_you_mean(name, tensors)}")
        cut = _cut_of(name, tensors[name], directive)
        if cut is not None:
            cuts.append(cut)
    return cuts


def _cut_of(name: str, tensor: Tensor, directive: Sequence[Any]) -> Cut | None:
    """The entries that go; None where they are gone already."""
    dim, kept = int(directive[0]), _numbers(directive[1])
    size = tensor.shape[dim] if dim < tensor.dim() else 0
    each = 1
    if len(directive) == 4:  # seen as (outputs, channels, height, width)
        shape = [int(s) for s in directive[2]]
        each = shape[2] * shape[3]
        size //= each
    if size == len(kept):
        return None
    if not kept or max(kept) >= size:
        raise GraphError(f"the recipe keeps entries {kept[:3]}... of dimension {dim} of {name!r}, which has {size}")
    gone = sorted(set(range(size)) - set(kept))
    removed = tuple(index * each + offset for index in gone for offset in range(each))
    return Cut(name, dim, removed, size * each)


def _numbers(values: Any) -> list[int]:
    if isinstance(values, Tensor):
        return [int(value) for value in values.reshape(-1).tolist()]
    return [int(value) for value in torch.as_tensor(values).reshape(-1).tolist()]


def _set_attributes(model: nn.Module, recipe: ThinningRecipe, journal: Journal) -> dict[str, dict[str, int]]:
    modules = modules_by_name(model)
    done: dict[str, dict[str, int]] = {}
    for name, values in recipe.modules.items():
        if name not in modules:
            raise TargetError(
                f"the recipe changes module {name!r}, which the model lacks. {did_you_mean(name, modules)}"
            )
        for key, value in values.items():
            if isinstance(value, int):
                journal.set_attribute(modules[name], key, value)
                done.setdefault(name, {})[key] = value
    return done
