"""The weights of a model that sparsity is counted over, and their table (layer 1; users import it from ``reports``).

Counted are parameters of dimension 2 or 4 whose name says weight or bias: ResNet-20 for CIFAR-10 has 270,896 such
values. Batch-norm scales and most biases have dimension 1 and stay out. Tied parameters count once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal, overload

import torch
from torch import Tensor, nn

from distiller_ng.names import ParameterIndex
from distiller_ng.ops import sparsity as measure
from distiller_ng.ops.table import Cell, Table, size_to_str

__all__ = [
    "PARAM_DIMS",
    "PARAM_TYPES",
    "SPARSITY_COLUMNS",
    "counted_weights",
    "model_numel",
    "model_params_size",
    "model_params_stats",
    "model_sparsity",
    "sparsity_table",
    "weights_sparsity_summary",
    "weights_sparsity_tbl_summary",
]

PARAM_DIMS = (2, 4)
PARAM_TYPES = ("weight", "bias")
SPARSITY_COLUMNS = (
    "Name",
    "Shape",
    "NNZ (dense)",
    "NNZ (sparse)",
    "Cols (%)",
    "Rows (%)",
    "Ch (%)",
    "2D (%)",
    "3D (%)",
    "Fine (%)",
    "Std",
    "Mean",
    "Abs-Mean",
)


def counted_weights(
    model: nn.Module, param_dims: Collection[int] = PARAM_DIMS, param_types: Sequence[str] = PARAM_TYPES
) -> Iterator[tuple[str, Tensor]]:
    """``(canonical name, detached weight)`` of every parameter that counts, in model order."""
    for name, parameter in ParameterIndex(model).items():
        if parameter.dim() in param_dims and any(kind in name for kind in param_types):
            # A sharded parameter (DTensor) is gathered, which every rank has to take part in.
            gather = getattr(parameter, "full_tensor", None)
            yield name, (parameter if gather is None else gather()).detach()


def model_params_stats(
    model: nn.Module, param_dims: Collection[int] = PARAM_DIMS, param_types: Sequence[str] = PARAM_TYPES
) -> tuple[float, int, int]:
    """``(sparsity in percent, number of values, number that are not zero)`` over the weights that count."""
    total = nonzero = 0
    for _, weight in counted_weights(model, param_dims, param_types):
        total += weight.numel()
        nonzero += measure.count_nonzero(weight)
    return (100.0 * (total - nonzero) / total if total else 0.0), total, nonzero


def model_sparsity(
    model: nn.Module, param_dims: Collection[int] = PARAM_DIMS, param_types: Sequence[str] = PARAM_TYPES
) -> float:
    """Percentage (0 to 100) of zeros over the weights that count."""
    return model_params_stats(model, param_dims, param_types)[0]


def model_params_size(
    model: nn.Module, param_dims: Collection[int] = PARAM_DIMS, param_types: Sequence[str] = PARAM_TYPES
) -> int:
    """Number of values of the weights that count."""
    return sum(weight.numel() for _, weight in counted_weights(model, param_dims, param_types))


def model_numel(
    model: nn.Module, param_dims: Collection[int] = PARAM_DIMS, param_types: Sequence[str] = PARAM_TYPES
) -> int:
    """Number of values of the weights that count; the same as :func:`model_params_size`."""
    return model_params_size(model, param_dims, param_types)


def sparsity_table(title: str, tensors: Mapping[str, Tensor]) -> Table:
    """Distiller's sparsity table of named tensors, its last row ``Total sparsity:``.

    NNZ (dense) is the number of values, NNZ (sparse) of those that are not zero. Sparsities are percentages: of
    columns and rows (matrices), input channels, kernels (2D), filters (3D) and single values (Fine). Std is unbiased.
    """
    rows = [_row(name, tensor.detach()) for name, tensor in tensors.items()]
    total = sum(tensor.numel() for tensor in tensors.values())
    nonzero = sum(int(row[3] or 0) for row in rows)
    fine = 100.0 * (total - nonzero) / total if total else 0.0
    zeros = (0.0,) * 5
    rows.append(("Total sparsity:", "-", total, nonzero, *zeros, fine, 0.0, 0.0, 0.0))
    return Table(title, SPARSITY_COLUMNS, tuple(rows))


@overload
def weights_sparsity_summary(
    model: nn.Module, return_total_sparsity: Literal[False] = False, param_dims: Collection[int] = PARAM_DIMS
) -> Table: ...


@overload
def weights_sparsity_summary(
    model: nn.Module, return_total_sparsity: Literal[True], param_dims: Collection[int] = PARAM_DIMS
) -> tuple[Table, float]: ...


def weights_sparsity_summary(
    model: nn.Module, return_total_sparsity: bool = False, param_dims: Collection[int] = PARAM_DIMS
) -> Table | tuple[Table, float]:
    """The sparsity table of a model's weights; with ``return_total_sparsity`` also the total in percent.

    ``param_dims`` says which weights count by their number of dimensions: add 3 and 5 for 1D and 3D convolutions.
    """
    table = sparsity_table("Parameters:", dict(counted_weights(model, param_dims)))
    return (table, _total(table)) if return_total_sparsity else table


@overload
def weights_sparsity_tbl_summary(
    model: nn.Module, return_total_sparsity: Literal[False] = False, param_dims: Collection[int] = PARAM_DIMS
) -> str: ...


@overload
def weights_sparsity_tbl_summary(
    model: nn.Module, return_total_sparsity: Literal[True], param_dims: Collection[int] = PARAM_DIMS
) -> tuple[str, float]: ...


def weights_sparsity_tbl_summary(
    model: nn.Module, return_total_sparsity: bool = False, param_dims: Collection[int] = PARAM_DIMS
) -> str | tuple[str, float]:
    """As :func:`weights_sparsity_summary`, with the table as text."""
    table = sparsity_table("Parameters:", dict(counted_weights(model, param_dims)))
    return (str(table), _total(table)) if return_total_sparsity else str(table)


def _row(name: str, tensor: Tensor) -> tuple[Cell, ...]:
    nonzero = measure.count_nonzero(tensor)
    values = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
    structures = (
        measure.sparsity_cols(tensor),
        measure.sparsity_rows(tensor),
        measure.sparsity_ch(tensor),
        measure.sparsity_2D(tensor),
        measure.sparsity_3D(tensor),
        measure.sparsity(tensor),
    )
    moments = (
        float(values.std()) if values.numel() > 1 else 0.0,
        float(values.mean()) if values.numel() else 0.0,
        float(values.abs().mean()) if values.numel() else 0.0,
    )
    return (name, size_to_str(tensor.shape), tensor.numel(), nonzero, *(100.0 * s for s in structures), *moments)


def _total(table: Table) -> float:
    return float(table.column("Fine (%)")[-1] or 0.0)
