"""What the pruner tests share: tiny parameters, contexts, and one call that decides everything a pruner targets."""

from __future__ import annotations

import torch
from torch import nn

from distiller_ng.core.context import StepContext
from distiller_ng.core.masks import MaskRegistry
from distiller_ng.core.position import TrainPosition
from distiller_ng.core.samples import GradientSampler, SampleSource
from distiller_ng.core.window import PolicyWindow
from distiller_ng.graph.provider import ModelGraph
from distiller_ng.names import ParameterIndex


class ConvNet(nn.Module):
    """Two convolutions with a batch norm between, and a linear layer; input [N, 3, 6, 6]."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.relu1(self.bn1(self.conv1(x)))
        return self.fc(torch.relu(self.conv2(x)).mean(dim=(2, 3)))


class Holder(nn.Module):
    """A model that is nothing but the given weights: ``Holder(a=tensor)`` has the parameter ``a.weight``."""

    def __init__(self, **weights):
        super().__init__()
        for name, weight in weights.items():
            module = nn.Module()
            module.weight = nn.Parameter(weight.clone())
            self.add_module(name, module)


def context(
    model, *, epoch=0, window=None, minibatch=0, minibatches=1, masks=None, ranking_weights=None, inputs=None, data=None
):
    """The context of ``epoch`` in ``window`` (start, end, frequency); by default a window of that epoch alone.

    ``inputs``: what the model is called with, for those who follow its channels, and who sample it (two halves, with
    the mean square of the outputs as loss) unless ``data`` says how.
    """
    parameters = ParameterIndex(model) if masks is None else masks.parameters
    start, end, frequency = window or (epoch, epoch + 1, 1)
    extra = {} if ranking_weights is None else {"ranking_weights": ranking_weights}
    if inputs is not None:
        extra["graph"] = ModelGraph(model, inputs)
        extra["data"] = SampleSource()
        halves = [(half, None) for half in inputs.chunk(2)]
        extra["data"].give(GradientSampler(halves, lambda outputs, _: outputs.square().mean()))
    if data is not None:
        extra["data"] = data
    return StepContext(
        model=model,
        parameters=parameters,
        masks=MaskRegistry(parameters) if masks is None else masks,
        window=PolicyWindow.from_range(start, end, frequency),
        position=TrainPosition(epoch, minibatch, minibatches),
        **extra,
    )


def decide(pruner, model, ctx=None, **where):
    """All masks a pruner gives, and keep them in the context's registry as the policy does."""
    ctx = ctx or context(model, **where)
    pruner.bind(ctx.parameters)
    masks = {}
    for group in pruner.groups(ctx.parameters):
        masks.update(pruner.compute_masks(group, ctx))
    for name, mask in masks.items():
        ctx.masks.set(name, mask, owner=pruner.owner, binary=pruner.binary_masks)
    return masks


def filters_with(*magnitudes, channels=2, kernel=1):
    """A convolution weight whose filter ``i`` holds ``magnitudes[i]`` everywhere."""
    values = torch.tensor(magnitudes, dtype=torch.float32)
    return values.reshape(-1, 1, 1, 1).expand(-1, channels, kernel, kernel).clone()


def kept_filters(mask):
    """Indices of the filters with anything left."""
    return mask.flatten(1).any(dim=1).nonzero().flatten().tolist()
