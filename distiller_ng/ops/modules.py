"""Naming, finding and setting the modules and parameters of a model (layer 1)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distiller_ng.errors import TargetError, did_you_mean
from distiller_ng.names import ParameterIndex, canonical_name, unwrap

__all__ = [
    "assign_layer_fq_names",
    "convert_tensors_recursively_to",
    "denormalize_module_name",
    "find_module_by_fq_name",
    "get_nonparallel_clone_model",
    "has_children",
    "has_parts",
    "make_non_parallel_copy",
    "model_device",
    "model_find_module",
    "model_find_module_name",
    "model_find_param",
    "model_find_param_name",
    "model_setattr",
    "normalize_module_name",
    "optimizer_device_name",
    "param_name_2_module_name",
]

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def normalize_module_name(layer_name: str) -> str:
    """A module's name without the parts that wrappers add: ``"features.module.0"`` -> ``"features.0"``.

    Of parts called ``module`` only the first is a data-parallel wrapper's, a second one is the model's own:
    ``"module.a.module.b"`` -> ``"a.module.b"``.  ``_orig_mod`` is dropped wherever it stands.
    """
    parts = [part for part in layer_name.split(".") if part == "module" or canonical_name(part)]
    if "module" in parts:
        parts.remove("module")
    return ".".join(parts)


def denormalize_module_name(model: nn.Module, normalized_name: str) -> str:
    """The name ``model`` itself uses for a module; ``normalized_name`` when it has no such module.

    For a model inside DataParallel ``"conv1"`` -> ``"module.conv1"``.
    """
    names = [name for name, _ in model.named_modules()]
    found = [name for name in names if normalize_module_name(name) == normalized_name]
    found = found or [name for name in names if canonical_name(name) == normalized_name]
    return found[-1] if found else normalized_name


def param_name_2_module_name(param_name: str) -> str:
    """The module a parameter belongs to: ``"layer1.0.conv1.weight"`` -> ``"layer1.0.conv1"``."""
    return param_name.rpartition(".")[0]


def assign_layer_fq_names(container: nn.Module, name: str | None = None) -> None:
    """Set the attribute ``distiller_name`` of every module to its name, prefixed by ``name`` if one is given.

    Kept for scripts that read it; nothing in this library does.
    """
    for path, module in container.named_modules():
        full_name = ".".join(part for part in (name, path) if part)
        setattr(module, "distiller_name", full_name or None)  # noqa: B010 - nn.Module declares no such attribute


def find_module_by_fq_name(model: nn.Module, fq_mod_name: str) -> nn.Module | None:
    """The module called ``fq_mod_name``, or None; needs no :func:`assign_layer_fq_names` before."""
    return model_find_module(model, fq_mod_name)


def model_find_module(model: nn.Module, module_to_find: str) -> nn.Module | None:
    """The module of that name, with or without the parts that wrappers add, or None."""
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if module_to_find in modules:
        return modules[module_to_find]
    wanted = canonical_name(module_to_find)
    return next((module for name, module in modules.items() if canonical_name(name) == wanted), None)


def model_find_module_name(model: nn.Module, module_to_find: nn.Module) -> str | None:
    """The name of that very module object, or None."""
    return next((name for name, module in model.named_modules() if module is module_to_find), None)


def model_find_param(model: nn.Module, param_to_find_name: str) -> nn.Parameter | None:
    """The parameter of that name, with or without the parts that wrappers add, or None."""
    return ParameterIndex(model).get(param_to_find_name)


def model_find_param_name(model: nn.Module, param_to_find: Tensor) -> str | None:
    """The name of that very parameter object (or of the one sharing its memory, as ``p.data`` does), or None."""
    named = list(model.named_parameters(remove_duplicate=False))
    exact = next((name for name, parameter in named if parameter is param_to_find), None)
    if exact is not None:
        return exact
    pointer, shape = param_to_find.data_ptr(), param_to_find.shape
    same = (name for name, p in named if pointer and p.data_ptr() == pointer and p.shape == shape)
    return next(same, None)


def model_setattr(model: nn.Module, attr_name: str, val: Any, register: bool = False) -> None:
    """Set ``a.b.attr`` on the submodule ``a.b``; with ``register`` a tensor becomes a parameter or a buffer there.

    Raises :class:`TargetError` when there is no such submodule.
    """
    path, _, attribute = attr_name.rpartition(".")
    module = model_find_module(model, path)
    if module is None:
        names = [name for name, _ in model.named_modules() if name]
        raise TargetError(f"the model has no module {path!r}. {did_you_mean(path, names)}")
    if register and isinstance(val, nn.Parameter):
        module.register_parameter(attribute, val)
    elif register and isinstance(val, Tensor):
        module.register_buffer(attribute, val)
    else:
        setattr(module, attribute, val)


def has_children(module: nn.Module) -> bool:
    """Whether a module contains modules."""
    return any(True for _ in module.children())


def has_parts(module: nn.Module) -> bool:
    """Whether a module is made of others that compute, so that it is no layer of its own.

    A convolution or linear layer that keeps its padding (or an identity in its place) as a module inside is one layer;
    so is one whose weight is parametrized.
    """
    children = [child for name, child in module.named_children() if name != "parametrizations"]
    return bool(children) and not (isinstance(module, _LAYERS) and all(_is_padding(child) for child in children))


def _is_padding(module: nn.Module) -> bool:
    kind = type(module).__name__.lower()
    has_own = any(True for _ in (*module.children(), *module.parameters(), *module.buffers()))
    return ("pad" in kind or "identity" in kind) and not has_own


def model_device(model: nn.Module) -> str:
    """The device of the first parameter, ``"cpu"`` or for example ``"cuda:0"``; ``"cpu"`` without parameters."""
    first = next(model.parameters(), None)
    return "cpu" if first is None else str(first.device)


def optimizer_device_name(opt: Optimizer) -> str:
    """The device of an optimizer's first parameter, as text."""
    parameters = (parameter for group in opt.param_groups for parameter in group["params"])
    first = next(parameters, None)
    return "cpu" if first is None else str(first.device)


def make_non_parallel_copy(model: nn.Module) -> nn.Module:
    """A deep copy of the model without data-parallel and ``torch.compile`` wrappers, at any depth."""
    bare = copy.deepcopy(unwrap(model))
    for module in list(bare.modules()):
        for name, child in list(module.named_children()):
            if unwrap(child) is not child:
                setattr(module, name, unwrap(child))
    return bare


@contextmanager
def get_nonparallel_clone_model(model: nn.Module) -> Iterator[nn.Module]:
    """Context manager around :func:`make_non_parallel_copy`."""
    yield make_non_parallel_copy(model)


def convert_tensors_recursively_to(val: Any, *args: Any, **kwargs: Any) -> Any:
    """``tensor.to(*args, **kwargs)`` for every tensor inside tuples, lists and dictionaries; the rest stays as it is.

    Containers are rebuilt with their own type, named tuples included.
    """
    if isinstance(val, torch.Tensor):
        return val.to(*args, **kwargs)
    if isinstance(val, dict):
        converted = ((key, convert_tensors_recursively_to(item, *args, **kwargs)) for key, item in val.items())
        return type(val)(converted)
    if isinstance(val, tuple | list):
        items = [convert_tensors_recursively_to(item, *args, **kwargs) for item in val]
        return type(val)(*items) if hasattr(val, "_fields") else type(val)(items)
    return val
