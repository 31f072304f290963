"""Where targets come from: a given module, a frozen copy of the student, or a moving average of it (layer 2)."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, CheckpointError, LifecycleError, did_you_mean
from distiller_ng.knowledge_distillation.capture import Call, Listener, Recorder
from distiller_ng.knowledge_distillation.structures import tensors_in
from distiller_ng.names import strip_wrappers, unwrap

__all__ = ["OwnTeacher", "TeacherSource", "autocast_of", "read_teachers"]

#: How the teacher is computed: as autocast had the student's pass, or in this type.
AutocastType: TypeAlias = Literal["float16", "bfloat16"]
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": None}


class TeacherSource:
    """A module that is run on the student's inputs, in eval mode and without gradients.

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
                output = module(*call.args, **kwargs)
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


class OwnTeacher(TeacherSource):
    """A copy of the student, taken at the policy's start: frozen (``decay`` None), or a moving average of it.

    After every optimizer step the average becomes ``decay * average + (1 - decay) * student``; buffers are copied.

    Source of the average: Antti Tarvainen, Harri Valpola, "Mean teachers are better role models" (2017),
    https://arxiv.org/abs/1703.01780

    Example: decay 0.9, a weight that was 1.0 at the start and is 2.0 after the first step: the teacher's is 1.1.
    """

    def __init__(self, name: str, decay: float | None = None) -> None:
        super().__init__(name, None)
        self.decay = decay

    def begin(self, student: nn.Module) -> None:
        """Take the copy, if there is none yet."""
        if self.module is None:
            self._take(student)
        self._to_eval(student)

    def update_(self, student: nn.Module) -> None:
        """Move the average; a student whose shapes changed (thinning) is copied anew."""
        if self.decay is None or self.module is None:
            return
        mine, theirs = _tensors(self.module), _tensors(unwrap(student))
        if mine.keys() != theirs.keys() or any(mine[name].shape != theirs[name].shape for name in mine):
            self.close()
            self._take(student)
            self._to_eval(student)
            return
        learned = {name for name, _ in self.module.named_parameters()}
        with torch.no_grad():
            averages = [mine[name] for name in mine if name in learned]
            torch._foreach_lerp_(averages, [theirs[name].detach() for name in mine if name in learned], 1 - self.decay)
            for name in mine:
                if name not in learned:
                    mine[name].copy_(theirs[name])

    def state_dict(self) -> dict[str, Any]:
        """The copy's tensors; nothing before it was taken."""
        return {} if self.module is None else {name: t.detach().clone() for name, t in _tensors(self.module).items()}

    def load_state_dict(self, state: Mapping[str, Any], student: nn.Module) -> None:
        """Restore :meth:`state_dict`; raises :class:`CheckpointError` for another architecture."""
        if not state:
            self.close()
            self.module = None
            return
        if self.module is None:
            self._take(student)
        mine = _tensors(self._ready_module())
        unfit = [n for n in {**mine, **state} if n not in mine or n not in state or mine[n].shape != state[n].shape]
        if unfit:
            raise CheckpointError(
                f"teacher {self.name!r} of the checkpoint is another architecture than the student: {unfit[0]!r} does "
                "not fit. Give the teacher as a module, teachers={...}, when the student changes its structure"
            )
        with torch.no_grad():
            for name, value in state.items():
                mine[name].copy_(value)

    def _ready_module(self) -> nn.Module:
        if self.module is None:
            raise LifecycleError(f"teacher {self.name!r} does not exist before the policy's first epoch")
        return self.module

    def _take(self, student: nn.Module) -> None:
        self.module = copy.deepcopy(unwrap(student)).requires_grad_(False)
        self.module.zero_grad(set_to_none=True)
        self.module.eval()
        self._listen(self.module)


def read_teachers(teacher: Any, teachers: Mapping[str, nn.Module], *, student: nn.Module | None) -> list[TeacherSource]:
    """The sources of what a user writes: a name, ``"self"``, ``{"ema": 0.999}``, a module, or a list of these.

    Raises :class:`ArgumentError` for a name that was not given, and for the student as its own teacher.
    """
    several = isinstance(teacher, list | tuple)
    written = list(teacher) if several else [teacher]
    if not written:
        raise ArgumentError("teacher is an empty list: give at least one", argument=("teacher",))
    found: list[TeacherSource] = []
    for at, entry in enumerate(written):
        where: tuple[str | int, ...] = ("teacher", at) if several else ("teacher",)
        source = _source(entry, teachers, where, default=f"teacher {at}" if several else "teacher")
        if any(other.name == source.name for other in found):
            raise ArgumentError(f"teacher {source.name!r} stands twice in the list", argument=where)
        if student is not None and source.module is not None and unwrap(source.module) is unwrap(student):
            raise ArgumentError(
                "the teacher is the student itself, which changes with every step: teacher: self takes a frozen copy, "
                "ema: 0.999 a moving average",
                argument=where,
            )
        found.append(source)
    return found


def _source(
    entry: Any, teachers: Mapping[str, nn.Module], where: tuple[str | int, ...], *, default: str
) -> TeacherSource:
    if isinstance(entry, TeacherSource):
        return entry
    if isinstance(entry, nn.Module):
        known = next((name for name, module in teachers.items() if module is entry), default)
        return TeacherSource(known, entry)
    if isinstance(entry, Mapping) and set(entry) == {"ema"}:
        return OwnTeacher("ema", check_decay(entry["ema"], (*where, "ema")))
    if entry == "self":
        return OwnTeacher("self")
    if not isinstance(entry, str):
        raise ArgumentError(
            f"teacher is a name, self, {{ema: 0.999}} or a list of these; from code, a module. Got {entry!r}",
            argument=where,
        )
    if entry not in teachers:
        hint = did_you_mean(entry, [*teachers, "self"]) if teachers else "No teachers were given"
        raise ArgumentError(
            f"no teacher is called {entry!r}. {hint}: file_config(..., teachers={{{entry!r}: module}}), or write self",
            argument=where,
        )
    return TeacherSource(entry, teachers[entry])


def check_decay(value: Any, argument: tuple[str | int, ...]) -> float:
    """The decay of a moving average, from 0 and below 1; raises :class:`ArgumentError`."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < 1:
        raise ArgumentError(f"ema is the average's decay, from 0 and below 1 (0.999), got {value!r}", argument=argument)
    return float(value)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {short: named[name] for short, name in strip_wrappers(named).items()}


def _device(module: nn.Module) -> torch.device | None:
    tensor = next(iter(module.parameters()), None)
    return None if tensor is None else tensor.device


def autocast_of(call: Call, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    """Autocast to ``dtype`` on the device of a pass, none at all for None."""
    tensor = next(tensors_in((call.args, call.kwargs, call.output)), None)
    kind = "cpu" if tensor is None else tensor.device.type
    return torch.autocast(kind, dtype=dtype, enabled=dtype is not None)
