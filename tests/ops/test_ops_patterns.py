"""N:M patterns and the ramp towards them."""

import pytest
import torch

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.masks import lowest_k_mask
from distiller_ng.ops.patterns import NMPattern, nm_mask

TWO_FOUR = NMPattern(2, 4)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("2:4", (2, 4)), (" 1 : 4 ", (1, 4)), (124, (2, 4)), (64, (1, 4)), ("16:32", (16, 32))],
)
def test_parse(value, expected):
    pattern = NMPattern.parse(value)
    assert (pattern.n, pattern.m) == expected
    assert NMPattern.parse(str(pattern)) == pattern
    assert NMPattern.parse(pattern) is pattern


@pytest.mark.parametrize(
    "value", ["2", "4:2", "4:4", "0:4", "2:4:8", "two:four", "", 50, 2, 488, -124, True, None, 2.4]
)
def test_parse_refuses_nonsense(value):
    with pytest.raises(ArgumentError, match="N"):
        NMPattern.parse(value)


def test_an_integer_is_told_to_be_quoted():
    with pytest.raises(ArgumentError, match="in quotes; got 50"):
        NMPattern.parse(50)


def test_sparsity():
    assert NMPattern(1, 4).sparsity == 0.75


def test_linear_groups_run_along_the_inputs():
    scores = torch.tensor([[1.0, 4.0, 3.0, 2.0, 5.0, 5.0, 5.0, 5.0], [4.0, 3.0, 2.0, 1.0, 0.0, 9.0, 0.0, 0.0]])
    assert nm_mask(scores, TWO_FOUR).tolist() == [[0, 1, 1, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 1, 0, 1]]


def test_convolution_groups_run_along_the_input_channels():
    torch.manual_seed(0)
    for kernel in ((3,), (3, 2), (2, 3, 2)):
        scores = torch.rand(3, 8, *kernel)
        mask = nm_mask(scores, TWO_FOUR)
        assert mask.shape == scores.shape and mask.is_contiguous()
        per_group = mask.movedim(1, -1).reshape(-1, 4)
        assert per_group.sum(dim=1).tolist() == [2.0] * per_group.shape[0]
        grouped = scores.movedim(1, -1).reshape(-1, 4)
        kept_lowest = torch.where(per_group == 1, grouped, 2.0).min(dim=1).values
        pruned_highest = torch.where(per_group == 0, grouped, -1.0).max(dim=1).values
        assert bool((kept_lowest > pruned_highest).all())


def test_the_remainder_and_short_inputs_are_kept():
    assert nm_mask(torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0, 0.0]]), TWO_FOUR).tolist() == [[1, 1, 0, 0, 1, 1]]
    assert nm_mask(torch.rand(5, 1, 3, 3), TWO_FOUR).min() == 1  # depthwise


def test_vectors_and_scalars():
    assert nm_mask(torch.tensor([1.0, 2.0, 3.0, 4.0]), TWO_FOUR).tolist() == [0, 0, 1, 1]
    with pytest.raises(ArgumentError, match="scalar"):
        nm_mask(torch.tensor(1.0), TWO_FOUR)


@pytest.mark.parametrize("pattern", [NMPattern(3, 8), NMPattern(5, 16), NMPattern(1, 2)])
def test_wide_groups_agree_with_a_stable_sort(pattern):
    torch.manual_seed(1)
    scores = torch.randint(0, 5, (6, 3 * pattern.m)).double()
    expected = torch.ones(6 * 3, pattern.m, dtype=torch.float64)
    order = scores.view(-1, pattern.m).argsort(dim=1, stable=True)
    expected.scatter_(1, order[:, : pattern.m - pattern.n], 0)
    assert torch.equal(nm_mask(scores, pattern), expected.view_as(scores))


def test_ramp_reaches_the_pattern_and_goes_beyond():
    torch.manual_seed(2)
    scores = torch.rand(4, 16)
    final = nm_mask(scores, TWO_FOUR)
    assert torch.equal(lowest_k_mask(scores, 32, pattern=TWO_FOUR), final)
    half = lowest_k_mask(scores, 16, pattern=TWO_FOUR)
    assert int((half == 0).sum()) == 16 and bool((final <= half).all())
    dropped = scores[final == 0].sort().values
    assert scores[half == 0].sort().values.tolist() == dropped[:16].tolist()
    beyond = lowest_k_mask(scores, 40, pattern=TWO_FOUR)
    assert int((beyond == 0).sum()) == 40 and bool((beyond <= final).all())
    kept = scores[final == 1].sort().values
    assert scores[(beyond == 0) & (final == 1)].sort().values.tolist() == kept[:8].tolist()


@pytest.mark.parametrize("k", [0, 64])
def test_ramp_ends(k):
    mask = lowest_k_mask(torch.rand(4, 16), k, pattern=TWO_FOUR)
    assert mask.unique().tolist() == [1.0 if k == 0 else 0.0]


def test_nan_is_refused():
    with pytest.raises(ArgumentError, match="NaN"):
        nm_mask(torch.tensor([1.0, float("nan"), 2.0, 3.0]), TWO_FOUR)
