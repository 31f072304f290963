"""What an evaluation may return."""

from __future__ import annotations

import math

import pytest
import torch

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.scores import as_scores, told


@pytest.mark.parametrize("found", [93, 93.0, torch.tensor(93.0), torch.tensor([93.0])])
def test_a_number_is_top1(found):
    top1, top5, loss = as_scores(found)
    assert top1 == 93.0 and math.isnan(top5) and math.isnan(loss)


def test_three_numbers_are_all():
    assert as_scores([93, torch.tensor(99.5), 0.25]) == (93.0, 99.5, 0.25)


@pytest.mark.parametrize("found", [None, True, "93", (93.0,), (93.0, 99.0), (1, 2, "3%"), torch.ones(3), {"top1": 93}])
def test_anything_else_is_refused(found):
    with pytest.raises(ArgumentError, match=r"my_accuracy must return top-1 in percent, or \(top1, top5, loss\)"):
        as_scores(found, "my_accuracy")


def test_what_is_not_known_is_not_told():
    assert told((93.1, 99.8, 0.25)) == "top1 93.10, top5 99.80, loss 0.2500"
    assert told(as_scores(93.1)) == "top1 93.10"
