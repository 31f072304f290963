"""The calibration file: YAML in Distiller's form (layer 2).

::

    conv1:
      inputs:
        0: {min: -2.1, max: 2.6, avg_min: -1.9, avg_max: 2.4, mean: 0.01, std: 1.0, b: 0.8,
            shape: (256, 3, 224, 224), total_numel: 38535168}
      output: {min: ..., max: ...}

``inputs`` is missing where no input was recorded; older files lack ``b`` and ``total_numel``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from torch import nn

from distiller_ng.data_loggers._watching import inside_units, is_call_name
from distiller_ng.errors import CalibrationError, did_you_mean, listed
from distiller_ng.modules.recurrent_parts import shown_recurrent_parts
from distiller_ng.names import canonical_name, unwrap
from distiller_ng.ops.files import write_text_atomically

__all__ = ["QuantStats", "load_quant_stats", "save_quant_stats"]

#: ``{module: {"inputs": {0: {"min": ..., ...}}, "output": {...}}}``
QuantStats: TypeAlias = "dict[str, dict[str, Any]]"

_NUMBERS = ("min", "max", "avg_min", "avg_max", "mean", "std", "b", "total_numel")
_IN_FILE = (*_NUMBERS[:-1], "shape", "total_numel")
_WEIGHT_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Embedding)


def save_quant_stats(fname: str | os.PathLike[str], stats: Mapping[str, Any]) -> Path:
    """Write statistics as YAML, atomically; the ending ``.yaml`` is added where it is missing. The file's path.

    Raises :class:`CalibrationError` when ``stats`` do not have the form of :data:`QuantStats`.
    """
    path = Path(fname)
    if path.suffix not in (".yaml", ".yml"):
        path = path.with_name(path.name + ".yaml")
    plain = {name: _plain_module(name, entry) for name, entry in _checked(stats, "the statistics").items()}
    return write_text_atomically(path, yaml.safe_dump(plain, sort_keys=False, default_flow_style=False))


def load_quant_stats(
    source: str | os.PathLike[str] | Mapping[str, Any],
    model: nn.Module | None = None,
    *,
    extra_names: Iterable[str] = (),
    allow_missing: bool = False,
) -> QuantStats:
    """Read a calibration file, or check statistics that are in memory; names become canonical, input indices whole.

    With a ``model`` the statistics must be its own: every name must be a module of it, a function that one of them
    calls (``layer1.0.add``), or in ``extra_names``; every
    convolution, linear and embedding layer must have statistics unless ``allow_missing`` (for layers that never run),
    and recorded input shapes must fit convolutions. Raises ``FileNotFoundError``, and :class:`CalibrationError` that
    names what differs, or the module and key that is no number, NaN, or a minimum above its maximum.
    """
    if isinstance(source, Mapping):
        stats = _checked(source, "the statistics")
    else:
        stats = _checked(_read(source), os.fspath(source))
    if model is not None:
        _compare(stats, unwrap(model), {canonical_name(name) for name in extra_names}, allow_missing)
    return stats


def _read(path: str | os.PathLike[str]) -> Any:
    try:
        text = Path(path).read_text(encoding="utf-8")
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{os.fspath(path)} is not valid YAML: {error}") from error


# -- form --------------------------------------------------------------------------------------------------------------


def _checked(stats: Any, source: str) -> QuantStats:
    if not isinstance(stats, Mapping) or not stats:
        raise CalibrationError(
            f"{source}: expected a mapping from module names to statistics, got "
            f"{'nothing' if not stats else type(stats).__name__}. Collect them with collect_quant_stats(model, test_fn)"
        )
    return {canonical_name(str(name)): _checked_module(entry, f"{source}: {name}") for name, entry in stats.items()}


def _checked_module(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, Mapping) or not entry.keys() & {"inputs", "output"}:
        raise CalibrationError(f"{where}: expected a mapping with 'inputs' and 'output', got {_short(entry)}")
    checked: dict[str, Any] = {}
    inputs = entry.get("inputs")
    if inputs:
        if isinstance(inputs, list | tuple):
            inputs = dict(enumerate(inputs))
        if not isinstance(inputs, Mapping):
            raise CalibrationError(f"{where}.inputs: expected a mapping from 0, 1, ... got {_short(inputs)}")
        checked["inputs"] = {
            _index(key, where): _checked_tensor(one, f"{where}.inputs[{key}]") for key, one in inputs.items()
        }
    if entry.get("output") is not None:
        checked["output"] = _checked_tensor(entry["output"], f"{where}.output")
    return checked


def _index(key: Any, where: str) -> int:
    try:
        return int(key)
    except (TypeError, ValueError):
        raise CalibrationError(f"{where}.inputs: {key!r} is no index of an input; write 0, 1, ...") from None


def _checked_tensor(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, Mapping) or entry.get("min") is None or entry.get("max") is None:
        raise CalibrationError(f"{where}: needs at least 'min' and 'max', got {_short(entry)}")
    numbers = {key: _number(entry[key], f"{where}.{key}") for key in _NUMBERS if entry.get(key) is not None}
    if numbers["min"] > numbers["max"]:
        raise CalibrationError(f"{where}: min {numbers['min']} is above max {numbers['max']}")
    return {key: numbers.get(key, value) for key, value in entry.items() if value is not None}


def _number(value: Any, where: str) -> int | float:
    if isinstance(value, str):  # YAML 1.1 reads 1e-5, which other writers produce, as text
        try:
            value = float(value)
        except ValueError:
            raise CalibrationError(f"{where}: expected a number, got {value!r}") from None
    item = getattr(value, "item", None)
    number = item() if callable(item) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise CalibrationError(f"{where}: expected a finite number, got {value!r}. Collect the statistics again")
    return number


def _short(value: Any) -> str:
    text = repr(dict(value) if isinstance(value, Mapping) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _plain_module(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    if "inputs" in entry:
        plain["inputs"] = {index: _plain_tensor(one) for index, one in entry["inputs"].items()}
    if "output" in entry:
        plain["output"] = _plain_tensor(entry["output"])
    return plain


def _plain_tensor(entry: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: entry[key] for key in _IN_FILE if key in entry}
    if "shape" in plain and not isinstance(plain["shape"], str):
        plain["shape"] = str(tuple(plain["shape"]))
    return plain


# -- the model ---------------------------------------------------------------------------------------------------------


def _compare(stats: QuantStats, model: nn.Module, extra: set[str], allow_missing: bool) -> None:
    modules = {canonical_name(name): module for name, module in model.named_modules(remove_duplicate=False)}
    problems = []
    with shown_recurrent_parts(model):  # the parts of an nn.LSTM have statistics too, but need none
        shown = {canonical_name(name): module for name, module in model.named_modules(remove_duplicate=False)}
    shown.update(modules)
    unknown = [name for name in stats if name not in shown and name not in extra and not is_call_name(name, modules)]
    if unknown:
        hint = f" {did_you_mean(unknown[0], modules)}" if len(unknown) == 1 else ""
        problems.append(f"modules that only the statistics have: {listed(unknown)}.{hint}")
    seen = {id(modules[name]) for name in stats if name in modules}
    seen |= {id(module) for module in inside_units(model)}  # these never run on their own
    missing = [
        name for name, module in modules.items() if isinstance(module, _WEIGHT_LAYERS) and id(module) not in seen
    ]
    if missing and not allow_missing:
        problems.append(f"layers that only the model has: {listed(missing)}.")
    problems += [text for name, entry in stats.items() for text in _misfit(name, entry, shown.get(name))]
    if problems:
        advice = " (allow_missing=True accepts layers that never run)" if missing and not unknown else ""
        raise CalibrationError(
            f"the statistics belong to another model than this {type(model).__name__}: {' '.join(problems)} "
            f"Collect statistics of this model with collect_quant_stats(model, test_fn){advice}"
        )


def _misfit(name: str, entry: Mapping[str, Any], module: nn.Module | None) -> list[str]:
    """Whether a layer's recorded input has another number of channels than the layer takes."""
    shape = _shape(entry.get("inputs", {}).get(0, {}).get("shape"))
    if isinstance(module, nn.Linear) and len(shape) > 1:
        recorded, expected = shape[-1], module.in_features
    elif isinstance(module, nn.Conv2d) and len(shape) == 4:
        recorded, expected = shape[1], module.in_channels
    else:
        return []
    if recorded == expected:
        return []
    return [f"{name} takes {expected} channels, but the statistics are of an input of shape {shape}."]


def _shape(text: Any) -> tuple[int, ...]:
    parts = str(text or "").strip("()[] ").split(",")
    return tuple(int(part) for part in parts if part.strip().isdigit())
