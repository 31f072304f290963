"""Where targets come from: a module that is run on the student's inputs (layer 2)."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from distiller_ng.errors import ArgumentError, CheckpointError, LifecycleError
from distiller_ng.knowledge_distillation.capture import Call, Listener, Recorder
from distiller_ng.knowledge_distillation.structures import tensors_in
from distiller_ng.names import unwrap

__all__ = ["AutocastType", "TeacherSource", "autocast_of"]

#: How the teacher is computed: as autocast had the student's pass, or in this type.
AutocastType: TypeAlias = Literal["float16", "bfloat16"]
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": None}


class TeacherSource:
    """A module that is run on the student's inputs, in eval mode, without gradients, and in its own type of numbers.

    ``layers`` are those whose outputs are noted. ``input_keys`` limits the named inputs it is given. ``autocast``:
    a type's name; None takes what the student's pass had. Raises :class:`LifecycleError` for batch norm that would
    change, and :class:`ArgumentError` for another device or inputs the teacher does not take.
    """

    def __init__(self, name: str, module: nn.Module | None) -> None:
        self.name = name
        self.module = module
        self._recorder = Recorder()
        self._listener: Listener | None = None
        self._layers: list[str] = []
        self._norms: list[tuple[str, nn.Module]] = []
        self._is_checked = False

    def prepare(self, student: nn.Module, layers: Sequence[str]) -> None:
        """Install the hooks; called when the policy is added, and again harmless."""
        self._layers = list(layers)
        if self.module is not None:
            self._listen(self.module)

    def begin(self, student: nn.Module) -> None:
        """An active epoch begins."""
        self._to_eval(student)

    def update_(self, student: nn.Module) -> None:
        """A real optimizer step was made; a moving average follows."""

    def layers_of(self, student: nn.Module) -> nn.Module:
        """The module in which the teacher's layer names are looked up."""
        return student if self.module is None else self.module

    def run(self, call: Call, *, input_keys: Sequence[str] = (), autocast: str | None = None) -> Call:
        """The teacher's pass over the inputs of the student's."""
        module = self._ready()
        kwargs = {key: value for key, value in call.kwargs.items() if not input_keys or key in input_keys}
        if not self._is_checked:
            self._check_inputs(module, call.args, kwargs)
        dtype = call.autocast if autocast is None else _DTYPES[autocast]
        recorder = self._recorder
        recorder.open()
        try:
            with torch.no_grad(), autocast_of(call, dtype):
                args, kwargs = (call.args, kwargs) if dtype else _in_own_type(module, call.args, kwargs)
                before = _versions(args, kwargs)
                output = module(*args, **kwargs)
            self._check_unchanged(before, _versions(args, kwargs))
            noted = recorder.calls()
        finally:
            recorder.close()
        features = noted[-1].features if noted else {}
        return Call(call.args, kwargs, output, features)

    def close(self) -> None:
        """Take the hooks away."""
        if self._listener is not None:
            self._listener.remove()
            self._listener = None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs of it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], student: nn.Module) -> None:
        """Restore :meth:`state_dict`."""
        if state:
            raise CheckpointError(f"teacher {self.name!r} keeps no state, the checkpoint holds {sorted(state)}")

    # -- internals --------------------------------------------------------------------------------------------------

    def _listen(self, module: nn.Module) -> None:
        if self._listener is None:
            self._listener = Listener(module, self._recorder, self._layers)
        self._listener.install()
        self._norms = [
            (name, part)
            for name, part in module.named_modules()
            if isinstance(part, nn.modules.batchnorm._NormBase) and part.track_running_stats
        ]

    def _to_eval(self, student: nn.Module) -> None:
        if self.module is None:
            return
        self.module.eval()
        ours, theirs = _device(unwrap(student)), _device(unwrap(self.module))
        if ours is not None and theirs is not None and ours != theirs:
            raise ArgumentError(
                f"teacher {self.name!r} is on {theirs}, the student on {ours}: move it, teacher.to({str(ours)!r})",
                argument=("teacher",),
            )

    def _ready(self) -> nn.Module:
        module = self.module
        if module is None:
            raise LifecycleError(f"teacher {self.name!r} does not exist before the policy's first epoch")
        moving = next((name for name, part in self._norms if part.training), None)
        if moving is not None:
            raise LifecycleError(
                f"teacher {self.name!r}: batch norm {moving!r} is in training mode and would change with every batch. "
                "Something called train() on the teacher after the epoch began: keep it in eval mode"
            )
        if module.training:
            module.eval()
        return module

    def _check_inputs(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._is_checked = True
        try:
            inspect.signature(unwrap(module).forward).bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentError(
                f"teacher {self.name!r} cannot be given the student's inputs ({len(args)} by position, "
                f"{sorted(kwargs) or 'none'} by name): {error}. teacher_input_keys says which named inputs it gets",
                argument=("teacher_input_keys",),
            ) from None
        except ValueError:  # a callable without a signature
            return

    def _check_unchanged(self, before: list[int], after: list[int]) -> None:
        if before != after:
            raise ArgumentError(
                f"teacher {self.name!r} changes its inputs in place, which are the student's, too: it would learn from "
                "other data. Let the teacher work on a copy (x = x * 2 instead of x *= 2)",
                argument=("teacher",),
            )


def _versions(*inputs: Any) -> list[int]:
    """How often each tensor was changed in place."""
    return [tensor._version for tensor in tensors_in(inputs) if not tensor.is_inference()]


def _device(module: nn.Module) -> torch.device | None:
    tensor = next(iter(module.parameters()), None)
    return None if tensor is None else tensor.device


def _in_own_type(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs in the type of the teacher's parameters: one in half precision takes a float32 student's, too."""
    own = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    given = next((t.dtype for t in tensors_in((args, kwargs)) if t.is_floating_point()), None)
    if own is None or given is None or own == given:
        return args, kwargs
    converted: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map_only(
        Tensor, lambda t: t.to(own) if t.is_floating_point() else t, (args, kwargs)
    )
    return converted


def autocast_of(call: Call, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    """Autocast to ``dtype`` on the device of a pass, none at all for None."""
    tensor = next(tensors_in((call.args, call.kwargs, call.output)), None)
    kind = "cpu" if tensor is None else tensor.device.type
    return torch.autocast(kind, dtype=dtype, enabled=dtype is not None)
