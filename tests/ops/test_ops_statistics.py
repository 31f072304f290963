"""Per-channel activation statistics and the running mean."""

import math

import pytest
import torch

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.statistics import (
    RunningMean,
    activation_channels_apoz,
    activation_channels_l1,
    activation_channels_means,
)

# Two samples of two channels of 3 x 3 positions: channel 0 sums to 6 and 15, channel 1 to 15 and 30.
ACTIVATION = torch.tensor(
    [
        [[[1.0, 0, 0], [0, 2, 0], [0, 0, 3]], [[1, 0, 2], [0, 3, 0], [4, 0, 5]]],
        [[[4, 0, 0], [0, 5, 0], [0, 0, 6]], [[0, 6, 0], [7, 0, 8], [0, 9, 0]]],
    ]
)


def test_channels_of_feature_maps():
    assert activation_channels_l1(ACTIVATION).tolist() == [10.5, 22.5]
    assert activation_channels_means(ACTIVATION).tolist() == pytest.approx([21 / 18, 45 / 18])
    assert activation_channels_apoz(ACTIVATION).tolist() == pytest.approx([100 * 12 / 18, 50.0])


def test_channels_of_fully_connected_layers():
    activation = torch.tensor([[1.0, 0.0], [-3.0, 0.0]])
    assert activation_channels_l1(activation).tolist() == [2, 0]
    assert activation_channels_means(activation).tolist() == [-1, 0]
    assert activation_channels_apoz(activation).tolist() == [0, 100]


def test_a_vector_has_no_channels():
    with pytest.raises(ArgumentError, match="batch and a channel"):
        activation_channels_l1(torch.ones(3))


def test_running_mean_weighs_by_count():
    mean = RunningMean()
    assert math.isnan(float(mean.value))
    mean.update(torch.tensor([1.0, 10.0]), 3)
    mean.update(torch.tensor([5.0, 2.0]), 1)
    assert mean.value.tolist() == [2.0, 8.0] and mean.count == 4
    restored = RunningMean()
    restored.load_state_dict(mean.state_dict())
    restored.update(torch.tensor([2.0, 8.0]), 4)
    assert restored.value.tolist() == [2.0, 8.0] and mean.count == 4
    with pytest.raises(ArgumentError, match="shape"):
        mean.update(1.0)
    mean.reset()
    mean.update(3.0)
    assert float(mean.value) == 3.0
