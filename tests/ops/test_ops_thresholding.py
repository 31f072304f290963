"""Group thresholds: maps, masks and their expansion."""

import pytest
import torch

from distiller_ng import thresholding
from distiller_ng.errors import ArgumentError
from distiller_ng.ops.thresholding import (
    GroupThresholdMixin,
    expand_binary_map,
    group_threshold_binary_map,
    group_threshold_mask,
    threshold_mask,
)

MATRIX = torch.arange(1.0, 13.0).view(4, 3)
# Kernels of 3 x 3, each with the values v, -v, and seven zeros: L1 = 2v, L2 = v * sqrt(2), Max = v.
KERNEL_VALUES = torch.tensor([[4.0, 3.5, 1.0], [3.1, 2.0, 5.0]])


def conv_weight() -> torch.Tensor:
    weight = torch.zeros(2, 3, 3, 3)
    weight[:, :, 0, 0] = KERNEL_VALUES
    weight[:, :, 2, 1] = -KERNEL_VALUES
    return weight


def test_single_values():
    assert threshold_mask(torch.tensor([0.2, -0.4, 0.3]), 0.3).tolist() == [0, 1, 0]


def test_rows_by_largest():
    mask, binary_map = group_threshold_mask(MATRIX, "Rows", 7, "Max")
    assert binary_map.tolist() == [0, 0, 1, 1]
    assert mask.tolist() == [[0] * 3, [0] * 3, [1] * 3, [1] * 3]


def test_columns_by_largest():
    mask, binary_map = group_threshold_mask(MATRIX, "Cols", 11, "Max")
    assert binary_map.tolist() == [0, 0, 1]
    assert mask.tolist() == [[0, 0, 1]] * 4


@pytest.mark.parametrize(
    ("group_type", "criteria", "threshold", "expected"),
    [
        ("2D", "L1", 6, [1, 1, 0, 1, 0, 1]),
        ("2D", "Mean_Abs", 6 / 9, [1, 1, 0, 1, 0, 1]),
        ("2D", "Max", 3.2, [1, 1, 0, 0, 0, 1]),
        ("3D", "L2", 8, [0, 1]),  # sqrt(2 * 29.25) = 7.65, sqrt(2 * 38.61) = 8.79
        ("Filters", "L1", 18, [0, 1]),  # 17, 20.2
        ("Filters", "Mean_L2", 8.0 / 27, [0, 1]),
        ("Channels", "L2", 6, [1, 0, 1]),  # 7.16, 5.70, 7.21
        ("Channels", "Mean_L1", 11.5 / 18, [1, 0, 1]),  # 14.2, 11, 12 over 18
        ("Channels", "Mean_L1", 13 / 18, [1, 0, 0]),
    ],
)
def test_groups_of_a_convolution(group_type, criteria, threshold, expected):
    weight = conv_weight()
    mask, binary_map = group_threshold_mask(weight, group_type, threshold, criteria)
    assert binary_map.tolist() == expected
    assert mask.shape == weight.shape and mask.is_contiguous()
    view = {"2D": mask.view(6, 9), "Channels": mask.transpose(0, 1).reshape(3, -1)}.get(group_type, mask.view(2, -1))
    assert view.mean(dim=1).tolist() == expected


@pytest.mark.parametrize("criteria", ["Max", "Mean_Abs"])
def test_b1_whole_layers(criteria):
    weight = torch.full((2, 2, 3, 3), 0.5)
    mask, binary_map = group_threshold_mask(weight, "4D", 0.4, criteria)
    assert binary_map.tolist() == [1] and bool((mask == 1).all())
    mask, binary_map = group_threshold_mask(weight, "4D", 0.5, criteria)
    assert binary_map.tolist() == [0] and bool((mask == 0).all()) and mask.shape == weight.shape


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (4, 6, 3, 3), (4, 6, 2, 3, 3)])
def test_filters_and_channels_of_every_layer_kind(shape):
    weight = torch.ones(shape)
    weight[1] = 0.1
    assert group_threshold_binary_map(weight, "Filters", 0.5, "Max").tolist() == [1, 0, 1, 1]
    weight = torch.ones(shape)
    weight[:, 2] = 0.1
    assert group_threshold_binary_map(weight, "Channels", 0.5, "Mean_Abs").tolist() == [1, 1, 0, 1, 1, 1]


def test_dtype_and_given_map():
    weight = conv_weight().to(torch.bfloat16)
    given = torch.tensor([0.0, 1.0, 1.0])
    mask, binary_map = group_threshold_mask(weight, "Channels", 0.0, "Max", given)
    assert binary_map is given and mask.dtype == torch.bfloat16
    assert mask[0, :, 0, 0].tolist() == [0, 1, 1]


def test_mixin_returns_the_mask():
    assert GroupThresholdMixin().group_threshold_mask(MATRIX, "Rows", 7, "Max").tolist()[0] == [0, 0, 0]
    assert thresholding.GroupThresholdMixin is GroupThresholdMixin


@pytest.mark.parametrize(
    ("group_type", "criteria", "message"),
    [
        ("Row", "Max", "unknown group type 'Row'. Did you mean 'Rows'?"),
        ("Rows", "Maxx", "Did you mean 'Max'?"),
        ("2D", "Max", "'2D' needs a weight of 3 to 5 dimensions, got shape \\(4, 3\\)"),
    ],
)
def test_misuse(group_type, criteria, message):
    with pytest.raises(ArgumentError, match=message) as error:
        group_threshold_mask(MATRIX, group_type, 1.0, criteria)
    assert isinstance(error.value, ValueError) and error.value.argument


def test_map_of_the_wrong_length():
    with pytest.raises(ArgumentError, match="need 4 map values, got 3"):
        expand_binary_map(MATRIX, "Rows", torch.ones(3))
