"""OBS and M-FAC against dense float64 matrices: scores, what is pruned, what the other weights become."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pruning_helpers import context, decide
from torch import nn
from torch.nn import functional

from distiller_ng.core.samples import GradientSampler, SampleSource
from distiller_ng.errors import ArgumentError, CalibrationError, ScheduleWarning
from distiller_ng.names import ParameterIndex
from distiller_ng.pruning import MFACPruner, OBSPruner
from distiller_ng.pruning._gradient_buffer import GradientBuffer

EPS = float(torch.finfo(torch.float32).eps)


class Net(nn.Module):
    """A convolution and a linear layer; 54 and 40 weights."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(functional.avg_pool2d(torch.tanh(self.conv(x)), 2).flatten(1))


NAMES = ["conv.weight", "fc.weight"]


def prepared(seed=0, batches=9):
    torch.manual_seed(seed)
    model = Net()
    data = [(torch.randn(4, 3, 6, 6), torch.randint(0, 5, (4,))) for _ in range(batches)]
    return model, data


def sampled_context(model, data, **where):
    source = SampleSource()
    source.give(GradientSampler(data))
    return context(model, data=source, **where)


def run(pruner, model, data, ctx=None, **where):
    ctx = ctx or sampled_context(model, data, **where)
    masks = decide(pruner, model, ctx)
    pruner.update_weights_(ctx)
    return masks, ctx


def gradients_of(model, data, count):
    """[count, parameters] by name, float64, with torch's ordinary backward."""
    model.eval()
    found = {name: [] for name in NAMES}
    for index in range(count):
        x, y = data[index % len(data)]
        model.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        for name in NAMES:
            found[name].append(dict(model.named_parameters())[name].grad.flatten().double().numpy().copy())
    model.zero_grad()
    return {name: np.stack(rows) for name, rows in found.items()}


def inverse(gradients, damp, block):
    count, size = gradients.shape
    block = block or size
    result = np.zeros((size, size))
    for start in range(0, size, block):
        part = gradients[:, start : start + block]
        fisher = damp * np.eye(part.shape[1]) + part.T @ part / count
        result[start : start + block, start : start + block] = np.linalg.inv(fisher)
    return result


def expected(weight, matrix, newly, eps=EPS):
    force = np.where(newly, weight / (np.diag(matrix) + eps), 0)
    return np.where(newly, 0, weight - matrix @ force)


def numbers(tensor):
    return tensor.detach().double().flatten().numpy()


CASES = [
    (OBSPruner, {"fisher_block_size": 1, "num_grads": 16}, EPS),
    (OBSPruner, {"fisher_block_size": 7, "num_grads": 16}, EPS),
    (OBSPruner, {"fisher_block_size": 50, "num_grads": 5, "damp": 1e-4}, EPS),
    (MFACPruner, {"num_grads": 6}, 0),
    (MFACPruner, {"num_grads": 6, "fisher_block_size": 10, "damp": 1e-4}, 0),
    (MFACPruner, {"num_grads": 24, "fisher_block_size": 10}, 0),
    (MFACPruner, {"num_grads": 6, "fisher_block_size": None, "num_pages": 3}, 0),
]


@pytest.mark.parametrize(("cls", "settings", "eps"), CASES)
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_scores_pruned_set_and_weights_equal_the_dense_reference(cls, settings, eps, scope):
    model, data = prepared()
    before = {name: numbers(dict(model.named_parameters())[name]) for name in NAMES}
    gradients = gradients_of(model, data, settings["num_grads"])
    pruner = cls("p", NAMES, sparsity=0.6, scope=scope, **settings)
    masks, _ = run(pruner, model, data)
    block = settings.get("fisher_block_size", 2000)
    matrices = {name: inverse(gradients[name], pruner.damp, block) for name in NAMES}
    scores = {name: before[name] ** 2 / (2 * np.diag(matrices[name]) + eps) for name in NAMES}
    if scope == "global":
        order = np.argsort(np.concatenate([scores[name] for name in NAMES]), kind="stable")
        gone = np.zeros(94, bool)
        gone[order[: round(0.6 * 94)]] = True
        newly = {"conv.weight": gone[:54], "fc.weight": gone[54:]}
    else:
        newly = {}
        for name, values in scores.items():
            newly[name] = np.zeros(values.size, bool)
            newly[name][np.argsort(values, kind="stable")[: round(0.6 * values.size)]] = True
    for name in NAMES:
        assert np.array_equal(numbers(masks[name]) == 0, newly[name])
        wanted = expected(before[name], matrices[name], newly[name], eps)
        np.testing.assert_allclose(numbers(dict(model.named_parameters())[name]), wanted, rtol=2e-4, atol=1e-6)


def test_the_docstrings_example():
    for pruner in (
        OBSPruner("p", sparsity=0.5, num_grads=1, damp=1.0, fisher_block_size=2),
        MFACPruner("p", sparsity=0.5, num_grads=1, damp=1.0),
    ):
        model = nn.Linear(2, 1, bias=False)
        nn.init.ones_(model.weight)
        batches = GradientSampler([(torch.ones(1, 2), None)], lambda out, _: out.sum())
        run(pruner, model, batches._batches, sampled_of(model, batches))
        assert model.weight.tolist() == [[0.0, pytest.approx(1.5)]]


def sampled_of(model, sampler):
    source = SampleSource()
    source.give(sampler)
    return context(model, data=source)


def test_block4_is_scored_and_removed_as_one():
    torch.manual_seed(1)
    model = nn.Linear(8, 3, bias=False)
    data = [(torch.randn(4, 8), torch.randint(0, 3, (4,))) for _ in range(6)]
    before = numbers(model.weight)
    rows = []
    for x, y in data:
        model.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        rows.append(numbers(model.weight.grad))
    model.zero_grad()
    matrix = inverse(np.stack(rows), 1e-3, 12)
    scores, forces = [], np.zeros(24)
    for start in range(0, 24, 4):
        part = slice(start, start + 4)
        forces[part] = np.linalg.solve(matrix[part, part], before[part])
        scores.append(0.5 * before[part] @ forces[part])
    gone = np.zeros(24, bool)
    for index in np.argsort(scores)[:3]:
        gone[4 * index : 4 * index + 4] = True
    pruner = OBSPruner(
        "p", sparsity=0.5, num_grads=6, damp=1e-3, fisher_block_size=12, mask_type="block4", scope="layer"
    )
    masks, _ = run(pruner, model, data)
    assert np.array_equal(numbers(masks["weight"]) == 0, gone)
    wanted = np.where(gone, 0, before - matrix @ np.where(gone, forces, 0))
    np.testing.assert_allclose(numbers(model.weight), wanted, rtol=1e-4, atol=1e-6)


def test_blocks_of_a_convolution_lie_along_its_channels_and_a_rest_is_a_smaller_block():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 2, 2), nn.Flatten())
    data = [(torch.randn(2, 6, 3, 3), torch.randint(0, 8, (2,))) for _ in range(4)]
    pruner = OBSPruner("p", ["0.weight"], sparsity=0.5, num_grads=4, fisher_block_size=4, mask_type="block4")
    masks, _ = run(pruner, model, data)
    dead = masks["0.weight"] == 0
    groups = torch.cat([dead[:, :4].all(dim=1).flatten(), dead[:, 4:].all(dim=1).flatten()])
    assert int(groups.sum()) == 8 and int(dead[:, :4].any(dim=1).sum() + dead[:, 4:].any(dim=1).sum()) == 8
    assert torch.equal(model[0].weight == 0, dead)


def test_n_of_m_keeps_the_best_scores():
    model, data = prepared()
    masks, _ = run(OBSPruner("p", ["fc.weight"], mask_type="2:4", num_grads=8, fisher_block_size=8), model, data)
    assert masks["fc.weight"].view(5, 2, 4).sum(dim=2).eq(2).all()
    assert torch.equal(model.fc.weight == 0, masks["fc.weight"] == 0)


def test_a_block_that_would_be_cut_grows_with_a_warning():
    model, data = prepared()
    pruner = OBSPruner("p", ["fc.weight"], sparsity=0.5, mask_type="block4", num_grads=4)
    pruner.bind(ParameterIndex(model))
    ctx = sampled_context(model, data)
    with pytest.warns(ScheduleWarning, match="cuts blocks of 4 weights: 4 is used"):
        pruner.check(ctx.window, ctx.parameters)
    run(pruner, model, data, ctx)


def test_what_was_pruned_stays_so_and_is_left_out_of_the_matrix():
    model, data = prepared()
    ctx = sampled_context(model, data)
    first, _ = run(
        OBSPruner("p", NAMES, sparsity=0.3, num_grads=9, fisher_block_size=10, scope="layer"), model, data, ctx
    )
    before = {name: numbers(dict(model.named_parameters())[name]) for name in NAMES}
    gradients = gradients_of(model, data, 9)
    masks, _ = run(
        OBSPruner("p", NAMES, sparsity=0.6, num_grads=9, fisher_block_size=10, scope="layer"), model, data, ctx
    )
    for name in NAMES:
        dead = numbers(first[name]) == 0
        assert (numbers(masks[name])[dead] == 0).all()
        matrix = inverse(gradients[name] * ~dead, 1e-7, 10)
        newly = (numbers(masks[name]) == 0) & ~dead
        wanted = expected(before[name], matrix, newly)
        np.testing.assert_allclose(numbers(dict(model.named_parameters())[name]), wanted, rtol=5e-4, atol=1e-6)


def test_recomputations_go_in_equal_steps_with_gradients_at_the_moved_weights():
    model, data = prepared()
    other, _ = prepared()
    twice = OBSPruner("p", NAMES, sparsity=0.6, num_grads=9, fisher_block_size=10, num_recomputations=2, scope="layer")
    masks, _ = run(twice, model, data)
    ctx = sampled_context(other, data)
    for level in (0.3, 0.6):
        steps = OBSPruner("p", NAMES, sparsity=level, num_grads=9, fisher_block_size=10, scope="layer")
        expected_masks, _ = run(steps, other, data, ctx)
    for name in NAMES:
        assert torch.equal(masks[name], expected_masks[name])
        assert torch.allclose(dict(model.named_parameters())[name], dict(other.named_parameters())[name], atol=1e-5)


def test_nothing_to_prune_samples_nothing():
    model, _ = prepared()
    pruner = OBSPruner("p", NAMES, init_sparsity=0.0, final_sparsity=0.5, num_grads=4)
    ctx = context(model, epoch=0, window=(0, 4, 1))  # no data
    assert decide(pruner, model, ctx) == {}


def test_from_param_begins_with_the_weights_own_zeros():
    model, data = prepared()
    with torch.no_grad():
        model.fc.weight.view(-1)[:10] = 0
    pruner = OBSPruner("p", ["fc.weight"], init_sparsity="__FROM_PARAM__", final_sparsity=0.5, num_grads=4)
    masks, _ = run(pruner, model, data, epoch=0, window=(0, 4, 1))
    assert int((masks["fc.weight"] == 0).sum()) == 10 and masks["fc.weight"].view(-1)[:10].eq(0).all()


def test_without_data_the_error_says_what_to_do():
    model, _ = prepared()
    with pytest.raises(CalibrationError, match="scheduler.grad_sampler"):
        decide(OBSPruner("p", NAMES, sparsity=0.5), model, context(model))


@pytest.mark.parametrize(
    ("cls", "arguments", "where"),
    [
        (OBSPruner, {"damp": 0}, "damp"),
        (OBSPruner, {"num_grads": 0}, "num_grads"),
        (OBSPruner, {"fisher_block_size": None}, "fisher_block_size"),
        (OBSPruner, {"num_recomputations": 1.5}, "num_recomputations"),
        (OBSPruner, {"grad_sampler_kwargs": [1]}, "grad_sampler_kwargs"),
        (OBSPruner, {"mask_type": "filter"}, "mask_type"),
        (MFACPruner, {"num_grads": {0.5: 3}}, "num_grads"),
        (MFACPruner, {"num_grads": {"a": 3}}, "num_grads"),
        (MFACPruner, {"num_pages": True}, "num_pages"),
        (MFACPruner, {"use_gradient_buffering": "yes"}, "use_gradient_buffering"),
        (MFACPruner, {"available_devices": ["gpu:0"]}, "available_devices"),
        (MFACPruner, {"available_devices": "cpu"}, "available_devices"),
    ],
)
def test_wrong_arguments_are_said(cls, arguments, where):
    with pytest.raises(ArgumentError) as caught:
        cls("p", NAMES, sparsity=0.5, **arguments)
    assert caught.value.argument[0] == where


@pytest.mark.parametrize(("present", "wanted"), [(0.0, 1), (0.3, 2), (0.5, 2), (0.6, 3), (0.9, 3)])
def test_the_number_of_gradients_by_sparsity(present, wanted):
    assert (
        MFACPruner("p", NAMES, sparsity=0.5, num_grads={0.0: 1, "0.5": 2, 0.75: 3}).gradients_wanted(present) == wanted
    )


def test_half_precision_weights_are_pruned_in_float32():
    model, data = prepared()
    model.bfloat16()
    masks, _ = run(OBSPruner("p", NAMES, sparsity=0.5, num_grads=8, fisher_block_size=10), model, data)
    assert model.fc.weight.dtype == masks["fc.weight"].dtype == torch.bfloat16
    assert torch.equal(model.fc.weight == 0, masks["fc.weight"] == 0)
    assert torch.isfinite(model.fc.weight).all()


def test_weights_that_do_not_change_the_loss_go_first_and_it_hardly_changes():
    """Inputs that are copies of each other: OBS gives the pruned one's part to the other, magnitude loses it."""
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    x = torch.cat([x, x], dim=1)
    model = nn.Linear(8, 1, bias=False)
    target = model(x).detach()
    noisy = [(x[i : i + 4], target[i : i + 4] + torch.randn(4, 1)) for i in range(0, 64, 4)]
    pruner = OBSPruner("p", sparsity=0.5, num_grads=64, fisher_block_size=8, num_recomputations=4)
    run(pruner, model, noisy)
    surgeon = functional.mse_loss(model(x).detach(), target)
    assert int((model.weight == 0).sum()) == 4
    assert float(surgeon) < 0.02 * float(target.square().mean())


def test_steps_from_before_a_weight_got_smaller_are_forgotten():
    buffer, model = GradientBuffer(), nn.Linear(4, 3, bias=False)
    for _ in range(2):
        model.weight.grad = torch.ones(3, 4)
        buffer.add(context(model), ["weight"], 5)
    assert buffer.count == 2
    smaller = nn.Linear(4, 2, bias=False)
    smaller.weight.grad = torch.ones(2, 4)
    buffer.add(context(smaller), ["weight"], 5)
    assert buffer.count == 1
    smaller.weight.grad = torch.full((2, 4), float("inf"))
    buffer.add(context(smaller), ["weight"], 5)
    smaller.weight.grad = None
    buffer.add(context(smaller), ["weight"], 5)
    assert buffer.count == 1
