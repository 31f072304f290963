"""Distiller's helper functions under their public names (layer 5).

Most live further down, in :mod:`distiller_ng.ops`, and are only re-exported here, which is why this file is long; it
holds the rest itself: seeds, dummy inputs, YAML files and small helpers for arguments.
"""

from __future__ import annotations

import argparse
import inspect
import io
import os
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np
import torch
import yaml
from torch import Tensor

from distiller_ng.data_loggers.frontends import (
    log_activation_statistics,
    log_model_buffers,
    log_training_progress,
    log_weights_sparsity,
)
from distiller_ng.errors import ArgumentError
from distiller_ng.ops.dummy_inputs import ShapeTypeError, get_dummy_input, set_model_input_shape_attr
from distiller_ng.ops.files import write_text_atomically
from distiller_ng.ops.modules import (
    assign_layer_fq_names,
    convert_tensors_recursively_to,
    denormalize_module_name,
    find_module_by_fq_name,
    get_nonparallel_clone_model,
    has_children,
    make_non_parallel_copy,
    model_device,
    model_find_module,
    model_find_module_name,
    model_find_param,
    model_find_param_name,
    model_setattr,
    normalize_module_name,
    optimizer_device_name,
    param_name_2_module_name,
)
from distiller_ng.ops.sparsity import (
    density,
    density_2D,
    density_3D,
    density_ch,
    density_cols,
    density_rows,
    non_zero_channels,
    norm_filters,
    sparsity,
    sparsity_2D,
    sparsity_3D,
    sparsity_blocks,
    sparsity_ch,
    sparsity_cols,
    sparsity_matrix,
    sparsity_rows,
    volume,
)
from distiller_ng.ops.statistics import (
    activation_channels_apoz,
    activation_channels_l1,
    activation_channels_means,
)
from distiller_ng.ops.table import pretty_int, size_to_str
from distiller_ng.ops.weights import model_numel, model_params_size, model_params_stats, model_sparsity

__all__ = [
    "MutableNamedTuple",
    "ShapeTypeError",
    "activation_channels_apoz",
    "activation_channels_l1",
    "activation_channels_means",
    "assign_layer_fq_names",
    "convert_tensors_recursively_to",
    "denormalize_module_name",
    "density",
    "density_2D",
    "density_3D",
    "density_ch",
    "density_cols",
    "density_rows",
    "filter_kwargs",
    "find_module_by_fq_name",
    "float_range_argparse_checker",
    "get_dummy_input",
    "get_nonparallel_clone_model",
    "has_children",
    "is_scalar",
    "log_activation_statistics",
    "log_model_buffers",
    "log_training_progress",
    "log_weights_sparsity",
    "make_non_parallel_copy",
    "model_device",
    "model_find_module",
    "model_find_module_name",
    "model_find_param",
    "model_find_param_name",
    "model_numel",
    "model_params_size",
    "model_params_stats",
    "model_setattr",
    "model_sparsity",
    "non_zero_channels",
    "norm_filters",
    "normalize_module_name",
    "optimizer_device_name",
    "param_name_2_module_name",
    "pretty_int",
    "set_deterministic",
    "set_model_input_shape_attr",
    "set_seed",
    "size2str",
    "size_to_str",
    "sparsity",
    "sparsity_2D",
    "sparsity_3D",
    "sparsity_blocks",
    "sparsity_ch",
    "sparsity_cols",
    "sparsity_matrix",
    "sparsity_rows",
    "to_np",
    "volume",
    "yaml_ordered_load",
    "yaml_ordered_save",
]


class MutableNamedTuple(dict[str, Any]):
    """A dictionary whose keys are attributes too.

    >>> args = MutableNamedTuple({"lr": 0.1})
    >>> args.lr = 0.2
    >>> args["lr"]
    0.2
    """

    def __init__(self, init_dict: Mapping[str, Any]) -> None:
        super().__init__(init_dict)

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(f"no entry {key!r}") from None

    def __setattr__(self, key: str, val: Any) -> None:
        self[key] = val


def to_np(var: Tensor) -> np.ndarray[Any, Any]:
    """A tensor's values as a numpy array; bfloat16, which numpy does not have, becomes float32."""
    values = var.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def size2str(torch_size: torch.Size | Tensor) -> str:
    """A shape, or a tensor's shape, as text: ``"(2, 3)"``. Raises :class:`ShapeTypeError` for anything else."""
    if isinstance(torch_size, Tensor):
        torch_size = torch_size.shape
    if not isinstance(torch_size, torch.Size):
        raise ShapeTypeError(f"size2str takes a torch.Size or a tensor, got {type(torch_size).__name__}")
    return size_to_str(torch_size)


def is_scalar(val: Any) -> bool:
    """Whether a value is a number, or a tensor without dimensions."""
    return val.dim() == 0 if isinstance(val, Tensor) else bool(np.isscalar(val))


def set_seed(seed: int) -> None:
    """Seed the generators of torch (all devices), numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def set_deterministic(seed: int | None = 0) -> None:
    """Seed everything (None counts as 0) and let cuDNN choose deterministic algorithms only."""
    set_seed(seed or 0)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


class _OrderedLoader(yaml.SafeLoader):
    """Safe loader whose mappings keep their order, as ``OrderedDict``."""


def _construct_ordered(loader: _OrderedLoader, node: yaml.MappingNode) -> OrderedDict[Any, Any]:
    loader.flatten_mapping(node)
    return OrderedDict(loader.construct_pairs(node, deep=True))


_OrderedLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_ordered)


class _PlainDumper(yaml.SafeDumper):
    """Safe dumper that also writes ordered dictionaries and numpy's numbers, as plain YAML."""


_PlainDumper.add_multi_representer(OrderedDict, lambda dumper, value: dumper.represent_dict(value.items()))
_PlainDumper.add_multi_representer(
    np.generic,  # type: ignore[type-abstract]
    lambda dumper, value: dumper.represent_data(value.item()),
)


def yaml_ordered_load(stream: str | bytes | IO[str] | IO[bytes]) -> Any:
    """Load YAML safely, mappings as ``OrderedDict``. Raises :class:`ArgumentError` when it is not valid YAML."""
    try:
        return yaml.load(stream, Loader=_OrderedLoader)
    except yaml.YAMLError as error:
        raise ArgumentError(f"not valid YAML: {error}") from error


def yaml_ordered_save(fname: str | os.PathLike[str], ordered_dict: Mapping[Any, Any]) -> None:
    """Write a mapping as block-style YAML in its own order, atomically."""
    text = io.StringIO()
    yaml.dump(ordered_dict, text, Dumper=_PlainDumper, default_flow_style=False, sort_keys=False)
    write_text_atomically(fname, text.getvalue())


def float_range_argparse_checker(
    min_val: float = 0.0, max_val: float = 1.0, exc_min: bool = False, exc_max: bool = False
) -> Callable[[str], float]:
    """A ``type=`` for argparse that takes numbers in a range; ``exc_min`` and ``exc_max`` leave the ends out.

    Raises :class:`ArgumentError` unless ``min_val < max_val``; the checker raises ``argparse.ArgumentTypeError``.
    """
    if min_val >= max_val:
        raise ArgumentError(f"min_val ({min_val}) must be less than max_val ({max_val})")

    def checker(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        above = value > min_val if exc_min else value >= min_val
        below = value < max_val if exc_max else value <= max_val
        if above and below:
            return value
        raise argparse.ArgumentTypeError(
            f"must be {'>' if exc_min else '>='} {min_val} and {'<' if exc_max else '<='} {max_val}, got {value}"
        )

    return checker


def filter_kwargs(
    dict_to_filter: Mapping[str, Any], function_to_call: Callable[..., Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split into ``(arguments the function takes by name, the others)``.

    ``filter_kwargs({"a": 1, "b": 2}, lambda a: a)`` -> ``({"a": 1}, {"b": 2})``. A ``**kwargs`` takes nothing by name.
    """
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    taken = {p.name for p in inspect.signature(function_to_call).parameters.values() if p.kind in by_name}
    valid = {key: value for key, value in dict_to_filter.items() if key in taken}
    return valid, {key: value for key, value in dict_to_filter.items() if key not in taken}
