"""Records which module's output is which module's input during a real forward pass (layer 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from distiller_ng.names import canonical_name, unwrap

__all__ = ["FlowRecorder", "ModuleFlow", "leaf_modules"]

# Modules with children that compute everything themselves and never call those children.
_OPAQUE = (nn.MultiheadAttention,)


class ModuleFlow:
    """Which leaf modules consume the output of which, by canonical module name and in execution order.

    Views count as the tensor they look into, so ``flatten`` or ``chunk`` between two modules keeps the edge; a
    functional call that makes a new tensor (``F.relu``, ``+``) ends it.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2, 1))
    >>> observe_module_flow(net, torch.zeros(1, 1, 1, 1)).consumers("1")
    ('2',)
    """

    def __init__(self, edges: Iterable[tuple[str, str]], calls: Mapping[str, int]) -> None:
        self._consumers: dict[str, dict[str, None]] = {}
        self._calls = dict(calls)
        for producer, consumer in edges:
            self._consumers.setdefault(producer, {})[consumer] = None

    def consumers(self, module_name: str) -> tuple[str, ...]:
        """Leaf modules that read the output of ``module_name``, each once; empty for an unknown name."""
        return tuple(self._consumers.get(canonical_name(module_name), ()))

    def calls(self, module_name: str) -> int:
        """How often the module ran in the recorded pass; above 1 for a shared module, 0 for one that never ran."""
        return self._calls.get(canonical_name(module_name), 0)


class FlowRecorder:
    """Watches a model with hooks on its leaf modules between :meth:`start` and :meth:`stop`.

    ``keep_outputs`` also copies what each module returned, call by call, into :attr:`outputs`.
    """

    def __init__(self, model: nn.Module, *, keep_outputs: bool = False) -> None:
        self._modules = leaf_modules(model)
        self._handles: list[RemovableHandle] = []
        self._producer: dict[int, str] = {}  # storage address -> the module that wrote it last
        self._alive: list[Tensor] = []  # an address is reused once its storage is freed
        self._keeps_outputs = keep_outputs
        self.outputs: dict[str, list[Tensor]] = {}
        self._edges: list[tuple[str, str]] = []
        self._calls: dict[str, int] = {}

    def start(self) -> None:
        """Install the hooks."""
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after(name)))

    def stop(self) -> ModuleFlow:
        """Remove the hooks and return what was seen."""
        self.remove()
        return ModuleFlow(self._edges, self._calls)

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._alive.clear()
        self._producer.clear()

    def _before(self, name: str) -> Callable[..., None]:
        def record_inputs(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._calls[name] = self._calls.get(name, 0) + 1
            for tensor in _tensors((args, kwargs)):
                producer = self._producer.get(_address(tensor))
                if producer is not None and producer != name:
                    self._edges.append((producer, name))

        return _uncompiled(record_inputs)

    def _after(self, name: str) -> Callable[..., None]:
        def record_outputs(module: nn.Module, args: Any, output: Any) -> None:
            for tensor in _tensors(output):
                self._alive.append(tensor.detach())
                if self._keeps_outputs:  # a copy: what comes next may change it in place
                    self.outputs.setdefault(name, []).append(tensor.detach().clone())
                self._producer[_address(tensor)] = name

        return _uncompiled(record_outputs)


def _uncompiled(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that torch.compile leaves alone: it breaks the graph there instead of tracing our bookkeeping."""
    disabled: Callable[..., None] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return disabled


def leaf_modules(model: nn.Module) -> dict[str, nn.Module]:
    """``{canonical name: module}`` of the modules that compute: no children but parametrizations, or opaque ones."""
    leaves: dict[str, nn.Module] = {}
    inner = unwrap(model)
    for name, module in inner.named_modules():
        children = [child for child, _ in module.named_children() if child != "parametrizations"]
        if "parametrizations" not in name.split(".") and (not children or isinstance(module, _OPAQUE)):
            leaves[canonical_name(name)] = module
    return leaves


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _address(tensor: Tensor) -> int:
    """The storage a tensor lives in; tensors without one (sparse, functional wrappers) are only themselves."""
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (NotImplementedError, RuntimeError):
        return id(tensor)
