"""Pruned, trained with quantization, thinned, written as int8: the file decides as the simulation does."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from distiller_ng.export import OnnxModule
from distiller_ng.models import create_model
from distiller_ng.quantization import QuantAwareTrainRangeLinearQuantizer
from distiller_ng.thinning import remove_filters


def digits():
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    return images, torch.tensor(data.target)


def train(model, optimizer, images, labels, epochs, keep=None):
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(1200).split(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            for weight, mask in (keep or {}).items():
                weight.data.mul_(mask)
    return model.eval()


def top1(run, images, labels):
    with torch.no_grad():
        return float((run(images).argmax(1) == labels).double().mean()) * 100


@pytest.mark.slow
def test_pruned_trained_and_thinned_resnet20_runs_as_int8(tmp_path):
    images, labels = digits()
    model = create_model(False, "digits", "resnet20_cifar")
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    train(model, optimizer, images, labels, 4)

    masks = {}
    for name, module in model.named_modules():
        if name.endswith("conv1") and name != "conv1":  # the weaker half of the filters inside each block
            strength = module.weight.detach().abs().sum((1, 2, 3))
            mask = (strength > strength.median()).float().reshape(-1, 1, 1, 1)
            masks[module.weight] = mask.expand_as(module.weight)
            module.weight.data.mul_(mask)
    quantizer = QuantAwareTrainRangeLinearQuantizer(
        model,
        optimizer,
        8,
        8,
        None,
        mode={"activations": "ASYMMETRIC_UNSIGNED", "weights": "SYMMETRIC_RESTRICTED"},
        ema_decay=0.9,
        per_channel_wts=True,
    )
    quantizer.prepare_model()
    train(model, optimizer, images, labels, 2, masks)
    remove_filters(model, optimizer=optimizer, example_inputs=images[:2])
    assert model.layer1[0].conv1.out_channels == 8 and model.layer3[2].conv1.out_channels == 32

    report = quantizer.convert("onnx", tmp_path / "resnet20.onnx", images[:64])
    held_out = images[1200:], labels[1200:]
    simulated, real = (top1(run, *held_out) for run in (model, OnnxModule(report.path)))
    assert simulated > 85
    assert abs(simulated - real) <= 0.1
    assert report.agreement.sqnr_db > 30
    assert report.bytes < 0.4 * report.float_bytes
    # The residual additions follow the quantizer: their inputs stay in floating point, as the report says.
    assert report.details["kernels"]["QLinearConv"] == len(report.quantized) == 10
    assert "output is not quantized" in report.floating["layer1.0.conv2"]

    # Grids there, observed on training images, let everything run as integers and decide alike.
    rest = quantizer.convert("onnx", tmp_path / "int8.onnx", images[1200:1264], calibration_data=images[:256])
    assert rest.details["kernels"]["QLinearConv"] == 21 and rest.details["kernels"]["QLinearAdd"] == 9
    assert not rest.floating and len(rest.details["added_grids"]) == 12
    assert abs(simulated - top1(rest.model, *held_out)) <= 0.5
    assert rest.agreement.sqnr_db > 25
