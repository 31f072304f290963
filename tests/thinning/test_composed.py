"""Thinning models that other parts of the library have changed, and thinned models in use."""

from __future__ import annotations

import copy
import time

import pytest
import torch
from thinning_checks import choose, error_of, masked_outputs, run, step_again, trained
from torch import nn

import distiller_ng as distiller
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.models import create_model
from distiller_ng.quantization import (
    DorefaQuantizer,
    PACTQuantizer,
    QuantAwareTrainRangeLinearQuantizer,
    WRPNQuantizer,
)
from distiller_ng.thinning.apply import apply_plan
from distiller_ng.thinning.plan import ThinningPlan

X = (torch.randn(2, 3, 8, 8),)


def network():
    body = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU()]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(5 * 16, 3))


@pytest.mark.parametrize("kind", [DorefaQuantizer, PACTQuantizer, QuantAwareTrainRangeLinearQuantizer, WRPNQuantizer])
def test_layers_with_quantized_weights(kind):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    kind(model, optimizer, bits_activations=8, bits_weights=4).prepare_model(X[0])
    graph = DependencyGraph.trace(model, X)
    plan = ThinningPlan.for_channels(graph, graph.channels_of("0.weight", 0)[:2].tolist())
    expected = masked_outputs(model, X, plan)
    apply_plan(model, plan, X, optimizers=[optimizer])
    assert model[0].weight.shape[0] == 4
    assert error_of(run(model, X), expected) < 1e-4


def test_a_thinned_model_trains_exports_and_is_copied():
    model = network()
    optimizer, masks = trained(model, X)
    graph = DependencyGraph.trace(model, X)
    apply_plan(model, ThinningPlan.for_channels(graph, choose(graph, 3)), X, optimizers=[optimizer], masks=masks)
    step_again(model, X, optimizer, masks)
    model.eval()
    exported = torch.export.export(model, X).module()
    assert torch.allclose(exported(*X), model(*X), atol=1e-6)
    assert torch.equal(copy.deepcopy(model)(*X), model(*X))


def test_repeated_thinning_goes_on_from_the_smaller_model():
    model = network()
    for left in (5, 4, 3):
        with torch.no_grad():
            model[0].weight[0] = 0
        distiller.remove_filters(model, example_inputs=X)
        assert model[0].out_channels == model[3].in_channels == left
    assert len(model.thinning_recipes) == 3


@pytest.mark.slow
def test_resnet56_is_thinned_in_seconds():
    model = create_model(False, "cifar10", "resnet56_cifar", parallel=False)
    x = (torch.randn(1, 3, 32, 32),)
    DependencyGraph.trace(nn.Conv2d(3, 4, 1), x)  # the first trace of a process loads torch's compiler
    start = time.process_time()
    graph = DependencyGraph.trace(model, x)
    apply_plan(model, ThinningPlan.for_channels(graph, choose(graph, 1)), x)
    assert time.process_time() - start < 5
