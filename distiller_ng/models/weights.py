"""Reading trained weights from a local file into a model (layer 5)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from distiller_ng.checkpoint.files import read_file
from distiller_ng.errors import ArgumentError, CheckpointError, did_you_mean, listed
from distiller_ng.names import strip_wrappers

__all__ = ["load_weights_", "read_state_dict"]

# Counted since torch 0.4.1 only; a file without it loads, and the counter keeps its own value.
_OPTIONAL_SUFFIX = ".num_batches_tracked"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, or of a checkpoint that holds one under ``state_dict``, on the CPU.

    Names lose what wrappers added: ``module.conv1.weight`` -> ``conv1.weight``. Nothing in the file is executed. Raises
    :class:`ArgumentError` when there is no such file and :class:`CheckpointError` when it holds something else.
    """
    if not path.is_file():
        raise ArgumentError(f"pretrained: there is no file {str(path)!r}", argument=("pretrained",))
    content = read_file(path)
    state = content.get("state_dict", content)
    if not _is_state_dict(state):
        message = f"{path}: holds no state dict of tensors, but a dict with the keys {listed(content)}"
        inside = [key for key, value in content.items() if _is_state_dict(value)]
        if inside:
            message += f". Its weights are under {inside[0]!r}: save those alone, or rename the key to 'state_dict'"
        raise CheckpointError(message)
    return {short: state[name] for short, name in strip_wrappers(state).items()}


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, Mapping) and bool(content) and all(isinstance(one, Tensor) for one in content.values())


def load_weights_(model: nn.Module, path: Path) -> None:
    """Fill the model with the weights of a file; every parameter and buffer must be there, with the same shape.

    Raises what :func:`read_state_dict` does, and :class:`CheckpointError`, with the model unchanged, listing names that
    are missing, not in the model, or of another shape.
    """
    given = read_state_dict(path)
    wanted = model.state_dict()
    problems = _mismatches(given, wanted)
    if problems:
        raise CheckpointError(f"{path}: does not fit {type(model).__name__}: {'; '.join(problems)}")
    model.load_state_dict({name: given.get(name, value) for name, value in wanted.items()})


def _mismatches(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    problems = []
    missing = [name for name in wanted if name not in given and not name.endswith(_OPTIONAL_SUFFIX)]
    if missing:
        problems.append(f"{len(missing)} missing: {listed(missing, limit=5)}")
    unknown = [name for name in given if name not in wanted]
    if unknown:
        hint = did_you_mean(unknown[0], missing) if missing else "another architecture?"
        problems.append(f"{len(unknown)} not in the model: {listed(unknown, limit=5)} ({hint})")
    resized = [
        f"{name} is {list(given[name].shape)}, the model's {list(value.shape)}"
        for name, value in wanted.items()
        if name in given and given[name].shape != value.shape
    ]
    if resized:
        problems.append(
            f"{len(resized)} of another shape (another data set, or a thinned model): {listed(resized, limit=5)}"
        )
    return problems
