"""Compressed copies and their predicted cost: odd models, coupled filters, exact counts."""

from __future__ import annotations

import copy

import pytest
import torch
from automatic_nets import Attention, Shared
from torch import nn

from distiller_ng.automatic import Candidates, LayerChoice, PredictedCost, compressed_copy, predicted_cost
from distiller_ng.errors import ArgumentError, GraphError, TargetError
from distiller_ng.policies.one_shot import prune_structures
from distiller_ng.reports.compute import layer_costs


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.bn(self.stem(x)).relu()
        x = x + self.conv2(self.conv1(x).relu())
        return self.fc(x.mean((2, 3)))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 8, 1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.project = nn.Conv2d(8, 6, 1)

    def forward(self, x):
        return self.project(self.depth(self.expand(x)).relu()).mean((2, 3))


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1)
        self.right = nn.Conv2d(3, 6, 1)
        self.head = nn.Conv2d(10, 2, 1)

    def forward(self, x):
        return self.head(torch.cat([self.left(x), self.right(x)], 1).relu()).mean((2, 3))


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 4, 2, stride=2)
        self.out = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.out(self.up(x).relu())


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 10, bias=False), nn.ReLU(), nn.Linear(10, 3))


IMAGE = (torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)),)
MODELS = {
    "residual": (Residual, IMAGE),
    "depthwise": (Depthwise, IMAGE),
    "concat": (Concat, IMAGE),
    "transposed": (Transposed, IMAGE),
    "shared": (Shared, (torch.randn(2, 6),)),
    "attention": (Attention, (torch.randn(1, 5, 8),)),
    "linear": (mlp, (torch.randn(2, 4),)),
}


def made(name):
    factory, inputs = MODELS[name]
    torch.manual_seed(0)
    return factory().eval(), inputs


@pytest.mark.parametrize("group", ["element", "filter"])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "shared"])
def test_the_cost_of_a_copy_is_the_predicted_one(name, group):
    model, inputs = made(name)
    before = copy.deepcopy(model.state_dict())
    candidates = Candidates(model, inputs, group=group)
    choices = {name: LayerChoice(0.4) for names in candidates.coupled for name in names}
    cost = candidates.cost(choices)
    small = candidates.build(choices)
    assert sum(p.numel() for p in small.parameters()) == cost.parameters
    assert sum(int(p.count_nonzero()) for p in small.parameters()) == pytest.approx(cost.nonzero, abs=0)
    original = candidates.cost({})
    assert cost.macs < original.macs and cost.size_bytes < original.size_bytes
    assert small(*inputs).shape == model(*inputs).shape
    if group == "filter":
        assert sum(c.macs for c in layer_costs(small, inputs)) == cost.macs
        stored = sum(t.numel() * t.element_size() for t in small.state_dict().values())
        assert stored == pytest.approx(cost.size_bytes)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_coupled_filters_go_together():
    model, inputs = made("residual")
    candidates = Candidates(model, inputs, group="filter")
    assert candidates.coupled == [("stem.weight", "conv2.weight"), ("conv1.weight",)]
    small = candidates.build({"stem.weight": LayerChoice(0.5)})
    assert (small.stem.out_channels, small.conv2.out_channels, small.bn.num_features) == (4, 4, 4)
    assert (small.conv1.in_channels, small.fc.in_features, small.conv1.out_channels) == (4, 4, 12)


def test_of_coupled_parameters_the_lowest_sparsity_counts():
    model, inputs = made("residual")
    choices = {"stem.weight": LayerChoice(0.75), "conv2.weight": LayerChoice(0.25)}
    assert compressed_copy(model, inputs, choices, group="filter").stem.out_channels == 6
    choices["conv2.weight"] = LayerChoice(0.0, bits=8)
    assert compressed_copy(model, inputs, choices, group="filter").stem.out_channels == 8


def test_depthwise_convolutions_follow():
    model, inputs = made("depthwise")
    small = compressed_copy(model, inputs, {"expand.weight": LayerChoice(0.5)}, group="filter")
    assert (small.depth.groups, small.depth.in_channels, small.project.in_channels) == (4, 4, 4)


def test_the_same_filters_go_as_in_prune_structures():
    model, inputs = made("residual")
    theirs = copy.deepcopy(model)
    prune_structures(theirs, inputs, sparsity=0.5, scope="layer")
    names = ("stem.weight", "conv1.weight", "conv2.weight")
    ours = compressed_copy(model, inputs, dict.fromkeys(names, LayerChoice(0.5)), group="filter")
    torch.testing.assert_close(ours(*inputs), theirs(*inputs))


def test_element_sparsity_takes_the_lowest_magnitudes_exactly():
    model, inputs = made("linear")
    small = compressed_copy(model, inputs, {"0.weight": LayerChoice(0.3)})
    weight, original = small[0].weight, model[0].weight
    assert int((weight == 0).sum()) == 12
    assert torch.equal(weight[weight != 0], original[weight != 0])
    assert original[weight == 0].abs().max() < original[weight != 0].abs().min()


def test_bits_round_each_output_channel():
    model, inputs = made("linear")
    small = compressed_copy(model, inputs, {"0.weight": LayerChoice(bits=2)})
    for row, before in zip(small[0].weight, model[0].weight, strict=True):
        assert set(row.unique().tolist()) <= {-before.abs().max().item(), 0.0, before.abs().max().item()}


def test_bits_of_a_transposed_convolution_are_by_its_second_dimension():
    model, inputs = made("transposed")
    small = compressed_copy(model, inputs, {"up.weight": LayerChoice(bits=2)})
    assert all(len(small.up.weight[:, channel].unique()) <= 3 for channel in range(4))


def test_pruned_weights_stay_zero_when_rounded():
    model, inputs = made("linear")
    small = compressed_copy(model, inputs, {"0.weight": LayerChoice(0.5, bits=8)})
    assert int((small[0].weight == 0).sum()) >= 20


def test_predicted_cost_of_the_docstring():
    cost = predicted_cost(nn.Linear(4, 3), torch.ones(1, 4), {"weight": LayerChoice(0.5, bits=8)})
    assert cost == PredictedCost(parameters=15, nonzero=9, macs=6.0, size_bytes=31.5)
    assert [cost.of(name) for name in ("macs", "size", "params")] == [6.0, 31.5, 9.0]


def test_zeros_that_are_there_count_before_and_after():
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(16.0).reshape(4, 4))
        layer.weight[0] = 0
    assert predicted_cost(layer, torch.ones(1, 4), {}).nonzero == 12
    assert predicted_cost(layer, torch.ones(1, 4), {"weight": LayerChoice(0.2)}).nonzero == 12
    assert predicted_cost(layer, torch.ones(1, 4), {"weight": LayerChoice(0.5)}).nonzero == 8


def test_a_layer_that_reads_the_input_and_itself_keeps_its_filters():
    model, inputs = made("shared")
    assert Candidates(model, inputs, group="filter").coupled == []
    assert Candidates(model, inputs).coupled == [("first.weight",), ("last.weight",)]
    small = compressed_copy(model, inputs, {"first.weight": LayerChoice(0.5)})
    assert int((small.first.weight == 0).sum()) == 18
    with pytest.raises(GraphError, match=r"'first.weight' also meets a tensor whose size cannot change"):
        compressed_copy(model, inputs, {"first.weight": LayerChoice(0.5)}, group="filter")


def test_shared_modules_count_as_often_as_they_run():
    model, inputs = made("shared")
    assert predicted_cost(model, (inputs[0][:1],), {}).macs == 6 * 6 * 2 + 6 * 3


def test_buffers_are_part_of_the_size_and_statistics_that_are_not_stored_are_none():
    layer = nn.Linear(2, 2, bias=False)
    layer.register_buffer("kept", torch.zeros(3))
    layer.register_buffer("lost", torch.zeros(100), persistent=False)
    assert predicted_cost(layer, torch.ones(1, 2), {}).size_bytes == 4 * 4 + 3 * 4


def test_half_precision_is_stored_in_sixteen_bits():
    layer = nn.Linear(4, 4, bias=False).bfloat16()
    inputs = torch.ones(1, 4, dtype=torch.bfloat16)
    assert predicted_cost(layer, inputs, {}).size_bytes == 32
    assert compressed_copy(layer, inputs, {"weight": LayerChoice(0.5, bits=4)}).weight.dtype == torch.bfloat16


def test_a_wrapped_model_and_its_names_are_understood():
    model, inputs = made("linear")
    small = compressed_copy(nn.DataParallel(model), inputs, {"module.0.weight": LayerChoice(0.5)})
    assert int((small[0].weight == 0).sum()) == 20


def test_keyword_inputs():
    model, _ = made("linear")
    assert predicted_cost(model, {"input": torch.ones(1, 4)}, {}).macs == 70


@pytest.mark.parametrize("sparsity", [-0.1, 1, 1.5, True, "0.5", None, float("nan")])
def test_impossible_sparsities_are_refused(sparsity):
    with pytest.raises(ArgumentError, match="from 0 to below 1"):
        LayerChoice(sparsity)


@pytest.mark.parametrize("bits", [1, 9, 16, True, 4.5, "8"])
def test_impossible_bits_are_refused(bits):
    with pytest.raises(ArgumentError, match="or 32 for floating point"):
        LayerChoice(bits=bits)


def test_mistakes_name_what_to_write():
    model, inputs = made("residual")
    with pytest.raises(TargetError, match=r"conv9.weight.*Did you mean.*conv1.weight"):
        compressed_copy(model, inputs, {"conv9.weight": LayerChoice(0.5)})
    with pytest.raises(ArgumentError, match="unknown group 'filters'.*filter"):
        compressed_copy(model, inputs, {}, group="filters")
    with pytest.raises(GraphError, match=r"no filter of 'fc.weight' can be removed"):
        compressed_copy(model, inputs, {"fc.weight": LayerChoice(0.5)}, group="filter")
    with pytest.raises(ArgumentError, match="a choice is a LayerChoice"):
        compressed_copy(model, inputs, {"fc.weight": 0.5})


def test_layers_whose_filters_cannot_go_may_have_bits():
    model, inputs = made("residual")
    small = compressed_copy(model, inputs, {"fc.weight": LayerChoice(bits=2)}, group="filter")
    assert all(len(row.unique()) <= 3 for row in small.fc.weight)
