"""Tracing the user's unmodified model into a graph of ATen operators (layer 1).

``torch.export`` (non-strict) runs the model once on fake tensors. Its nodes know the module and the source line they
came from, which is what error messages and names are made of. Nothing on the model is changed.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from distiller_ng.errors import GraphError
from distiller_ng.graph._failures import MODEL_FAILURES
from distiller_ng.graph._inlining import inline_regions
from distiller_ng.graph.inputs import ExampleInputs, ExampleInputsLike, as_example_inputs, flat_tensors
from distiller_ng.names import canonical_name, unwrap

__all__ = ["TracedModel", "evaluating", "exported_program", "trace"]

_TORCH = str(Path(torch.__file__).parent)
#: Parts of this library whose forward hooks only look.
_OBSERVERS = tuple(
    f"distiller_ng.{part}" for part in ("pruning", "data_loggers", "knowledge_distillation", "graph", "policies")
)
_CHATTY = ("torch.fx.experimental.symbolic_shapes", "torch.export", "torch._export", "torch.fx")
_OURS = str(Path(__file__).parent.parent)
#: The name of the user's model inside a module of ours.
_INNER = "_traced_model"


class TracedModel:
    """The operators of one forward pass in the order they run.

    ``model``: unwrapped. ``graph``: an fx graph whose ``call_function`` nodes are ATen operators and whose placeholders
    are parameters, buffers, constants and the model's inputs. ``tensors``: canonical name of the parameter or buffer
    behind each placeholder that has one (tied tensors share one name). ``constants``: placeholders of tensors created
    in the forward pass itself.
    """

    def __init__(self, model: nn.Module, program: torch.export.ExportedProgram, inputs: ExampleInputs) -> None:
        self.model = model
        self.inputs = inputs
        inline_regions(program.graph_module)
        self.graph: fx.Graph = program.graph
        self.tensors: dict[fx.Node, str] = {}
        self.constants: set[fx.Node] = set()
        self.user_inputs: list[fx.Node] = []
        first_names = _first_names(model)
        specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        for node in self.graph.find_nodes(op="placeholder"):
            spec = specs.get(node.name)
            if spec is None or spec.kind is InputKind.USER_INPUT:
                self.user_inputs.append(node)
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and _own_name(spec.target or "") in first_names:
                self.tensors[node] = first_names[_own_name(spec.target or "")]
            else:
                self.constants.add(node)

    @property
    def nodes(self) -> list[fx.Node]:
        """The operators, in the order they run."""
        return [node for node in self.graph.nodes if node.op == "call_function"]

    @property
    def outputs(self) -> list[fx.Node]:
        """The nodes the model returns."""
        (output,) = self.graph.find_nodes(op="output")
        return list(output.all_input_nodes)

    def module_of(self, node: fx.Node) -> str:
        """Canonical name of the innermost module whose forward the operator ran in; "" is the model itself."""
        stack = node.meta.get("nn_module_stack") or {}
        names = [str(path) for path, _ in stack.values()]
        return _own_name(names[-1]) if names else ""

    def modules_of(self, node: fx.Node) -> list[str]:
        """Canonical names of the modules whose forwards the operator ran in, outermost first."""
        stack = node.meta.get("nn_module_stack") or {}
        return [_own_name(str(path)) for path, _ in stack.values()]

    def source_of(self, node: fx.Node) -> str:
        """``file.py:12 (the line)`` of the user's code the operator came from; "" where nothing is known."""
        frames = _frames(node.meta.get("stack_trace") or "")
        own = [frame for frame in frames if not frame[0].startswith(_TORCH)]
        if not own:
            return ""
        file, line, text = own[-1]
        return f"{file}:{line}" + (f" ({text})" if text else "")

    def describe(self, node: fx.Node) -> str:
        """``operator 'softmax' in module 'attn', file.py:12 (the line)``: for messages."""
        module = self.module_of(node)
        where = f"module {module!r}" if module else "the model's own forward"
        source = self.source_of(node)
        return f"operator {op_name(node)!r} in {where}" + (f", {source}" if source else "")


def op_name(node: fx.Node) -> str:
    """The operator's plain name: ``aten.add_.Tensor`` -> ``add_``."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[-1]
    return getattr(target, "__name__", str(target))


def arguments(node: fx.Node) -> dict[str, Any]:
    """All arguments of an operator by the names of its schema, defaults included."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return {str(position): value for position, value in enumerate(node.args)}
    found: dict[str, Any] = {}
    for position, argument in enumerate(target._schema.arguments):
        if argument.name in node.kwargs:
            found[argument.name] = node.kwargs[argument.name]
        elif position < len(node.args):
            found[argument.name] = node.args[position]
        else:
            found[argument.name] = argument.default_value
    return found


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside, and none of our own observers listening; all as before after."""
    before = {m: (m.training, m._forward_hooks, m._forward_pre_hooks) for m in model.modules()}
    for module in before:
        module.training = False
        module._forward_hooks = _without_observers(module._forward_hooks)
        module._forward_pre_hooks = _without_observers(module._forward_pre_hooks)
    try:
        yield
    finally:
        for module, (mode, hooks, pre_hooks) in before.items():
            module.training, module._forward_hooks, module._forward_pre_hooks = mode, hooks, pre_hooks


def _without_observers(hooks: Mapping[int, Any]) -> OrderedDict[int, Any]:
    """Hooks but for those with which this library collects statistics: passes of ours must not count."""
    return OrderedDict((key, hook) for key, hook in hooks.items() if not _home_of(hook).startswith(_OBSERVERS))


def _home_of(hook: Any) -> str:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return str(getattr(hook, "__module__", ""))


def trace(model: nn.Module, example_inputs: ExampleInputsLike) -> TracedModel:
    """Trace one evaluation-mode forward pass of ``model`` (wrappers such as DataParallel are looked through).

    ``example_inputs``: see :func:`as_example_inputs`; values do not matter, shapes do. The model, its modes and its
    random state are left as they were.

    Raises :class:`GraphError` naming the source line where tracing stopped, e.g. at control flow that depends on data.
    """
    inputs = as_example_inputs(example_inputs)
    plain = unwrap(model)
    return TracedModel(plain, exported_program(plain, inputs), inputs)


def exported_program(
    model: nn.Module, inputs: ExampleInputs, *, dynamic_shapes: Any = None
) -> torch.export.ExportedProgram:
    """What ``torch.export`` makes of one evaluation-mode forward pass of an unwrapped ``model``.

    ``dynamic_shapes`` as torch has them (``torch.export.ShapesCollection`` fits any structure of inputs). The model,
    its modes and its random state are left as they were. Raises :class:`GraphError` as :func:`trace` does.
    """
    rng = torch.get_rng_state()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with evaluating(model), warnings.catch_warnings(), _quiet(), _masks_as_given():
            warnings.simplefilter("ignore")
            return _exported(model, inputs, dynamic_shapes)
    except MODEL_FAILURES as error:
        raise GraphError(_failure(model, error)) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch.set_rng_state(rng)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What torch's exporter logs when it stops (the graph so far) says less than our error does."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, state in zip(loggers, before, strict=True):
            logger.disabled = state


@contextlib.contextmanager
def _masks_as_given() -> Iterator[None]:
    """TransformerEncoder compares its mask's values to see whether it is causal, which cannot be traced; skip that.

    The mask is used either way, so channels are the same.
    """
    module = nn.modules.transformer
    detect = getattr(module, "_detect_is_causal_mask", None)
    if detect is None:
        yield
        return
    module._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        yield
    finally:
        module._detect_is_causal_mask = detect


class _TensorsOnly(nn.Module):
    """A model that returns an object torch does not know, with the tensors of that object as its outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.add_module(_INNER, model)

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        return flat_tensors(getattr(self, _INNER)(*args, **kwargs))


def _exported(model: nn.Module, inputs: ExampleInputs, dynamic_shapes: Any) -> torch.export.ExportedProgram:
    settings = {"strict": False, "dynamic_shapes": dynamic_shapes}
    try:
        return torch.export.export(model, inputs.args, dict(inputs.kwargs), **settings)
    except RuntimeError as error:
        if "not a known type" not in str(error):
            raise
    return torch.export.export(_TensorsOnly(model), inputs.args, dict(inputs.kwargs), **settings)


def _own_name(path: str) -> str:
    """The canonical name in the user's model of what the traced program calls ``path``."""
    return canonical_name(".".join(part for part in path.split(".") if part != _INNER))


def _failure(model: nn.Module, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith((_TORCH, _OURS)) and not f.filename.startswith("<")]
    where = f" at {own[-1].filename}:{own[-1].lineno} ({own[-1].line})" if own else ""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    why = lines[0] if lines else type(error).__name__
    return (
        f"{type(model).__name__} cannot be traced{where}: {type(error).__name__}: {why}. Check that it runs on the "
        "example inputs; branches and sizes that depend on the values of tensors must move out of forward, or that "
        "part of the model be compressed on its own"
    )


def _first_names(model: nn.Module) -> Mapping[str, str]:
    """The first canonical name of each tensor, by every canonical name it has."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for named in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        for name, tensor in named:
            if isinstance(tensor, Tensor):
                names[canonical_name(name)] = first.setdefault(id(tensor), canonical_name(name))
    return names


def _frames(stack_trace: str) -> list[tuple[str, int, str]]:
    """(file, line, text) of each frame of a formatted stack trace, outermost first."""
    found: list[tuple[str, int, str]] = []
    for line in stack_trace.splitlines():
        stripped = line.strip()
        if stripped.startswith('File "'):
            file, _, rest = stripped[len('File "') :].partition('", line ')
            number = rest.split(",")[0]
            if number.isdigit():
                found.append((file, int(number), ""))
        elif found and stripped and not found[-1][2]:
            found[-1] = (*found[-1][:2], stripped)
    return found
