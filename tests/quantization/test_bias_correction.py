"""Bias correction: means of layers are those of the floating point model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from distiller_ng.data_loggers import collect_quant_stats
from distiller_ng.errors import CalibrationError, LifecycleError, TargetError
from distiller_ng.quantization.bias_correction import correct_biases_
from distiller_ng.quantization.post_train import PostTrainLinearQuantizer

MODE = {"activations": "ASYMMETRIC_UNSIGNED", "weights": "SYMMETRIC_RESTRICTED"}


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(),
            nn.Flatten(), nn.Linear(128, 4),
        )  # fmt: skip


def prepared(model, data, **settings):
    reference = copy.deepcopy(model)
    stats = collect_quant_stats(model, lambda model: [model(x) for x in data])
    quantizer = PostTrainLinearQuantizer(
        model, mode=MODE, per_channel_wts=True, model_activation_stats=stats, **settings
    )
    quantizer.prepare_model(data[0])
    return quantizer.model, reference


def test_the_weight_of_the_docstring():
    """A weight 0.24 on a grid of quarters, inputs of mean 2: the bias becomes -0.02."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False)).eval()
    model[0].weight.data = torch.tensor([[0.24, 1.0]])
    data = [torch.tensor([[1.0, 0.0], [3.0, 0.0]])]
    model, reference = prepared(model, data, bits_parameters=3)  # -3 .. 3, step 1/3
    model[0].w_scale.fill_(4.0)
    model[0].wrapped_module.weight.data = torch.tensor([[1.0, 4.0]])
    added = correct_biases_(model, reference, data)
    assert added["0"].tolist() == pytest.approx([-0.02], abs=1e-6)
    assert model[0].has_bias and model[0].wrapped_module.bias.tolist() == pytest.approx([-0.02], abs=1e-6)


@pytest.mark.parametrize("fold", [True, False])
def test_means_are_the_floating_point_models(fold):
    torch.manual_seed(0)
    model = Net().eval()
    model[1].running_mean.normal_()
    data = [torch.randn(16, 3, 8, 8) + 0.5 for _ in range(4)]
    if fold:
        from distiller_ng.graph.bn_folding import fold_batch_norms

        fold_batch_norms(model, data[0])
    model, reference = prepared(model, data, bits_parameters=3)
    x = torch.cat(data)
    with torch.no_grad():
        want, before = reference(x), model(x)
        added = correct_biases_(model, reference, [x])
        after = model(x)
    assert set(added) == {"0", "3", "6"}
    error = (before.mean(0) - want.mean(0)).abs().max()
    assert (after.mean(0) - want.mean(0)).abs().max() < 0.1 * error
    assert (after - want).square().mean() < (before - want).square().mean()


def test_batches_average_to_what_they_give_together():
    torch.manual_seed(0)
    data = [torch.randn(8, 4) + 1 for _ in range(6)]
    model, reference = prepared(nn.Sequential(nn.Linear(4, 3)).eval(), data, bits_parameters=2)
    other = copy.deepcopy(model)
    apart = correct_biases_(model, reference, data)
    together = correct_biases_(other, reference, [torch.cat(data)])
    assert torch.allclose(apart["0"], together["0"], atol=1e-6)


def test_only_named_layers_and_limits():
    torch.manual_seed(0)
    data = [torch.randn(4, 3, 8, 8) for _ in range(2)]
    model, reference = prepared(Net().eval(), data)
    kept = model[3].wrapped_module.bias.clone()
    assert set(correct_biases_(model, reference, data, layers=["6"], samples=4)) == {"6"}
    assert torch.equal(model[3].wrapped_module.bias, kept)
    with pytest.raises(TargetError, match="'7'"):
        correct_biases_(model, reference, data, layers=["7"])


def test_mistakes():
    data = [torch.randn(4, 3, 8, 8)]
    with pytest.raises(LifecycleError, match="prepare"):
        correct_biases_(Net().eval(), Net().eval(), data)
    model, reference = prepared(Net().eval(), data)
    with pytest.raises(CalibrationError, match="no batches"):
        correct_biases_(model, reference, [])
    with pytest.raises(CalibrationError, match="copy of the model"):
        correct_biases_(model, model, data)
    with pytest.raises(CalibrationError, match="NaN"):
        correct_biases_(model, reference, [torch.full((1, 3, 8, 8), float("nan"))])
    with pytest.raises(CalibrationError, match="another weight"):
        other = Net()
        other[0] = nn.Conv2d(3, 4, 3, bias=False)
        correct_biases_(model, other, data)


def test_modes_are_left_as_they_were():
    data = [torch.randn(4, 3, 8, 8)]
    model, reference = prepared(Net().eval(), data)
    reference.train()
    correct_biases_(model, reference, data)
    assert reference.training and reference[1].training and not model.training
    assert not any(module._forward_hooks for module in reference.modules())
