"""Mask types: literal masks, exact counts, and every shape a layer has."""

import pytest
import torch

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.mask_types import MaskType, create_masks

SHAPES = [(16, 32), (8, 16, 1, 1), (8, 16, 3, 3), (16, 8, 5), (4, 8, 3, 3, 3)]
KINDS = ["unstructured", "block4", [2, 2], [4, 1], [1, -1], [-1, 4], "filter", "channel"]


def one(scores, level, kind, **more):
    return create_masks([scores], [level], kind, **more)[0]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("unstructured", "unstructured"),
        ("block4", "block4"),
        ("4block", "block4"),
        ("Filter", "filter"),
        ("channel", "channel"),
        ([1, 4], "block4"),
        ((2, 4), [2, 4]),
        ([4, 1, 1, 1], [4, 1]),
        ([-1, 1], [-1, 1]),
        ("2:4", "2:4"),
        (124, "2:4"),
        ("tensorrt", "2:4"),
    ],
)
def test_what_a_schedule_may_write(value, written):
    kind = MaskType.parse(value)
    assert kind.written() == written
    assert MaskType.parse(kind.written()) == kind and MaskType.parse(kind) is kind


@pytest.mark.parametrize(
    "value", ["blocks", "", [1], [0, 4], [1, 2, 3], ["1", "4"], [True, 4], "4:2", 3.5, None, 7, {}]
)
def test_nonsense_is_refused_with_what_is_allowed(value):
    with pytest.raises(ArgumentError) as caught:
        MaskType.parse(value)
    assert caught.value.argument == ("mask_type",)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("level", [0.0, 0.05, 0.5, 0.87, 0.99, 1.0])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_whole_groups_are_pruned_and_their_count_is_rounded(kind, level, shape):
    torch.manual_seed(0)
    weight, parsed = torch.randn(shape), MaskType.parse(kind)
    mask = one(weight.abs(), level, kind)
    assert mask.shape == weight.shape and mask.dtype == weight.dtype
    groups = parsed.group_scores(mask)
    size = weight.numel() // groups.numel()
    assert int((mask == 0).sum()) == round(level * groups.numel()) * size
    kept = (groups != 0).to(mask.dtype)
    assert torch.equal(parsed.expand(kept, weight), mask)
    assert torch.equal(one(weight, level, kind, absolute=True), mask)


def test_bankers_rounding_is_that_of_python():
    scores = torch.arange(5.0)
    assert [int((one(scores, level, "unstructured") == 0).sum()) for level in (0.3, 0.5, 0.7)] == [2, 2, 4]
    assert int((one(scores, 0.7, "unstructured", rounding=int) == 0).sum()) == 3


def test_block4_runs_along_the_inputs_at_one_kernel_position():
    scores = torch.ones(1, 4, 1, 2)
    scores[:, :, :, 1] = 0.5
    assert torch.equal(one(scores, 0.5, "block4"), torch.tensor([1.0, 0.0]).expand(1, 4, 1, 2))


def test_a_block_is_really_two_dimensional():
    scores = torch.full((4, 4), 5.0)
    scores[2:, :2] = torch.tensor([[0.0, 9.0], [0.0, 0.0]])
    expected = torch.ones(4, 4)
    expected[2:, :2] = 0
    assert torch.equal(one(scores, 0.25, [2, 2]), expected)


def test_the_rest_makes_a_smaller_block_scored_by_its_own_mean():
    scores = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.5, 0.7]])
    assert MaskType.parse("block4").group_scores(scores).tolist() == pytest.approx([1.0, 0.6])
    assert one(scores, 0.5, "block4").tolist() == [[1, 1, 1, 1, 0, 0]]
    assert not MaskType.parse("block4").fits((1, 6)) and MaskType.parse("block4").fits((1, 8, 3, 3))


def test_filters_and_channels_go_by_their_norm():
    weight = torch.tensor([[3.0, 4.0], [0.0, 6.0]])
    assert one(weight.abs(), 0.5, "filter").tolist() == [[0, 0], [1, 1]]
    assert one(weight.abs(), 0.5, "channel").tolist() == [[0, 1], [0, 1]]


def test_a_depthwise_convolution_has_no_channels_to_choose_from():
    weights = [torch.rand(6, 1, 3, 3), torch.rand(4, 6, 1, 1), torch.rand(5)]
    masks = create_masks(weights, [0.5] * 3, "channel")
    assert [int((m == 0).sum()) for m in masks] == [0, 12, 0]


@pytest.mark.parametrize("shape", [(6, 8), (4, 8, 3, 3), (8,)])
def test_a_pattern_keeps_exactly_n_of_m_on_linear_layers_and_convolutions(shape):
    torch.manual_seed(1)
    mask = one(torch.rand(shape), 0.5, "2:4")
    rows = mask.movedim(1, -1).reshape(-1, 4) if mask.dim() > 1 else mask.reshape(-1, 4)
    assert (rows.sum(1) == 2).all()
    assert float(one(torch.rand(shape), 0.495, "2:4").mean()) == 0.5


def test_a_rising_level_ends_in_the_pattern_and_prunes_only_what_it_will():
    torch.manual_seed(2)
    scores = torch.rand(8, 16)
    final = one(scores, 0.5, "2:4")
    for level in (0.1, 0.3, 0.45):
        mask = one(scores, level, "2:4")
        assert int((mask == 0).sum()) == round(level * 128)
        assert bool((mask >= final).all())
    together = create_masks([scores, scores + 0.1], [0.25, 0.25], "2:4", together=True)
    assert sum(int((m == 0).sum()) for m in together) == 64
    assert bool((together[0] >= final).all()) and int((together[0] == 0).sum()) > 32
    with pytest.raises(ArgumentError, match="cannot reach a sparsity of 0.8: write 0.5"):
        one(scores, 0.8, "2:4")


def test_one_ranking_over_several_tensors():
    small, large = torch.full((4, 4), 1.0), torch.full((4, 12), 2.0)
    masks = create_masks([small, large], [0.5, 0.5], together=True)
    assert [int((m == 0).sum()) for m in masks] == [16, 16]
    blocks = create_masks([small, large], [0.25, 0.25], "block4", together=True)
    assert [int((m == 0).sum()) for m in blocks] == [16, 0]


def test_equal_scores_go_by_index_however_many_are_zero():
    scores = torch.zeros(10, 10)
    scores[9] = 1.0
    for level, dead in ((0.3, 30), (0.9, 90), (0.95, 95)):
        mask = one(scores, level, "unstructured")
        assert int((mask == 0).sum()) == dead
        assert bool((mask.flatten()[:dead] == 0).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [*KINDS, "2:4"], ids=str)
def test_other_precisions_and_layouts(kind, dtype):
    weight = torch.randn(8, 8, 3, 3, dtype=torch.float64).to(memory_format=torch.channels_last).to(dtype)
    mask = one(weight, 0.5, kind, absolute=True)
    assert mask.dtype == dtype and mask.shape == weight.shape
    assert float((mask == 0).double().mean()) == 0.5


def test_a_level_out_of_range_and_nan_are_refused():
    with pytest.raises(ArgumentError, match="between 0 and 1"):
        one(torch.rand(4), 1.5, "unstructured")
    with pytest.raises(ArgumentError, match="NaN"):
        one(torch.tensor([[1.0, float("nan"), 1.0, 2.0] * 2]), 0.5, "block4")
