"""The base of everything that watches activations while a model runs (layer 2)."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from enum import IntEnum
from typing import Any, ClassVar

import torch
from torch import nn

from distiller_ng.data_loggers._watching import CallFilter, watched_modules
from distiller_ng.errors import ArgumentError, LifecycleError, TargetError, listed
from distiller_ng.graph.functional_calls import FunctionCall, watching_calls
from distiller_ng.modules.functional import FunctionModule
from distiller_ng.modules.recurrent_parts import shown_recurrent_parts
from distiller_ng.names import unwrap
from distiller_ng.ops.compiled import forget_compiled_code, uncompiled

__all__ = ["ActivationStatsCollector", "CollectorDirection"]

logger = logging.getLogger(__name__)


class CollectorDirection(IntEnum):
    """Whether a statistic is taken of what leaves a module (OUT) or of what enters it (IN)."""

    OUT = 0
    OFM = 0
    IN = 1
    IFM = 1
    IFMS = 1


class ActivationStatsCollector(ABC):
    """Watches modules of a model from :meth:`start` to :meth:`stop`; results are kept here, never on the modules.

    ``stat_name`` is what loggers call the statistic; ``classes`` which modules are watched (None: every module without
    children, but for ``nn.Identity``; see also ``modules_list`` of :meth:`start`). Names in results are canonical:
    without the ``module.`` that a parallel wrapper adds.

    A collector of one's own overrides :meth:`after` (and :meth:`before`, which runs while inputs have not been
    overwritten by a module that works in place)::

        class Largest(ActivationStatsCollector):
            def __init__(self, model):
                super().__init__(model, "largest", [nn.ReLU])
                self.found = {}

            def after(self, name, module, args, kwargs, output):
                self.found[name] = max(self.found.get(name, 0.0), float(output.max()))

            def value(self):
                return dict(self.found)

            def reset(self):
                self.found.clear()

    With a ReLU called ``relu1`` that once returns 3.5 at most, ``value()`` is ``{"relu1": 3.5}``.

    With ``watches_calls`` functions that a module with parts calls in its ``forward`` are seen too, under names such as
    ``layer1.0.add`` (see :mod:`distiller_ng.graph.functional_calls`), unless ``classes`` selects modules; and
    ``nn.LSTM`` and ``nn.GRU`` run as what post-training quantization makes of them, so that their parts have statistics
    (``rnn.cells.0.fc_gate_x``) besides the layer itself.

    Raises :class:`ArgumentError` when ``model`` is no module or ``classes`` holds something else than module classes.
    """

    #: Whether functions and the parts of recurrent layers are watched like modules.
    watches_calls: ClassVar[bool] = False

    def __init__(self, model: nn.Module, stat_name: str, classes: Sequence[type[nn.Module]] | None) -> None:
        if not isinstance(model, nn.Module):
            raise ArgumentError(f"model must be a torch.nn.Module, got {type(model).__name__}", argument=("model",))
        self.model = model
        self.stat_name = stat_name
        self.classes = _checked(classes)
        self._handles: list[Any] = []
        self._call_filter: CallFilter | None = None

    # -- what a statistic does --------------------------------------------------------------------------------------

    def before(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called before the module ``name`` runs, without gradients."""

    @abstractmethod
    def after(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Called after the module ``name`` ran, without gradients."""

    @abstractmethod
    def value(self) -> dict[str, Any]:
        """What was collected, ``{module name: statistic}``, in model order; modules that never ran are left out."""

    @abstractmethod
    def reset(self) -> None:
        """Forget what was collected."""

    def save(self, fname: str | os.PathLike[str]) -> str:
        """Write what was collected to a file and return its name."""
        raise LifecycleError(f"{type(self).__name__} has no file format: use value()")

    # -- watching ---------------------------------------------------------------------------------------------------

    @property
    def is_collecting(self) -> bool:
        """Whether the model is being watched."""
        return bool(self._handles)

    def start(self, modules_list: Iterable[str | nn.Module] | None = None) -> None:
        """Watch the model; ``modules_list`` restricts it to these modules, by name, and what is inside them.

        Statistics add to those of earlier runs until :meth:`reset`. Raises :class:`TargetError` for an unknown name
        and for scripted modules, and :class:`LifecycleError` when it is collecting already.
        """
        if self._handles:
            raise LifecycleError(f"{type(self).__name__} is collecting already: call stop() before start()")
        with ExitStack() as stack:  # left at once when something raises
            modules = self._modules_to_watch(modules_list, stack)
            if not modules:
                wanted = "modules" if self.classes is None else " or ".join(kind.__name__ for kind in self.classes)
                logger.warning("%s: the model has no %s to watch", type(self).__name__, wanted)
            scripted = [name for name, module in modules.items() if isinstance(module, torch.jit.ScriptModule)]
            if scripted:
                raise TargetError(
                    f"modules made by torch.jit.script or trace cannot be watched: {listed(scripted)}. Collect from "
                    "the model before it is scripted, or name the others in modules_list",
                    argument=("modules_list",),
                )
            for name, module in modules.items():
                self.start_module(name, module)
            self._handles.append(_Removable(stack.pop_all()))
        forget_compiled_code()

    def _modules_to_watch(
        self, modules_list: Iterable[str | nn.Module] | None, stack: ExitStack
    ) -> dict[str, nn.Module]:
        """Modules by name; what must be left when watching ends enters ``stack``."""
        if not (self.watches_calls and self.classes is None):
            return watched_modules(self.model, self.classes, modules_list)
        layers = stack.enter_context(shown_recurrent_parts(self.inner_model())).values()
        modules = watched_modules(self.model, None, modules_list)
        self._call_filter = CallFilter.of(self.model, modules_list)
        stack.enter_context(watching_calls(self.inner_model(), self))
        whole = watched_modules(self.model, [nn.Module], modules_list)
        return {**modules, **{name: module for name, module in whole.items() if module in layers}}

    def start_module(self, name: str, module: nn.Module) -> None:
        """Watch one module."""

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            with torch.no_grad():
                self.before(name, module, args, kwargs)

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            with torch.no_grad():
                self.after(name, module, args, kwargs, output)

        if type(self).before is not ActivationStatsCollector.before:
            self._handles.append(module.register_forward_pre_hook(uncompiled(before), with_kwargs=True))
        self._handles.append(module.register_forward_hook(uncompiled(after), with_kwargs=True))

    def before_call(self, owner: nn.Module, name: str, call: FunctionCall) -> None:
        """A function is about to be called; told to :meth:`before` like a module."""
        full = self._name_of(owner, name)
        if full is not None and type(self).before is not ActivationStatsCollector.before:
            with torch.no_grad():
                self.before(full, _FUNCTION, call.operands, {})

    def after_call(self, owner: nn.Module, name: str, call: FunctionCall, output: Any) -> None:
        """A function was called; told to :meth:`after` like a module."""
        full = self._name_of(owner, name)
        if full is not None:
            with torch.no_grad():
                self.after(full, _FUNCTION, call.operands, {}, output)

    def _name_of(self, owner: nn.Module, name: str) -> str | None:
        return None if self._call_filter is None else self._call_filter.name_of(owner, name)

    def stop(self) -> None:
        """Watch no longer; what was collected stays."""
        self.detach()

    def detach(self) -> None:
        """Leave the model as it was found, and check nothing; :meth:`stop` also looks at what was collected."""
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        forget_compiled_code()

    def in_model_order(self, found: dict[str, Any]) -> dict[str, Any]:
        """``found`` sorted as the model lists its modules."""
        order = {name: place for place, name in enumerate(watched_modules(self.model, [nn.Module]))}

        def place(name: str) -> tuple[int, bool]:
            """Functions come behind the last part of the module that calls them."""
            if name in order:
                return order[name], False
            owner = name.rpartition(".")[0]
            inside = [at for other, at in order.items() if not owner or f"{other}.".startswith(f"{owner}.")]
            return max(inside, default=len(order)), True

        return dict(sorted(found.items(), key=lambda item: place(item[0])))

    def inner_model(self) -> nn.Module:
        """The user's module inside parallel and compiled wrappers."""
        return unwrap(self.model)


#: What stands for any function where a module is asked for.
_FUNCTION = FunctionModule()


class _Removable:
    """Leaves a context; looks like the handle of a hook."""

    def __init__(self, stack: ExitStack) -> None:
        self.remove = stack.close


def _checked(classes: Sequence[type[nn.Module]] | None) -> tuple[type[nn.Module], ...] | None:
    """None or a tuple of module classes; an empty sequence means all, as Distiller's does."""
    if classes is None:
        return None
    given: tuple[Any, ...] = (classes,) if isinstance(classes, type) else tuple(classes)
    wrong = [kind for kind in given if not (isinstance(kind, type) and issubclass(kind, nn.Module))]
    if wrong:
        raise ArgumentError(
            f"classes must hold module classes, such as [torch.nn.ReLU]; got {wrong[0]!r}", argument=("classes",)
        )
    return given or None
