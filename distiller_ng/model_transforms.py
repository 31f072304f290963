"""Fusing modules and folding batch norms, under Distiller's module name."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from distiller_ng.graph import bn_folding
from distiller_ng.graph.fusion import fuse_modules, put_in_place_
from distiller_ng.graph.inputs import ExampleInputsLike
from distiller_ng.graph.summary_graph import AdjacentsEntry
from distiller_ng.quantization.sim_bn_fold import SimulatedFoldedBatchNorm

__all__ = ["fold_batch_norms", "fuse_modules"]

_TRAINABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batch_norms(
    model: nn.Module,
    dummy_input: ExampleInputsLike | None = None,
    adjacency_map: Mapping[str, AdjacentsEntry] | None = None,
    inference: bool = True,
) -> nn.Module:
    """Fold every batch norm that directly follows a convolution or linear layer into it, in place; returns ``model``.

    ``inference``: fold the parameters for good, see :func:`distiller_ng.graph.bn_folding.fold_batch_norms`. Else the
    layer becomes a :class:`SimulatedFoldedBatchNorm`, which trains as the two did and folds when it is frozen; that is
    done for Linear and Conv1d, 2d and 3d with torch's batch norms, all others are left as they are, as are layers with
    a dropout between them and their batch norm. In both cases the batch norm becomes ``nn.Identity``.

    Raises :class:`ArgumentError` when neither ``dummy_input`` nor ``adjacency_map`` is given, :class:`GraphError` when
    the model cannot be traced; the model is then unchanged.
    """
    if inference:
        return bn_folding.fold_batch_norms(model, dummy_input, adjacency_map)
    folded = [
        (pair, SimulatedFoldedBatchNorm(pair.modules[0], pair.modules[1]))
        for pair in bn_folding.foldable_pairs(model, dummy_input, adjacency_map)
        if isinstance(pair.modules[0], _TRAINABLE)
        and isinstance(pair.modules[1], _BATCH_NORMS)
        and not pair.entries[0][-1].dropped
    ]
    for pair, module in folded:
        put_in_place_(model, pair, module.train(pair.modules[1].training))
    return model
