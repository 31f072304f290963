"""Integers that follow when tensors get smaller: of known layers by rule, of the user's modules by trial (layer 2)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from distiller_ng.errors import GraphError
from distiller_ng.graph.resizing import Resized
from distiller_ng.names import canonical_name
from distiller_ng.thinning.attention import ThinnedMultiheadAttention
from distiller_ng.thinning.cutting import Journal

__all__ = ["modules_by_name", "replace_attention", "settle_integers", "update_layers"]

_NORMS = (nn.modules.batchnorm._NormBase,)
#: How many combinations of values are tried before giving up.
_MOST_TRIALS = 256


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by canonical name, shared ones under each of their names."""
    return {canonical_name(name): module for name, module in model.named_modules(remove_duplicate=False)}


def replace_attention(model: nn.Module, tensors: Iterable[str], journal: Journal) -> list[str]:
    """Swap ``nn.MultiheadAttention`` modules that own one of ``tensors`` for ones that can lose heads; their names."""
    names = set(tensors)
    swapped: dict[int, ThinnedMultiheadAttention] = {}
    replaced: list[str] = []
    for parent_name, parent in list(modules_by_name(model).items()):
        for child_name, child in list(parent.named_children()):
            name = canonical_name(f"{parent_name}.{child_name}" if parent_name else child_name)
            if not isinstance(child, nn.MultiheadAttention) or not any(t.startswith(name + ".") for t in names):
                continue
            if id(child) not in swapped:
                try:
                    swapped[id(child)] = ThinnedMultiheadAttention.of(child)
                except ValueError as error:
                    raise GraphError(f"module {name!r}: {error}. Leave its weights out of the targets") from error
            journal.note(lambda p=parent, n=child_name, c=child: setattr(p, n, c))  # type: ignore[misc]
            setattr(parent, child_name, swapped[id(child)])
            replaced.append(name)
    return replaced


def update_bare_norms(model: nn.Module, resized: Iterable[Resized], journal: Journal) -> dict[str, dict[str, Any]]:
    """Norms without tensors keep their number of channels too; ``{module: {attribute: value}}`` of what changed."""
    changed: dict[str, dict[str, Any]] = {}
    modules = modules_by_name(model)
    for entry in resized:
        module = modules.get(entry.modules[-1]) if entry.modules else None
        if isinstance(module, nn.modules.instancenorm._InstanceNorm | nn.GroupNorm) and not module.affine:
            for name in ("num_features", "num_channels", "num_groups"):
                new = dict(entry.sizes).get(getattr(module, name, -1))
                if new is not None:
                    journal.set_attribute(module, name, new)
                    changed.setdefault(entry.modules[-1], {})[name] = new
    return changed


def update_layers(model: nn.Module, tensors: Iterable[str], groups: Mapping[str, int], journal: Journal) -> set[int]:
    """Bring the sizes that layers of torch keep beside their tensors up to date; ids of the modules that are done."""
    modules = modules_by_name(model)
    counts = {_owner(name): count for name, count in groups.items()}
    done: set[int] = set()
    for owner in sorted({_owner(name) for name in tensors}):
        module = modules.get(owner)
        if module is None or id(module) in done:
            continue
        sizes = _sizes_of(module, counts.get(owner))
        if sizes is None:
            continue
        if type(module).__module__.startswith(("torch.", "distiller_ng.")):
            done.add(id(module))  # a subclass may hold sizes of its own
        for name, value in sizes.items():
            if getattr(module, name, value) != value:
                journal.set_attribute(module, name, value)
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    return done


def _owner(tensor: str) -> str:
    """The layer a tensor belongs to, also where a parametrization holds it."""
    return tensor.partition(".parametrizations.")[0] if ".parametrizations." in tensor else tensor.rpartition(".")[0]


def _weight(module: nn.Module) -> Tensor:
    """A layer's weight, or what it is computed from where hooks compute it before each forward."""
    for name in ("weight_orig", "weight_v", "weight"):
        if (held := module._parameters.get(name)) is not None:
            return held
    return module.weight  # type: ignore[return-value]


def _sizes_of(module: nn.Module, groups: int | None) -> dict[str, Any] | None:
    """What a layer's attributes must say, from its tensors; None for a module that is none of torch's."""
    if isinstance(module, nn.modules.conv._ConvNd):
        count = module.groups if groups is None else groups
        first, second = _weight(module).shape[0], _weight(module).shape[1] * count
        inputs, outputs = (first, second) if module.transposed else (second, first)
        return {"groups": count, "in_channels": inputs, "out_channels": outputs}
    if isinstance(module, nn.Linear):
        return {"out_features": _weight(module).shape[0], "in_features": _weight(module).shape[1]}
    if isinstance(module, _NORMS):
        held = next((t for t in (module.weight, module.running_mean) if t is not None), None)
        return {} if held is None else {"num_features": held.shape[0]}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": module.weight.shape[0], "num_groups": groups or module.num_groups}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": module.weight.shape[0]}
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": _weight(module).shape[0], "embedding_dim": _weight(module).shape[1]}
    if isinstance(module, nn.RNNCellBase):
        cell = dict(module.named_parameters())
        return {"input_size": cell["weight_ih"].shape[1], "hidden_size": cell["weight_hh"].shape[1]}
    if isinstance(module, nn.RNNBase):
        rnn = dict(module.named_parameters())
        return {"input_size": rnn["weight_ih_l0"].shape[1], "hidden_size": rnn["weight_hh_l0"].shape[1]}
    return {} if isinstance(module, ThinnedMultiheadAttention) else None


# -- the user's modules ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Option:
    """One attribute that may have to change: where it is, and what it may become (its present value first)."""

    module: nn.Module
    path: str
    attribute: str
    values: tuple[Any, ...]

    @property
    def kind(self) -> tuple[Any, ...]:
        """Modules of one class are written alike: their attributes change or stay together."""
        return (type(self.module), self.attribute, len(self.values))


def settle_integers(
    model: nn.Module, resized: Sequence[Resized], done: set[int], works: Callable[[], bool], journal: Journal
) -> dict[str, dict[str, Any]] | None:
    """Find values of the integers the user's modules hold with which the thinned model works.

    Candidates are attributes whose value is the old size of something that got smaller, in a module whose forward works
    with that size. Returns what was changed, ``{module: {attribute: value}}``, or None where nothing works; then every
    attribute has its old value again.
    """
    if works():
        return {}
    options = _options(model, resized, done)
    for chosen in itertools.islice(_assignments(options), _MOST_TRIALS):
        trial = Journal()
        for option, value in chosen:
            trial.set_attribute(option.module, option.attribute, value)
        if works():
            journal.note(trial.undo)
            changed: dict[str, dict[str, Any]] = {}
            for option, value in chosen:
                changed.setdefault(option.path, {})[option.attribute] = value
            return changed
        trial.undo()
    return None


def _options(model: nn.Module, resized: Sequence[Resized], done: set[int]) -> list[_Option]:
    modules = modules_by_name(model)
    sizes: dict[str, set[tuple[int, int]]] = {}
    for entry in resized:
        for name in entry.modules[-2:]:
            sizes.setdefault(name, set()).update(entry.sizes)
    found: list[_Option] = []
    for name, pairs in sizes.items():
        module = modules.get(name)
        if module is None or id(module) in done:
            continue
        for attribute, value in vars(module).items():
            news = [new for pair in sorted(pairs) if (new := _with_size(value, *pair)) is not value]
            if news and not attribute.startswith("_"):
                found.append(_Option(module, name, attribute, (value, *news)))
    return found


def _with_size(value: Any, old: int, new: int) -> Any:
    """``value`` with ``old`` replaced by ``new``: an integer, or integers inside a tuple or list."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return new if value == old else value
    if isinstance(value, tuple | list) and old in value and all(isinstance(v, int) for v in value):
        return type(value)(new if v == old else v for v in value)
    return value


def _assignments(options: Sequence[_Option]) -> Iterator[list[tuple[_Option, Any]]]:
    """What to set, likeliest first: everything that can change does, then fewer; a class's attributes go together."""
    kinds = list(dict.fromkeys(option.kind for option in options))
    choices = [range(kind[-1] - 1, -1, -1) for kind in kinds]
    ranked = sorted(itertools.islice(itertools.product(*choices), 4096), key=lambda picks: picks.count(0))
    for picks in ranked:
        pick_of = dict(zip(kinds, picks, strict=True))
        chosen = [(o, o.values[pick_of[o.kind]]) for o in options if pick_of[o.kind]]
        if chosen:
            yield chosen
