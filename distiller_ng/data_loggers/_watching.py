"""Which modules of a model statistics are collected from, and which tensors go in and out of them (layer 2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from distiller_ng.errors import ArgumentError, TargetError, did_you_mean
from distiller_ng.graph.functional_calls import call_kind, may_own_calls
from distiller_ng.modules._recurrent import RecurrentCell, RecurrentStack
from distiller_ng.names import canonical_name, strip_wrappers, unwrap
from distiller_ng.ops.modules import has_parts

__all__ = [
    "CallFilter",
    "input_tensors",
    "inside_units",
    "is_call_name",
    "main_output",
    "output_tensors",
    "refuse_data_parallel",
    "watched_modules",
]

# They compute with their submodules' weights, not with the submodules, whose hooks never run.
_UNITS = (nn.MultiheadAttention,)
_RETURN_STATES = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, RecurrentStack, RecurrentCell)


def watched_modules(
    model: nn.Module,
    classes: Sequence[type[nn.Module]] | None = None,
    modules_list: Iterable[str | nn.Module] | None = None,
) -> dict[str, nn.Module]:
    """``{canonical name: module}`` in model order.

    Without ``classes`` these are the modules without children, but for ``nn.Identity``; a module that keeps the
    original as ``wrapped_module``, as quantization wrappers do, counts as one, and attention does. ``classes`` selects
    modules of these classes instead. ``modules_list`` keeps only the named modules and what is inside them; None or
    empty: all. Raises :class:`TargetError` for a name the model does not have.
    """
    inner = unwrap(model)
    named = {name: inner.get_submodule(raw) for name, raw in _names(inner).items()}
    inside = inside_units(inner) if classes is None else set()
    found = {name: module for name, module in named.items() if module not in inside and _is_wanted(module, classes)}
    chosen = _chosen(modules_list, inner, named)
    return found if chosen is None else {name: module for name, module in found.items() if module in chosen}


def refuse_data_parallel(model: nn.Module) -> None:
    """Raise :class:`ArgumentError` when the model contains DataParallel: its replicas would count each on its own."""
    for name, module in model.named_modules():
        if isinstance(module, nn.DataParallel):
            raise ArgumentError(
                f"the model contains DataParallel ({name or 'the whole model'}): each replica would see a part of "
                "every batch. Collect on one device: distiller_ng.make_non_parallel_copy(model)",
                argument=("model",),
            )


def input_tensors(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[int, Tensor]]:
    """``(position, tensor)`` of a module's arguments; lists and tuples are taken apart, keywords come last.

    What is no tensor takes a position but has no entry: ``add(x, 2, y)`` gives 0 and 2.
    """
    flat = [leaf for value in (*args, *kwargs.values()) for leaf in _leaves(value)]
    return [(position, value) for position, value in enumerate(flat) if _is_countable(value)]


def output_tensors(module: nn.Module, output: Any) -> list[Tensor]:
    """The tensors that make up a module's output: all parts of what a split returns, only the output of an RNN."""
    if isinstance(module, _RETURN_STATES) and isinstance(output, tuple | list):
        output = output[0]  # what follows is the state, or the attention's weights
    return [leaf for leaf in _leaves(output) if _is_countable(leaf)]


def main_output(module: nn.Module, output: Any) -> Tensor | None:
    """The first tensor of a module's output; None without one."""
    return next(iter(output_tensors(module, output)), None)


def _names(model: nn.Module) -> dict[str, str]:
    return strip_wrappers(name for name, _ in model.named_modules() if name) or {"": ""}


def _is_wanted(module: nn.Module, classes: Sequence[type[nn.Module]] | None) -> bool:
    if classes is not None:
        return isinstance(module, tuple(classes))
    return _is_unit(module) and not isinstance(module, nn.Identity)


def _is_unit(module: nn.Module) -> bool:
    wrapped = getattr(module, "wrapped_module", None)
    return isinstance(module, _UNITS) or isinstance(wrapped, nn.Module) or not has_parts(module)


def inside_units(model: nn.Module) -> set[nn.Module]:
    """Modules that are part of one that counts as a whole: what a wrapper wraps, the projections of attention."""
    units = [module for module in model.modules() if _is_unit(module)]
    return {part for unit in units for part in unit.modules() if part is not unit}


def is_call_name(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether ``name`` can be that of a function: ``layer1.0.add`` where ``layer1.0`` is a module that has parts."""
    owner, _, last = name.rpartition(".")
    return name not in modules and owner in modules and call_kind(last) is not None and may_own_calls(modules[owner])


@dataclass(frozen=True, slots=True)
class CallFilter:
    """Which functions are watched, and their names: all (``chosen`` None), or those called in chosen modules."""

    names: Mapping[nn.Module, str]
    chosen: set[nn.Module] | None
    listed: frozenset[str]

    @classmethod
    def of(cls, model: nn.Module, modules_list: Iterable[str | nn.Module] | None) -> CallFilter:
        """For what ``start(modules_list)`` of a collector was given."""
        inner = unwrap(model)
        named = {name: inner.get_submodule(raw) for name, raw in _names(inner).items()}
        wanted = frozenset(name for name in _as_list(modules_list) if isinstance(name, str))
        return cls({module: name for name, module in named.items()}, _chosen(modules_list, inner, named), wanted)

    def name_of(self, owner: nn.Module, name: str) -> str | None:
        """The full name of a function that ``owner`` calls; None where it is not watched."""
        full = f"{self.names.get(owner, '')}.{name}".lstrip(".")
        return full if self.chosen is None or owner in self.chosen or full in self.listed else None


def _as_list(modules_list: Iterable[str | nn.Module] | None) -> list[str | nn.Module]:
    return [modules_list] if isinstance(modules_list, str) else list(modules_list or ())


def _chosen(
    modules_list: Iterable[str | nn.Module] | None, model: nn.Module, named: Mapping[str, nn.Module]
) -> set[nn.Module] | None:
    wanted = _as_list(modules_list)
    everywhere = {"": model, **named}
    roots = [
        _module_called(one, model, named)
        for one in wanted
        if not (isinstance(one, str) and is_call_name(canonical_name(one), everywhere))
    ]
    return {part for root in roots for part in root.modules()} if wanted else None


def _module_called(wanted: str | nn.Module, model: nn.Module, named: Mapping[str, nn.Module]) -> nn.Module:
    if isinstance(wanted, nn.Module):
        if all(wanted is not module for module in model.modules()):
            raise TargetError(f"{type(wanted).__name__} is no module of the model", argument=("modules_list",))
        return wanted
    everywhere = dict(model.named_modules(remove_duplicate=False))
    short = {canonical_name(name): module for name, module in everywhere.items()}
    found = named.get(wanted) or everywhere.get(wanted) or short.get(canonical_name(wanted))
    if found is None:
        raise TargetError(
            f"the model has no module {wanted!r}. {did_you_mean(wanted, named)}", argument=("modules_list",)
        )
    return found


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, PackedSequence):
        return [value.data]
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in _leaves(part)]
    if isinstance(value, Mapping):
        return [leaf for part in value.values() for leaf in _leaves(part)]
    return [value]


def _is_countable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() > 0 and not value.is_complex() and not value.is_sparse
