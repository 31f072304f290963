"""Functions that a model's ``forward`` calls as modules of the model, for post-training quantization (layer 2).

A module that calls ``x + y`` gets a child ``add`` and a subclass of its own class, made here, whose ``forward`` hands
that call to the child. The user's class and source stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.data_loggers.quant_stats_file import QuantStats
from distiller_ng.errors import GraphError
from distiller_ng.graph._failures import MODEL_FAILURES, failed_at
from distiller_ng.graph.functional_calls import (
    FunctionCall,
    Outside,
    OwnsCalls,
    Unseen,
    call_kind,
    is_running,
    may_own_calls,
    watching_calls,
)
from distiller_ng.graph.inputs import as_example_inputs
from distiller_ng.graph.module_flow import undisturbed
from distiller_ng.modules.functional import FunctionModule, module_for_call
from distiller_ng.names import canonical_name, unwrap
from distiller_ng.ops.derived import derive_, original_class, underive_
from distiller_ng.ops.modules import convert_tensors_recursively_to, model_device
from distiller_ng.quantization.ptq_settings import metadata_of, with_metadata

__all__ = [
    "FUNCTION_NAMES",
    "Functions",
    "attach_functions_",
    "functions_called",
    "functions_in_stats",
    "isolate_",
    "possible_functions",
    "release_",
    "shown_functions",
]

#: ``{full name as the model gives it: module}``.
Functions = dict[str, FunctionModule]
#: Attribute of a module with the names of those of its children that stand for functions.
FUNCTION_NAMES = "function_names"
# They call nothing, take care of it themselves or cannot be changed.
_UNCHANGED = (OwnsCalls, Unseen, FunctionModule, nn.Identity, torch.jit.ScriptModule)
_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class CallsModules(OwnsCalls):
    """A module whose calls of functions are calls of its children."""

    def on_call(self, name: str, call: FunctionCall, original: Callable[[], Any]) -> Any:
        """What the child makes of the operands; in place it is written where the function would have."""
        child = self._modules.get(name) if name in self.__dict__[FUNCTION_NAMES] else None
        if child is None:
            return original()
        if isinstance(child, nn.Identity):  # what it does is done before it
            return call.operands[0]
        if isinstance(child, FunctionModule):  # in floating point, in place as well
            return child(*call.operands, function=lambda *operands, **settings: original(), **call.settings)
        result = child(*call.operands, function=call.function, **call.settings)
        return result if call.target is None or result is call.target else _written(call.target, result, child)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Without the functions while ``forward`` runs: models loop over their parts."""
        hidden = self.__dict__[FUNCTION_NAMES] if is_running(self) else ()
        return ((name, child) for name, child in super().named_children() if name not in hidden)


class ListCallsModules(CallsModules):
    """The same for ``nn.Sequential`` and the like, which are lists of their children: functions are not in the list."""

    def __iter__(self) -> Iterator[Any]:
        return iter(self._listed())

    def __len__(self) -> int:
        return len(self._listed())

    def __getitem__(self, index: Any) -> Any:
        return self._listed()[index]

    def __contains__(self, key: object) -> bool:
        return key in self._listed()

    def keys(self) -> Any:
        """Those of the parts."""
        return self._listed().keys()

    def values(self) -> Any:
        """The parts."""
        return self._listed().values()

    def items(self) -> Any:
        """The parts by name."""
        return self._listed().items()

    def _listed(self) -> Any:
        """The module as it was, with the same parts."""
        kind = original_class(type(self))
        plain = kind.__new__(kind)
        hidden = self.__dict__[FUNCTION_NAMES]
        parts = {name: child for name, child in self._modules.items() if name not in hidden}
        plain.__dict__.update(self.__dict__, _modules=parts)
        return plain


def _written(target: Tensor, result: Tensor, child: nn.Module) -> Tensor:
    """``target`` with the values of ``result``, and what is known of their grid."""
    grid = metadata_of(result)
    carried: Any = child.__dict__.get("export_carried")
    is_carried = carried is not None and carried.knows(result)
    target.copy_(result)
    if is_carried:
        carried.note(target)
    return target if grid is None else with_metadata(target, grid)


# -- finding -------------------------------------------------------------------------------------------------------


class _Finder:
    """Notes every function that is called and whether all its operands are tensors."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {module: name for name, module in model.named_modules()}
        self.found: Functions = {}

    def before_call(self, owner: nn.Module, name: str, call: FunctionCall) -> None:
        full = f"{self._names.get(owner, '')}.{name}".lstrip(".")
        module = self.found.setdefault(full, module_for_call(call.kind))
        floating = all(isinstance(one, Tensor) and one.is_floating_point() for one in call.operands)
        if not floating or call.settings.get("alpha", 1) != 1:
            module.combines_tensors = False

    def after_call(self, owner: nn.Module, name: str, call: FunctionCall, output: Any) -> None:
        """Nothing is left to note."""


def functions_called(model: nn.Module, dummy_input: Any) -> Functions:
    """The functions that ``model`` calls on ``dummy_input``; it runs once, in eval mode and without gradients.

    Raises :class:`GraphError` when it does not run.
    """
    inputs = as_example_inputs(dummy_input)
    args, kwargs = convert_tensors_recursively_to((inputs.args, dict(inputs.kwargs)), model_device(model))
    finder = _Finder(model)
    inner = unwrap(model)
    with undisturbed(inner), torch.no_grad():
        inner.eval()
        try:
            with watching_calls(inner, finder):
                inner(*args, **kwargs)
        except MODEL_FAILURES as error:
            raise GraphError(
                f"{type(inner).__name__} does not run on dummy_input: {failed_at(inner, error)[0]}"
            ) from error
    return finder.found


def functions_in_stats(model: nn.Module, stats: QuantStats) -> Functions:
    """The functions that calibration statistics name."""
    full = {canonical_name(name): name for name, module in model.named_modules() if may_own_calls(module)}
    known = {canonical_name(name) for name, _ in model.named_modules(remove_duplicate=False)}
    found: Functions = {}
    for name, entry in stats.items():
        owner, _, last = name.rpartition(".")
        kind = call_kind(last)
        if kind is None or name in known or owner not in full:
            continue
        found[f"{full[owner]}.{last}".lstrip(".")] = module = module_for_call(kind)
        module.combines_tensors = len(entry.get("inputs", {})) > 1
    return found


def possible_functions(model: nn.Module, patterns: Mapping[str, Any]) -> Functions:
    """Functions that overrides may be about, where nobody knows yet which ones are called: ``.*matmul``, ``add_1``."""
    words = {"matmul", "bmm"} | {pattern.replace("\\", ".").rpartition(".")[2] for pattern in patterns}
    kinds = {word: kind for word in words if (kind := call_kind(word)) is not None}
    owners = [name for name, module in model.named_modules() if may_own_calls(module)]
    found = {f"{owner}.{word}".lstrip("."): module_for_call(kind) for owner in owners for word, kind in kinds.items()}
    taken = dict(model.named_modules())
    return {name: module for name, module in found.items() if name not in taken}


# -- putting them into a model -------------------------------------------------------------------------------------


@contextmanager
def shown_functions(model: nn.Module, functions: Functions) -> Iterator[None]:
    """Inside, ``model.named_modules()`` has ``functions`` too; nothing else is different."""
    placed = []
    for full, module in functions.items():
        owner, _, name = full.rpartition(".")
        parts = model.get_submodule(owner)._modules
        if name not in parts:
            parts[name] = module
            placed.append((parts, name))
    try:
        yield
    finally:
        for parts, name in placed:
            parts.pop(name, None)


def attach_functions_(model: nn.Module, functions: Functions) -> None:
    """Make every function a child of the module that calls it, and let that module call the child."""
    for full, function in functions.items():
        path, _, name = full.rpartition(".")
        owner = model.get_submodule(path)
        owner._modules[name] = function.train(owner.training)
        owner.__dict__.setdefault(FUNCTION_NAMES, set()).add(name)
        derive_(owner, ListCallsModules if isinstance(owner, _LISTS) else CallsModules)
    if functions:
        isolate_(model)


def isolate_(model: nn.Module) -> None:
    """Let nobody take what other modules do inside, wrappers of the quantizer among them, for calls of their own."""
    inside: set[nn.Module] = set()
    for module in unwrap(model).modules():
        if isinstance(module, Unseen) and not isinstance(module, Outside):  # a wrapper
            inside.update(module.modules())
        if module not in inside and not isinstance(module, _UNCHANGED):
            derive_(module, Outside)


def release_(model: nn.Module) -> None:
    """Undo :func:`isolate_`."""
    for module in model.modules():
        if isinstance(module, Outside) and not isinstance(module, OwnsCalls):
            underive_(module, Outside)
