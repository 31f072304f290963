"""finish() after filters were cut out: what became smaller, not zeros that are no longer there."""

import torch
from torch import nn

from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.core.summary import summarize
from distiller_ng.graph.changes import record_change
from distiller_ng.names import ParameterIndex


def test_what_was_cut_is_told_with_its_shape_before():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 1))
    record_change(model, "thinning", {"cuts": [["0.weight", 0, [1, 4, 6], 8], ["1.weight", 1, [1, 4, 6], 8]]}, {})
    changes = model.thinning_recipes

    summary = summarize(ParameterIndex(model), {"0.weight": None, "1.weight": 0.5}, {}, (), changes)

    assert [(row.name, row.before, row.after) for row in summary.removed] == [
        ("0.weight", (8, 3, 3, 3), (5, 3, 3, 3)),
        ("1.weight", (4, 8, 1, 1), (4, 5, 1, 1)),
    ]
    assert [row.name for row in summary.parameters] == ["1.weight"]  # planned, so it is answered for
    lines = str(summary).splitlines()
    assert lines[1].split() == ["1.weight", "4x5x1x1", "50.00%", "0.00%"]
    assert lines[-3].split() == ["0.weight", "8x3x3x3", "5x3x3x3", "62.50%"]
    assert lines[-1].split() == ["all", "of", "these", "248", "155", "62.50%"]


def test_without_cuts_the_table_is_that_of_zeros_alone():
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight[0] = 0.0
    summary = CompressionScheduler(model).finish()
    assert summary.removed == () and str(summary).splitlines()[0].split() == [
        "parameter",
        "shape",
        "planned",
        "achieved",
    ]
