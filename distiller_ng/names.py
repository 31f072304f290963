"""Canonical names of parameters and modules, and the one matcher for everything a user may write (layer 0).

A target is an exact name (``layer1.0.conv1.weight``), a pattern (``re:layer1\\..*weight``, matched in full) or a token
(``__ALL__``, ``__ALL_PRUNABLE__``, ``__ALL_PRUNABLE_WITH_EMBEDDINGS__``). Names written for a wrapped model
(``module.conv1.weight``, ``features.module.0.weight``, ``_orig_mod.conv1.weight``) mean the same parameter on the bare
one, and the reverse.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from distiller_ng.errors import ArgumentError, TargetError, did_you_mean, listed, nearest

__all__ = [
    "ALL",
    "ALL_PRUNABLE",
    "ALL_PRUNABLE_WITH_EMBEDDINGS",
    "PATTERN_PREFIX",
    "ParameterIndex",
    "UnknownName",
    "canonical_name",
    "has_one_weight",
    "strip_wrappers",
    "unwrap",
]

ALL = "__ALL__"
ALL_PRUNABLE = "__ALL_PRUNABLE__"
#: What SparseML's recipes mean by ``__ALL_PRUNABLE__``: embeddings too, recurrent layers not.
ALL_PRUNABLE_WITH_EMBEDDINGS = "__ALL_PRUNABLE_WITH_EMBEDDINGS__"
PATTERN_PREFIX = "re:"
#: ``re:conv1(\.weight)?``: a parameter, or the weight of a module, as recipes name them.
_WEIGHT_OF = re.compile(r"re:(?P<name>(?:\w|\\.)+)\(\\\.weight\)\?")
#: What people call linear layers.
_LINEAR_WORDS = ("fc", "dense", "proj", "classifier", "head", "lin", "out")
_WRAPPER_PARTS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_PRUNABLE_MODULES = (
    nn.Linear,
    nn.Bilinear,
    nn.modules.conv._ConvNd,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)


@lru_cache(maxsize=1 << 16)
def canonical_name(name: str) -> str:
    """``name`` without the parts that wrappers add: ``features.module.0.weight`` -> ``features.0.weight``."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_PARTS)


def strip_wrappers(names: Iterable[str]) -> dict[str, str]:
    """``{canonical: name as given}``; names that would collide keep the form they were given in."""
    result: dict[str, str] = {}
    for name in names:
        short = canonical_name(name) or name
        result[name if short in result else short] = name
    return result


def has_one_weight(module: nn.Module) -> bool:
    """Whether a layer computes with its ``weight`` alone: convolutions, linear layers, embeddings, GPT's ``Conv1D``."""
    if isinstance(module, nn.Linear | nn.Embedding | nn.modules.conv._ConvNd):
        return True
    return any(cls.__name__ == "Conv1D" for cls in type(module).__mro__)


class UnknownName(TargetError, KeyError):
    """No parameter has this name, or none has it any more: its layer was replaced. Asking for it costs nothing."""

    def __init__(self, name: str, known: Mapping[str, Any]) -> None:
        super().__init__(name)
        self.name, self.known = name, known

    def __str__(self) -> str:
        return f"the model has no parameter {self.name!r} (any more). {did_you_mean(self.name, self.known)}"


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside DataParallel, DistributedDataParallel and ``torch.compile`` wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


class ParameterIndex(Mapping[str, nn.Parameter]):
    """The parameters of one model under their canonical names, in model order.

    Tied parameters appear once, under their first name; their other names resolve to it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.refresh()

    def refresh(self) -> bool:
        """Read the model again; True if parameters were added, removed or replaced since."""
        before = dict(getattr(self, "_parameters", {}))
        self._parameters: dict[str, nn.Parameter] = {}
        self._aliases: dict[str, str] = {}
        first_name: dict[int, str] = {}
        raw = dict(self.model.named_parameters(remove_duplicate=False))
        for short, name in strip_wrappers(raw).items():
            parameter = raw[name]
            owner = first_name.setdefault(id(parameter), short)
            if owner == short:
                self._parameters[short] = parameter
            self._aliases[short] = owner
        self._raw = {short: name for short, name in strip_wrappers(raw).items() if short in self._parameters}
        return before.keys() != self._parameters.keys() or any(
            before[name] is not parameter for name, parameter in self._parameters.items()
        )

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> ParameterIndex:
        """An index over loose tensors that belong to no model, e.g. to ask a pruner for one mask."""
        index = cls.__new__(cls)
        index.model = nn.Module()
        index._parameters = dict(tensors)  # type: ignore[arg-type]
        index._aliases = {name: name for name in tensors} | {canonical_name(name): name for name in tensors}
        index._raw = {name: name for name in tensors}
        return index

    def __getitem__(self, name: str) -> nn.Parameter:
        found = self.find(name)
        if found is None:
            raise UnknownName(name, self)
        return self._parameters[found]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.find(name) is not None

    def find(self, name: str) -> str | None:
        """The canonical name of the parameter that ``name`` means, or None."""
        if name in self._aliases:
            return self._aliases[name]
        return self._aliases.get(canonical_name(name))

    def raw_name(self, name: str) -> str:
        """The name the model itself uses for the parameter (with wrapper parts)."""
        return self._raw[self.find(name) or name]

    def prunable(self) -> list[str]:
        """Weights of convolution, linear, recurrent and attention layers; no norms, no embeddings, no biases."""
        names = []
        for module_name, module in self.model.named_modules():
            if not isinstance(module, _PRUNABLE_MODULES):
                continue
            for parameter_name, parameter in module.named_parameters(recurse=False):
                if "weight" in parameter_name and parameter.dim() >= 2:
                    names.append(self.find(f"{module_name}.{parameter_name}" if module_name else parameter_name))
        wanted = {name for name in names if name is not None}
        return [name for name in self if name in wanted]

    def prunable_with_embeddings(self) -> list[str]:
        """``.weight`` of convolution, linear and embedding layers, and of the ``Conv1D`` of GPT models."""
        wanted = {
            self.find(f"{name}.weight" if name else "weight")
            for name, module in self.model.named_modules()
            if has_one_weight(module)
        }
        return [name for name in self if name in wanted]

    def match(self, target: str, *, argument: Sequence[str | int] = ()) -> list[str]:
        """Canonical names one target means, in model order.

        Raises :class:`TargetError`, which carries ``argument``, when it matches nothing.
        """
        if target == ALL:
            found = list(self)
        elif target == ALL_PRUNABLE:
            found = self.prunable()
        elif target == ALL_PRUNABLE_WITH_EMBEDDINGS:
            found = self.prunable_with_embeddings()
        elif target.startswith(PATTERN_PREFIX):
            found = self._match_pattern(target, argument)
        else:
            exact = self.find(target)
            found = [exact] if exact is not None else []
        if not found:
            raise TargetError(self._why_nothing(target), argument=argument)
        return found

    def select(self, targets: str | Iterable[str], *, argument: Sequence[str | int] = ()) -> list[str]:
        """Canonical names of a list of targets, without repetition, in the order the targets name them."""
        if isinstance(targets, str):
            return self.match(targets, argument=argument)
        names: dict[str, None] = {}
        for position, target in enumerate(targets):
            names.update(dict.fromkeys(self.match(target, argument=(*argument, position))))
        return list(names)

    def _match_pattern(self, target: str, argument: Sequence[str | int]) -> list[str]:
        pattern = _compile(target, argument)
        return [name for name in self if pattern.fullmatch(name) or pattern.fullmatch(self._raw[name])]

    def _why_nothing(self, target: str) -> str:
        if target in (ALL, ALL_PRUNABLE, ALL_PRUNABLE_WITH_EMBEDDINGS):
            return f"{target} matches nothing: the model has no such parameters"
        if target.startswith(PATTERN_PREFIX):
            pattern = _compile(target, ())
            starting = [name for name in self if pattern.match(name)]
            if starting:
                return (
                    f"pattern {target!r} matches no parameter in full, only the beginning of {starting[0]!r}. "
                    f"Patterns match whole names: write {target + '.*'!r}"
                )
            if module := _WEIGHT_OF.fullmatch(target):
                name = re.sub(r"\\(.)", r"\1", module["name"])
                return f"{name!r} is no parameter of the model, nor a module with a weight. {did_you_mean(name, self)}"
            return f"pattern {target!r} matches no parameter. {did_you_mean(target[len(PATTERN_PREFIX) :], self)}"
        short = canonical_name(target)
        inside = [name for name in self if name.startswith(short + ".")] if short else []
        if inside:
            return f"{target!r} is a module, not a parameter. Did you mean {inside[0]!r}?"
        if short in strip_wrappers(name for name, _ in self.model.named_buffers()):
            return f"{target!r} is a buffer, not a parameter. {did_you_mean(short, self)}"
        return f"{target!r} matches no parameter of the model. {self._near(short)}"

    def _near(self, name: str) -> str:
        """Names like it, else those of layers of the kind it speaks of, else those of all layers that can be pruned.

        The ends of names, ``.weight`` in most, are left out of the comparison: they would make all of them alike.
        """
        path, _, leaf = name.rpartition(".")
        ends = {other.rpartition(".")[0]: other for other in self if path and other.rpartition(".")[2] == leaf}
        if not ends:
            return did_you_mean(name, self)
        close = [ends[one] for one in nearest(path, ends)] or self._of_kind(path, ends)
        if close:
            return f"Did you mean {' or '.join(repr(one) for one in close)}?"
        prunable = [one for one in self.prunable() if one in ends.values()]
        return f"Layers to prune: {listed(prunable)}" if prunable else did_you_mean(name, self)

    def _of_kind(self, path: str, ends: Mapping[str, str]) -> list[str]:
        """At most three of the parameters ``ends`` whose layers' class has the word that ``path`` ends in."""
        word = re.sub(r"[\W\d_]", "", path.rpartition(".")[2].lower())
        word = "linear" if word in _LINEAR_WORDS else word
        kinds = {canonical_name(name): type(module).__name__.lower() for name, module in self.model.named_modules()}
        return [one for end, one in ends.items() if word and word in kinds.get(end, "")][:3]


def _compile(target: str, argument: Sequence[str | int]) -> re.Pattern[str]:
    try:
        return re.compile(target[len(PATTERN_PREFIX) :])
    except re.error as error:
        raise ArgumentError(f"{target!r} is not a valid regular expression: {error}", argument=argument) from None
