"""SparseGPT and Wanda against float64 references of the papers, on linear layers, attention and convolutions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pruning_helpers import context, decide
from torch import nn
from torch.nn import functional

from distiller_ng.core.samples import GradientSampler, SampleSource
from distiller_ng.errors import ArgumentError, CalibrationError, ScheduleWarning, TargetError
from distiller_ng.pruning import SparseGPTPruner, WandaPruner


def run(pruner, model, batches, **where):
    source = SampleSource()
    source.give(GradientSampler(batches))
    ctx = context(model, data=source, **where)
    masks = decide(pruner, model, ctx)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pruner.update_weights_(ctx)
    ctx.masks.apply_changes_()
    return masks, before


def double(tensor):
    return tensor.detach().double().numpy()


def sparsegpt_reference(weight, inputs, sparsity=None, pattern=None, damp=0.01, block=128):
    """The paper's algorithm 1, column by column; ties and counts as this library has them."""
    w, columns = weight.copy(), weight.shape[1]
    hessian = inputs.T @ inputs
    silent = np.diag(hessian) == 0
    hessian[silent, silent] = 1
    w[:, silent] = 0
    hessian += damp * np.diag(hessian).mean() * np.eye(columns)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    mask, taken = np.ones_like(w), 0
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        if pattern is None:
            cost = w[:, start:stop] ** 2 / np.diag(upper)[start:stop] ** 2
            share = round(int(sparsity * w.size) * stop / columns) - taken
            taken += share
            chosen = np.ones(cost.size)
            chosen[np.argsort(cost.ravel(), kind="stable")[:share]] = 0
            mask[:, start:stop] = chosen.reshape(cost.shape)
        for j in range(start, stop):
            if pattern is not None and j % pattern[1] == 0 and j + pattern[1] <= columns:
                cost = w[:, j : j + pattern[1]] ** 2 / np.diag(upper)[j : j + pattern[1]] ** 2
                order = np.argsort(cost, axis=1, kind="stable")[:, : pattern[1] - pattern[0]]
                for row in range(len(w)):
                    mask[row, j + order[row]] = 0
            error = np.where(mask[:, j] == 0, w[:, j] / upper[j, j], 0)
            # Within a block at once; beyond it the same, as nothing there is decided before.
            w[:, j:] -= np.outer(error, upper[j, j:])
    return w * mask, mask


def wanda_reference(weight, inputs, sparsity=None, pattern=None):
    score = np.abs(weight) * np.linalg.norm(inputs, axis=0)
    mask = np.ones_like(weight)
    size = weight.shape[1] if pattern is None else pattern[1]
    gone = int(sparsity * size) if pattern is None else pattern[1] - pattern[0]
    for row in range(len(weight)):
        for start in range(0, weight.shape[1] - size + 1, size):
            order = np.argsort(score[row, start : start + size], kind="stable")[:gone]
            mask[row, start + order] = 0
    return weight * mask, mask


class Mlp(nn.Module):
    """Two layers, of which the second sees what the first one gives."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 10)
        self.second = nn.Linear(10, 6, bias=False)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


WAYS = [({"sparsity": 0.55}, None), ({"mask_type": "2:4"}, (2, 4)), ({"pattern": "1:2"}, (1, 2))]


@pytest.mark.parametrize(("arguments", "pattern"), WAYS, ids=str)
@pytest.mark.parametrize("block", [128, 4])
def test_sparsegpt_equals_the_papers_algorithm(arguments, pattern, block):
    torch.manual_seed(0)
    model = Mlp()
    batches = [(torch.randn(7, 12) @ torch.randn(12, 12), None) for _ in range(5)]
    x = torch.cat([b for b, _ in batches])
    original = {name: double(p) for name, p in model.named_parameters()}
    run(SparseGPTPruner("p", ["first.weight", "second.weight"], block_size=block, **arguments), model, batches)
    first, _ = sparsegpt_reference(original["first.weight"], double(x), arguments.get("sparsity"), pattern, block=block)
    hidden = np.maximum(double(x) @ first.T + original["first.bias"], 0)
    second, _ = sparsegpt_reference(original["second.weight"], hidden, arguments.get("sparsity"), pattern, block=block)
    np.testing.assert_allclose(double(model.first.weight), first, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(double(model.second.weight), second, rtol=1e-4, atol=1e-5)
    assert np.array_equal(double(model.first.weight) == 0, first == 0)


@pytest.mark.parametrize(("arguments", "pattern"), WAYS, ids=str)
def test_wanda_equals_its_formula(arguments, pattern):
    torch.manual_seed(0)
    model = Mlp()
    batches = [(torch.randn(7, 12) * torch.arange(1, 13), None) for _ in range(5)]
    x = torch.cat([b for b, _ in batches])
    original = {name: double(p) for name, p in model.named_parameters()}
    run(WandaPruner("p", ["second.weight", "first.weight"], **arguments), model, batches)
    first, _ = wanda_reference(original["first.weight"], double(x), arguments.get("sparsity"), pattern)
    hidden = np.maximum(double(x) @ first.T + original["first.bias"], 0)
    second, _ = wanda_reference(original["second.weight"], hidden, arguments.get("sparsity"), pattern)
    assert np.array_equal(double(model.first.weight), first)
    assert np.array_equal(double(model.second.weight), second)


def test_the_docstrings_examples():
    model = nn.Linear(4, 1, bias=False)
    model.weight.data = torch.tensor([[4.0, 0.0, 1.0, -1.0]])
    run(WandaPruner("p", sparsity=0.5), model, [torch.diag(torch.tensor([1.0, 2.0, 8.0, 3.0]))])
    assert model.weight.tolist() == [[4, 0, 1, 0]]
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, 2.0]])
    run(SparseGPTPruner("p", sparsity=0.5, damp=1e-9), model, [torch.ones(3, 2)])
    assert model.weight.tolist() == [[0, pytest.approx(3, abs=1e-4)]]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("arguments", "pattern"), [({"sparsity": 0.5}, None), ({"mask_type": "2:4"}, (2, 4))], ids=str)
def test_convolutions_are_matrices_of_their_patches(arguments, pattern, groups):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 4, 3, stride=2, padding=1, groups=groups, bias=False)
    model = nn.Sequential(conv, nn.ReLU())
    x = torch.randn(6, 8, 7, 7)
    weight = double(conv.weight)
    run(SparseGPTPruner("p", ["0.weight"], **arguments), model, [(x, None)])
    patches = functional.unfold(x, 3, padding=1, stride=2).transpose(1, 2).reshape(-1, 72).double().numpy()
    share, wide = 4 // groups, 72 // groups
    expected = []
    for group in range(groups):
        rows = weight[group * share : (group + 1) * share].reshape(share, wide)
        inputs = patches[:, group * wide : (group + 1) * wide]
        if pattern is None:
            expected.append(sparsegpt_reference(rows, inputs, 0.5)[0])
            continue
        order = np.arange(wide).reshape(-1, 9).T.ravel()  # channels of one kernel position are neighbours
        found = np.empty_like(rows)
        found[:, order] = sparsegpt_reference(rows[:, order], inputs[:, order], pattern=pattern)[0]
        expected.append(found)
    np.testing.assert_allclose(double(conv.weight).reshape(4, -1), np.concatenate(expected), rtol=1e-3, atol=1e-4)
    if pattern is not None:
        assert (conv.weight.reshape(4, -1, 4, 3, 3) != 0).sum(dim=2).eq(2).all()


def test_a_transformers_layers_keep_their_outputs_better_than_by_magnitude():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2)
    mixed = torch.randn(16, 16)
    x = torch.randn(64, 5, 16) @ mixed
    with torch.no_grad():
        reference = model.eval()(x)
    errors = {}
    for cls in (SparseGPTPruner, WandaPruner, None):
        torch.manual_seed(0)
        copy = nn.TransformerEncoder(layer, 2)
        copy.load_state_dict(model.state_dict())
        if cls is None:
            from distiller_ng.pruning import MagnitudePruner

            run(MagnitudePruner("p", pattern="2:4"), copy, [(x, None)])
        else:
            masks, _ = run(cls("p", mask_type="2:4"), copy, [(x, None)])
            assert {n.rpartition(".")[2] for n in masks} == {"in_proj_weight", "weight"} and len(masks) == 8
            for name in masks:
                weight = copy.get_parameter(name)
                assert weight.reshape(weight.shape[0], -1, 4).count_nonzero(dim=2).le(2).all()
        with torch.no_grad():
            errors[cls] = float((copy.eval()(x) - reference).square().mean())
    assert errors[SparseGPTPruner] < errors[WandaPruner] < errors[None]
    assert torch.backends.mha.get_fastpath_enabled()


def test_cross_attention_has_other_inputs_for_its_parts():
    torch.manual_seed(0)

    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, q, kv):
            return self.attention(q, kv, kv)[0]

    model = Cross()
    q, kv = torch.randn(20, 3, 8) * torch.arange(1, 9), torch.randn(20, 4, 8) / torch.arange(1, 9)
    weight = double(model.attention.in_proj_weight)
    run(WandaPruner("p", ["attention.in_proj_weight"], sparsity=0.5), model, [(q, kv, None)])
    parts = [
        wanda_reference(weight[:8], double(q).reshape(-1, 8), 0.5)[0],
        wanda_reference(weight[8:], double(kv).reshape(-1, 8), 0.5)[0],
    ]
    np.testing.assert_allclose(double(model.attention.in_proj_weight), np.concatenate(parts))


def test_weights_stored_the_other_way_round():
    class Conv1D(nn.Module):  # as GPT-2 has them
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 3))
            self.bias = nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return torch.addmm(self.bias, x, self.weight)

    torch.manual_seed(0)
    model, x = Conv1D(), torch.randn(9, 8)
    expected = sparsegpt_reference(double(model.weight).T, double(x), pattern=(2, 4))[0].T
    run(SparseGPTPruner("p", ["weight"], mask_type="2:4"), model, [(x, None)])
    np.testing.assert_allclose(double(model.weight), expected, rtol=1e-4, atol=1e-5)


def test_layers_that_are_used_twice_see_both_inputs():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6, bias=False)

        def forward(self, x):
            return self.layer(torch.tanh(x)) + self.layer(x)

    torch.manual_seed(0)
    model, x = Twice(), torch.randn(11, 6)
    inputs = np.concatenate([double(torch.tanh(x)), double(x)])
    expected = wanda_reference(double(model.layer.weight), inputs, 0.5)[0]
    run(WandaPruner("p", sparsity=0.5), model, [(x, None)])
    np.testing.assert_allclose(double(model.layer.weight), expected)


@pytest.mark.parametrize("cls", [SparseGPTPruner, WandaPruner])
def test_global_scope_divides_the_level_among_the_layers(cls):
    torch.manual_seed(0)
    model = Mlp()
    with torch.no_grad():
        model.second.weight.mul_(100)
    masks, _ = run(cls("p", sparsity=0.5, scope="global"), model, [(torch.randn(20, 12), None)])
    shares = {name: float((mask == 0).float().mean()) for name, mask in masks.items()}
    assert shares["first.weight"] > 0.6 and shares["second.weight"] < 0.4
    assert sum(int((m == 0).sum()) for m in masks.values()) == pytest.approx(90, abs=12)  # whole rows' worth


@pytest.mark.parametrize("cls", [SparseGPTPruner, WandaPruner])
def test_what_is_pruned_already_goes_first(cls):
    torch.manual_seed(0)
    model = Mlp()
    source = SampleSource()
    source.give(GradientSampler([(torch.randn(20, 12), None)]))
    ctx = context(model, data=source)
    before = torch.ones(10, 12)
    before[:, ::4] = 0
    ctx.masks.set("first.weight", before, owner="other")
    masks = decide(cls("p", ["first.weight"], sparsity=0.5), model, ctx)
    assert not masks["first.weight"][:, ::4].any() and int((masks["first.weight"] == 0).sum()) == 60


def test_only_so_many_samples_are_used_and_nothing_on_the_model_changes():
    model = Mlp().train()
    seen = []

    class Counted(list):
        def __iter__(self):
            for item in super().__iter__():
                seen.append(len(item[0]))
                yield item

    batches = Counted((torch.randn(4, 12), None) for _ in range(10))
    _, before = run(WandaPruner("p", ["first.weight"], sparsity=0.5, num_samples=10), model, batches)
    assert seen == [4, 4, 4, 4]  # one to find the layers, then three
    assert all(torch.isfinite(value).all() for value in before.values()) and model.training


def test_inputs_that_are_always_zero():
    model, x = Mlp(), torch.randn(20, 12)
    x[:, 3] = 0
    masks, _ = run(SparseGPTPruner("p", ["first.weight"], sparsity=0.5), model, [(x, None)])
    assert torch.isfinite(model.first.weight).all() and not model.first.weight[:, 3].any()
    assert not masks["first.weight"][:, 3].any()


def test_weights_that_no_product_uses():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)
            self.up = nn.ConvTranspose1d(4, 4, 2)

        def forward(self, x):
            return self.up(self.used(x).unsqueeze(2))

    with pytest.raises(TargetError, match="'unused.weight' is never used") as caught:
        run(WandaPruner("p", ["used.weight", "unused.weight"], sparsity=0.5), Odd(), [(torch.randn(2, 4), None)])
    assert caught.value.argument == ("weights", 1)
    with pytest.raises(TargetError, match="'up.weight' is no matrix or convolution that has inputs"):
        run(WandaPruner("p", ["up.weight"], sparsity=0.5), Odd(), [(torch.randn(2, 4), None)])
    with pytest.warns(ScheduleWarning, match="leaves unused.weight, up.weight"):
        masks, _ = run(WandaPruner("p", sparsity=0.5), Odd(), [(torch.randn(2, 4), None)])
    assert list(masks) == ["used.weight"]


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"mask_type": "block4"}, "mask_type"),
        ({"mask_type": "filter"}, "mask_type"),
        ({"num_samples": 0}, "num_samples"),
        ({"sparsity": 1.5}, "sparsity"),
    ],
)
@pytest.mark.parametrize("cls", [SparseGPTPruner, WandaPruner])
def test_wrong_arguments(cls, arguments, where):
    with pytest.raises(ArgumentError) as caught:
        cls("p", **{"sparsity": 0.5, **arguments})
    assert caught.value.argument[0] == where


def test_no_samples_and_inputs_that_are_not_finite():
    with pytest.raises(CalibrationError, match="empty"):
        run(WandaPruner("p", sparsity=0.5), Mlp(), [])
    with pytest.raises(ArgumentError, match="not finite"):
        run(SparseGPTPruner("p", sparsity=0.5), Mlp(), [torch.full((2, 12), float("nan"))])


def test_bfloat16_models():
    model = Mlp().bfloat16()
    masks, _ = run(SparseGPTPruner("p", mask_type="2:4"), model, [(torch.randn(20, 12), None)])
    assert model.first.weight.dtype == masks["first.weight"].dtype == torch.bfloat16
    assert model.first.weight.view(10, 3, 4).count_nonzero(dim=2).le(2).all()
