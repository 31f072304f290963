"""Filters of layers whose weights have a scale for each channel, or a batch norm folded in, are removed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distiller_ng.quantization import LSQQuantizer, QuantAwareTrainRangeLinearQuantizer
from distiller_ng.thinning import remove_filters


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn, self.relu1 = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()
        self.conv2, self.relu2, self.fc = nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Linear(5 * 16, 3)

    def forward(self, x):
        return self.fc(self.relu2(self.conv2(self.relu1(self.bn(self.conv1(x))))).flatten(1))


@pytest.mark.parametrize(
    ("quantizer", "settings"),
    [
        (QuantAwareTrainRangeLinearQuantizer, {"per_channel_wts": True}),
        (QuantAwareTrainRangeLinearQuantizer, {"per_channel_wts": True, "mode": "ASYMMETRIC_UNSIGNED"}),
        (QuantAwareTrainRangeLinearQuantizer, {"fold_bn": True}),
        (QuantAwareTrainRangeLinearQuantizer, {"fold_bn": True, "per_channel_wts": True}),
        (LSQQuantizer, {"per_channel_wts": True}),
    ],
)
def test_zero_filters_go(quantizer, settings):
    model, x = Net(), torch.randn(4, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    quantizer(model, optimizer, 8, 8, **settings).prepare_model(x)
    model.train()(x).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        model.conv1.weight[::2] = 0
        model.conv2.weight[1] = 0
    remove_filters(model, optimizer=optimizer, example_inputs=x)
    assert model.conv1.weight.shape == (3, 3, 3, 3) and model.conv2.weight.shape == (4, 3, 3, 3)
    step = dict(model.named_parameters()).get("conv1.weight_step")
    assert step is None or step.shape == (3,)
    optimizer.zero_grad()
    model.train()(x).square().mean().backward()
    optimizer.step()
    assert model.eval()(x).shape == (4, 3)
