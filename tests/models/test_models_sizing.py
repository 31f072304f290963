"""Layers that follow the feature map: sizes agree with torch's, and never vanish."""

import pytest
import torch
from torch import nn

from distiller_ng.models._sizing import LayerSizer


def test_worked_example():
    sizer = LayerSizer(1, 8)
    assert str(sizer.conv(20, 5)) == "Conv2d(1, 20, kernel_size=(5, 5), stride=(1, 1))"
    sizer.max_pool(2)
    assert (sizer.height, sizer.width) == (2, 2)
    assert sizer.conv(50, 5).padding == (2, 2)
    assert sizer.features == 200


def test_pooling_stops_where_the_window_does_not_fit():
    assert isinstance(LayerSizer(4, 1).max_pool(2), nn.Identity)
    sizer = LayerSizer(4, (1, 6))
    pool = sizer.max_pool(3, stride=2)
    assert pool(torch.zeros(1, 4, 1, 6)).shape == (1, 4, 1, 2)
    assert (sizer.height, sizer.width) == (1, 2)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 13, (2, 9), (7, 1)])
@pytest.mark.parametrize(
    "layer",
    [
        lambda s: s.conv(2, 3, padding=1),
        lambda s: s.conv(2, 5),
        lambda s: s.conv(2, 11, stride=4, padding=2),
        lambda s: s.conv(2, 12, stride=4),
        lambda s: s.conv(2, 1, stride=2),
        lambda s: s.max_pool(2),
        lambda s: s.max_pool(3, stride=2),
        lambda s: s.max_pool(3, stride=2, padding=1),
        lambda s: s.max_pool(3, stride=2, ceil_mode=True),
        lambda s: s.max_pool(2, stride=3, ceil_mode=True),
        lambda s: s.average_all(stride=1),
        lambda s: s.average_all(),
    ],
)
def test_the_followed_size_is_the_real_one(layer, size):
    sizer = LayerSizer(2, size)
    x = torch.zeros(1, 2, sizer.height, sizer.width)
    y = layer(sizer)(x)
    assert y.shape == (1, sizer.channels, sizer.height, sizer.width)
    assert y.numel() == sizer.features > 0
