"""Module flow by running the model, batch norms behind layers, folded ranking weights."""

import pytest
import torch
from torch import nn

from distiller_ng.errors import GraphError
from distiller_ng.graph.module_flow import (
    batch_norm_after,
    batch_norm_pairs,
    fold_batch_norm_weights,
    leaf_modules,
    observe_module_flow,
)


class Block(nn.Module):
    """A residual block with one activation module for both places, and a classifier behind a functional flatten."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 2, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(2)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.conv2 = nn.Conv2d(2, 2, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(2)
        self.fc = nn.Linear(32, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x, *, scale=1.0):
        self.seen = self.seen + 1  # a buffer that forward replaces, whatever the mode
        y = self.act(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(self.drop(y)))
        y = self.act(y + x)
        return self.fc(torch.flatten(y, 1)) * scale


class Branching(nn.Module):
    """``conv`` is read by its batch norm and by the sum; ``twice`` runs two times."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.bn = nn.BatchNorm2d(2)
        self.side = nn.Identity()
        self.twice = nn.Conv2d(2, 2, 1)
        self.bn2 = nn.BatchNorm2d(2)

    def forward(self, x):
        y = self.conv(x)
        y = self.bn(y) + self.side(y)
        return self.bn2(self.twice(self.twice(y)))


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.bn = nn.BatchNorm2d(2)

    def forward(self, x):
        y = self.bn(self.conv(x))
        return y if y.sum() > 0 else -y


X = torch.ones(2, 2, 4, 4)


def test_consumers_through_views_and_in_place_activations():
    flow = observe_module_flow(Block(), X)
    assert flow.consumers("conv1") == ("bn1",)
    assert flow.consumers("bn1") == ("act",)
    assert flow.consumers("act") == ("drop", "fc")
    assert flow.consumers("bn2") == ()  # the sum is a new tensor
    assert flow.consumers("nowhere") == ()
    assert (flow.calls("act"), flow.calls("fc"), flow.calls("nowhere")) == (2, 1, 0)


def test_observing_leaves_the_model_as_it_was():
    model = Block().train()
    model.bn2.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    rng = torch.get_rng_state()
    buffer = model.seen
    observe_module_flow(model, (X,))
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.seen is buffer
    assert torch.equal(rng, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_model_that_does_not_run_is_a_graph_error_and_leaves_no_hooks():
    model = Block().train()
    with pytest.raises(GraphError, match=r"does not run on the example inputs \[2, 5, 4, 4\]"):
        observe_module_flow(model, torch.ones(2, 5, 4, 4))
    assert model.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_wrapped_models_show_canonical_names():
    flow = observe_module_flow(nn.DataParallel(Block()), X)
    assert flow.consumers("conv1") == flow.consumers("module.conv1") == ("bn1",)
    assert "conv1" in leaf_modules(nn.DataParallel(Block()))


def test_leaf_modules_include_attention_and_parametrized_layers():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "conv": nn.Conv2d(1, 1, 1)})
    torch.nn.utils.parametrize.register_parametrization(model["conv"], "weight", nn.Identity())
    assert set(leaf_modules(model)) == {"attention", "attention.out_proj", "conv"}


@pytest.mark.parametrize("example_inputs", [None, X])
def test_batch_norms_behind_layers(example_inputs):
    assert batch_norm_pairs(Block(), ["conv1", "conv2", "fc"], example_inputs) == {"conv1": "bn1", "conv2": "bn2"}


@pytest.mark.parametrize("example_inputs", [None, torch.ones(2, 1, 3, 3)])
def test_branches_and_shared_layers_have_no_batch_norm_of_their_own(example_inputs):
    assert batch_norm_pairs(Branching(), ["conv", "twice"], example_inputs) == {}


def test_batch_norm_after_by_flow():
    model = Block()
    flow = observe_module_flow(model, X)
    assert [batch_norm_after(model, name, flow) for name in ("conv1", "bn1", "fc")] == ["bn1", None, None]


def test_data_dependent_models_need_example_inputs():
    model = DataDependent()
    with pytest.raises(GraphError, match=r"file_config\(\.\.\., example_inputs=\(x,\)\)"):
        fold_batch_norm_weights(model, ["conv.weight"])
    assert set(fold_batch_norm_weights(model, ["conv.weight"], torch.ones(2, 1, 3, 3))) == {"conv.weight"}


@pytest.mark.parametrize("affine", [True, False])
def test_folded_weights_are_scaled_filter_by_filter(affine):
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, eps=0.0, affine=affine))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1))
        model[1].running_var.copy_(torch.tensor([4.0, 9.0]))
        if affine:
            model[1].weight.copy_(torch.tensor([2.0, -1.0]))
    folded = fold_batch_norm_weights(model, ["0.weight", "0.bias", "1.weight"])
    assert set(folded) == {"0.weight"}
    expected = [1.0, -1.0] if affine else [0.5, 1.0]
    assert folded["0.weight"].flatten().tolist() == pytest.approx(expected)
    assert model[0].weight.flatten().tolist() == [1.0, 3.0]


def test_norms_without_running_statistics_and_models_without_norms_are_left_alone():
    bare = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))
    assert fold_batch_norm_weights(bare, ["0.weight"]) == {}
    assert fold_batch_norm_weights(nn.Sequential(nn.Conv2d(1, 2, 1)), ["0.weight"]) == {}


def test_pairs_can_be_found_once_and_used_again():
    model = Block()
    pairs = batch_norm_pairs(model, ["conv1"])
    again = fold_batch_norm_weights(model, ["conv1.weight"], pairs=pairs)
    assert torch.equal(again["conv1.weight"], fold_batch_norm_weights(model, ["conv1.weight"])["conv1.weight"])


@pytest.mark.parametrize(
    ("layer", "norm"), [(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3)), (nn.Linear(2, 3), nn.BatchNorm1d(3))]
)
def test_folding_matches_the_layers_output_in_eval_mode(layer, norm):
    norm.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
    model = nn.Sequential(layer, norm).eval()
    x = torch.randn(4, 2, 5) if isinstance(layer, nn.Conv1d) else torch.randn(4, 2)
    folded = fold_batch_norm_weights(model, ["0.weight"])["0.weight"]
    difference = (model(x) - model(torch.zeros_like(x))).detach()
    rows = x.movedim(1, -1) if x.dim() == 3 else x
    expected = rows @ folded.reshape(3, 2).t()
    assert torch.allclose(difference, expected.movedim(-1, 1) if x.dim() == 3 else expected, atol=1e-5)
