"""Every importance against a float64 reference over whole groups; sampling per optimizer step; resume."""

import copy

import numpy as np
import pytest
import torch
from group_models import Concat, Residual, Separable, graph_of
from pruning_helpers import context
from torch import nn

from distiller_ng.errors import ArgumentError, CalibrationError, CheckpointError, GraphError
from distiller_ng.graph.provider import ModelGraph
from distiller_ng.pruning import IMPORTANCES, GroupPruner
from distiller_ng.pruning._families import families_of
from distiller_ng.pruning.importance import (
    ActivationImportance,
    BNScaleImportance,
    GeometricMedianImportance,
    GradientMagnitudeImportance,
    HessianDiagonalImportance,
    Importance,
    L1Importance,
    L2Importance,
    RandomImportance,
    ShapleyImportance,
    TaylorImportance,
    as_importance,
)

SHAPE = (1, 2, 6, 6)
# Residual's entries of channel i, by hand: (parameter, dimension) of both groups.
SUM = [("a.weight", 0), ("a.bias", 0), ("bn.weight", 0), ("bn.bias", 0), ("b.weight", 0), ("b.weight", 1)]
SUM += [("c.weight", 1)]
C = [("c.weight", 0), ("c.bias", 0), ("fc.weight", 1)]


def prepared():
    model = Residual()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def reference(model, entries, shares, combine=sum):
    """``combine`` over the group's tensors of ``entries(parameter)`` summed over everything but the channel."""
    parameters = dict(model.named_parameters())
    count = parameters[shares[0][0]].shape[shares[0][1]]
    scores = []
    for channel in range(count):
        parts = [entries(parameters[name]).double().select(dim, channel).sum() for name, dim in shares]
        scores.append(float(combine([part.detach() for part in parts])))
    return np.array(scores)


def scores_of(importance, model, graph, tensor, ctx=None):
    found = importance.scores(graph, ctx)
    return np.array([found[int(channel)] for channel in graph.channels_of(tensor, 0)])


@pytest.mark.parametrize("shares", [SUM, C], ids=["sum", "c"])
@pytest.mark.parametrize(
    ("importance", "entries", "combine"),
    [
        (L1Importance(normalize="none"), torch.abs, sum),
        (L1Importance(normalize="none", aggregate="max"), torch.abs, max),
        (L1Importance(normalize="none", aggregate="mean"), torch.abs, lambda parts: sum(parts) / len(parts)),
        (L2Importance(normalize="none"), torch.square, lambda parts: sum(part.sqrt() for part in parts)),
    ],
    ids=["l1", "l1-max", "l1-mean", "l2"],
)
def test_norms_are_taken_over_the_whole_group(importance, entries, combine, shares):
    model = prepared()
    found = scores_of(importance, model, graph_of(model, *SHAPE), shares[0][0])
    assert found == pytest.approx(reference(model, entries, shares, combine), rel=1e-6)


@pytest.mark.parametrize(("normalize", "by"), [("mean", np.mean), ("max", np.max), ("sum", np.sum)])
def test_normalisation_divides_by_a_statistic_of_the_family(normalize, by):
    model = prepared()
    graph = graph_of(model, *SHAPE)
    for shares in (SUM, C):
        raw = reference(model, torch.abs, shares)
        found = scores_of(L1Importance(normalize=normalize), model, graph, shares[0][0])
        assert found == pytest.approx(raw / by(raw), rel=1e-6)


def test_families_are_the_channels_of_the_same_layers():
    keys = {family.name: len(family) for family in families_of(graph_of(Concat(), *SHAPE))}
    assert keys == {"left.weight": 4, "right.weight": 8, "after.weight": 8}


def test_bn_scale_sums_the_scales_of_the_norms_and_needs_one():
    model = Separable()
    norms = [model.blocks[0][4], model.blocks[1][1]]  # behind the pointwise, and behind the depthwise it feeds
    for norm in norms:
        nn.init.normal_(norm.weight)
    expected = (norms[0].weight.abs() + norms[1].weight.abs()).detach().numpy()
    found = scores_of(BNScaleImportance(), model, graph_of(model, 1, 3, 12, 12), "blocks.0.3.weight")
    assert found == pytest.approx(expected, rel=1e-6)
    model = prepared()
    with pytest.raises(GraphError, match="no norm with a scale stands behind 'c.weight'"):
        BNScaleImportance().scores(graph_of(model, *SHAPE))


def test_geometric_median_sums_distances_to_the_other_filters():
    model = prepared()
    found = scores_of(GeometricMedianImportance(normalize="none"), model, graph_of(model, *SHAPE), "a.weight")
    expected = np.zeros(4)
    for weight in (model.a.weight, model.b.weight):
        rows = weight.detach().double().flatten(1)
        expected += torch.linalg.vector_norm(rows[:, None] - rows[None], dim=2).sum(dim=1).numpy()
    assert found == pytest.approx(expected, rel=1e-6)

    line = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1))
    line[0].weight.data = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    found = scores_of(GeometricMedianImportance(normalize="none"), line, graph_of(line, 1, 2), "0.weight")
    assert found == pytest.approx([15, 10, 15])


def test_random_scores_follow_the_seed():
    model = prepared()
    graph = graph_of(model, *SHAPE)
    torch.manual_seed(5)
    first = RandomImportance().scores(graph)
    second = RandomImportance().scores(graph)
    torch.manual_seed(5)
    assert first == RandomImportance().scores(graph) and first != second
    assert all(0 <= score <= 1 for score in first.values())


GRADIENTS = [
    (TaylorImportance, lambda w, g: (w * g).abs()),
    (GradientMagnitudeImportance, lambda w, g: g.abs()),
    (HessianDiagonalImportance, lambda w, g: (w * g).square() / 2),
]


@pytest.mark.parametrize(("cls", "formula"), GRADIENTS)
def test_gradients_that_are_there_are_used(cls, formula):
    model = prepared()
    model(torch.randn(3, *SHAPE[1:])).square().mean().backward()
    found = scores_of(cls(normalize="none"), model, graph_of(model.train(), *SHAPE), "a.weight")
    expected = reference(model, lambda p: formula(p.detach().double(), p.grad.double()), SUM)
    assert found == pytest.approx(expected, rel=1e-5)
    assert model.a.weight.grad is not None


@pytest.mark.parametrize(("cls", "formula"), GRADIENTS)
@pytest.mark.parametrize("known", [True, False], ids=["optimizer", "any optimizer"])
@pytest.mark.parametrize("micro", [1, 2])
def test_samples_are_taken_once_a_step(cls, formula, known, micro):
    """The mean over steps; micro-batches of one step are one sample."""
    model, data = prepared(), torch.randn(4, 6, *SHAPE[1:])
    model.bn.eval()  # batch statistics would differ between whole and split batches
    graph = ModelGraph(model, data[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    importance = cls(normalize="none")
    importance.start(model, graph.dependency, optimizer if known else None)
    expected = []
    for batch in data:
        model(batch).square().mean().backward()
        expected.append(reference(model, lambda p: formula(p.detach().double(), p.grad.double()), SUM))
        optimizer.zero_grad()
        for part in batch.chunk(micro):
            (model(part).square().mean() / micro).backward()
        optimizer.step()
        optimizer.zero_grad()
    importance.stop()
    assert not optimizer._optimizer_step_pre_hooks
    found = scores_of(importance, model, graph.dependency(), "a.weight")
    assert found == pytest.approx(np.mean(expected, axis=0), rel=1e-4)
    optimizer.zero_grad()
    model(data[0]).sum().backward()
    optimizer.step()  # after stop() nothing is sampled
    assert scores_of(importance, model, graph.dependency(), "a.weight") == pytest.approx(found)


@pytest.mark.parametrize(("cls", "formula"), GRADIENTS)
def test_by_hand_every_backward_pass_is_a_sample(cls, formula):
    """Gradients may pile up: each pass counts by itself, not as a part of the sum."""
    model, data = prepared().eval(), torch.randn(3, 6, *SHAPE[1:])
    pruner = GroupPruner("p", importance=cls(normalize="none"), sparsity=0.5)
    expected = []
    for batch in data:
        model.zero_grad()
        model(batch).square().mean().backward()
        expected.append(reference(model, lambda p: formula(p.detach().double(), p.grad.double()), SUM))
    model.zero_grad()
    with pruner.observing(model):
        for batch in data:
            model(batch).square().mean().backward()
    found = scores_of(pruner.importance, model, graph_of(model, *SHAPE), "a.weight")
    assert found == pytest.approx(np.mean(expected, axis=0), rel=1e-4)
    assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_scaled_gradients_count_unscaled_and_skipped_steps_not_at_all():
    model, data = prepared(), torch.randn(6, *SHAPE[1:])
    graph = ModelGraph(model, data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    importance = TaylorImportance()
    importance.start(model, graph.dependency, optimizer)
    for bad in (False, True, False):
        optimizer.zero_grad()
        scaler.scale(model(data).square().mean()).backward()
        if bad:
            model.b.weight.grad[0, 0, 0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
    importance.stop()
    optimizer.zero_grad()
    model(data).square().mean().backward()
    expected = reference(model, lambda p: (p.detach().double() * p.grad.double()).abs(), SUM)
    assert scores_of(importance, model, graph.dependency(), "a.weight") == pytest.approx(expected, rel=1e-4)


def test_without_gradients_the_error_says_what_to_do():
    model = prepared()
    with pytest.raises(CalibrationError, match="has seen no gradients.*epoch before"):
        TaylorImportance().scores(graph_of(model, *SHAPE))
    with pytest.raises(CalibrationError, match="has seen nothing of the channels of 'a.weight'"):
        ActivationImportance().scores(graph_of(model, *SHAPE))


def seen(importance, model, batches, *, known=True):
    graph = ModelGraph(model, batches[0] if known else None)
    graph.watch()
    importance.start(model, lambda: graph.dependency() if graph.is_ready else None)
    with torch.no_grad():
        for batch in batches:
            model(batch)
    importance.stop()
    return graph.dependency()


def test_activations_are_those_the_next_layers_read():
    model, data = prepared().eval(), torch.randn(3, 5, *SHAPE[1:])
    importance = ActivationImportance(normalize="none")
    graph = seen(importance, model, list(data))
    read = {"b": [], "c": [], "fc": []}
    hooks = [
        getattr(model, name).register_forward_pre_hook(lambda m, args, name=name: read[name].append(args[0].double()))
        for name in read
    ]
    with torch.no_grad():
        for batch in data:
            model(batch)
    for hook in hooks:
        hook.remove()
    means = {name: torch.cat(values).abs().transpose(0, 1).flatten(1).mean(dim=1) for name, values in read.items()}
    assert scores_of(importance, model, graph, "a.weight") == pytest.approx((means["b"] + means["c"]).numpy() / 2)
    assert scores_of(importance, model, graph, "c.weight") == pytest.approx(means["fc"].numpy())
    assert not any(module._forward_hooks for module in model.modules())


def test_activations_begin_after_the_first_pass_where_inputs_are_not_known():
    model, data = prepared().eval(), torch.randn(3, 5, *SHAPE[1:])
    late, early = ActivationImportance(), ActivationImportance()
    graph = seen(late, model, list(data), known=False)
    seen(early, model, list(data[1:]))
    assert late.scores(graph) == pytest.approx(early.scores(graph))


def test_activations_of_grouped_transposed_and_flattened_channels():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(1, 4, 1)
            self.grouped = nn.Conv2d(4, 4, 1, groups=2)
            self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)
            self.fc = nn.Linear(2 * 16, 3)

        def forward(self, x):
            x = self.up(self.grouped(self.first(x).relu()).relu()).relu()
            return self.fc(x.flatten(1))

    model, data = Odd().eval(), torch.randn(7, 1, 2, 2)
    importance = ActivationImportance(normalize="none")
    graph = seen(importance, model, [data])
    with torch.no_grad():
        one = model.first(data).relu()
        two = model.grouped(one).relu()
        three = model.up(two).relu()
    found = importance.scores(graph)
    for tensor, dim, value in (("first.weight", 0, one), ("grouped.weight", 0, two), ("up.weight", 1, three)):
        channels = graph.channels_of(tensor, dim)
        means = value.abs().mean(dim=(0, 2, 3)).double().numpy()
        for channel in set(channels.tolist()) - graph.frozen:
            assert found[channel] == pytest.approx(means[channels == channel].mean(), rel=1e-5)


def test_shapley_shares_fairly_and_restores_the_model():
    """Filters 0 and 1 do the same work: the loss needs one of them; filter 2 is worth 3, filter 3 nothing."""

    def loss(model):
        alive = (model[0].weight.abs().sum(dim=1) > 0).double()
        assert not model.training
        return 1.0 * float(alive[:2].max() == 0) + 3.0 * float(alive[2] == 0)

    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1))
    graph = graph_of(model, 1, 2)
    model.train()
    before = copy.deepcopy(model.state_dict())
    versions = [parameter._version for parameter in model.parameters()]
    found = scores_of(ShapleyImportance(permutations=400, loss=loss), model, graph, "0.weight")
    assert found[2:] == pytest.approx([3.0, 0.0])
    assert found[:2] == pytest.approx([0.5, 0.5], abs=0.1)
    assert found.sum() == pytest.approx(4.0)  # what the whole layer is worth
    assert model.training and versions == [parameter._version for parameter in model.parameters()]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_shapley_without_a_loss_measures_the_outputs_on_the_example_inputs():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)).double()
    with torch.no_grad():
        model[1].weight[:, 1] = 0.0
    graph = ModelGraph(model, torch.randn(8, 3, dtype=torch.float64)).dependency()
    found = scores_of(ShapleyImportance(permutations=2), model, graph, "0.weight")
    assert found[1] == 0 and found.sum() == pytest.approx(1.0)


def test_shapley_refuses_what_it_cannot_use():
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1))
    with pytest.raises(CalibrationError, match="the loss is nan"):
        ShapleyImportance(loss=lambda model: float("nan")).scores(graph_of(model, 1, 2))
    with pytest.raises(ArgumentError, match="whole number from 1"):
        ShapleyImportance(permutations=0)


@pytest.mark.parametrize("name", ["taylor", "activation"])
def test_what_was_collected_survives_a_checkpoint(name, tmp_path):
    """Saved in the middle of the observed epoch: the resumed run ends with the same scores."""
    model, data = prepared(), torch.randn(4, 5, *SHAPE[1:])
    model.bn.eval()
    graph = ModelGraph(model, data[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    whole, first, second = (as_importance(name) for _ in range(3))

    def steps(batches):
        for batch in batches:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()

    whole.start(model, graph.dependency, optimizer)
    first.start(model, graph.dependency, optimizer)
    steps(data[:2])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    second.start(model, graph.dependency, optimizer)
    steps(data[2:])
    for importance in (whole, second):
        importance.stop()
    optimizer.zero_grad()
    assert second.scores(graph.dependency()) == pytest.approx(whole.scores(graph.dependency()))
    resumed = as_importance(name)
    resumed.load_state_dict(second.state_dict())
    assert resumed.scores(graph.dependency()) == second.scores(graph.dependency())
    first.stop()


def test_channels_removed_while_collecting_begin_it_anew():
    model, data = prepared(), torch.randn(2, 5, *SHAPE[1:])
    importance = TaylorImportance()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    graph = ModelGraph(model, data[0])
    importance.start(model, graph.dependency, optimizer)
    model(data[0]).square().mean().backward()
    optimizer.step()
    for parameter, dim in ((model.c.weight, 0), (model.c.bias, 0), (model.fc.weight, 1)):
        parameter.grad = None
        parameter.data = parameter.data.narrow(dim, 0, 4)
    model.c.out_channels, model.fc.in_features = 4, 4
    optimizer.zero_grad()
    model(data[1]).square().mean().backward()
    optimizer.step()
    importance.stop()
    expected = reference(model, lambda p: (p.detach().double() * p.grad.double()).abs(), C)
    assert scores_of(importance, model, graph.dependency(), "c.weight") == pytest.approx(expected, rel=1e-5)


def test_half_precision_scores_agree_with_wider_ones():
    model = prepared()
    graph = graph_of(model, *SHAPE)
    wide = L1Importance().scores(graph)
    model.to(torch.bfloat16)
    assert L1Importance().scores(graph) == pytest.approx(wide, rel=0.01)


def test_batch_norm_folded_weights_are_ranked_where_the_context_has_them():
    model = prepared()
    graph = graph_of(model, *SHAPE)
    ctx = context(model, ranking_weights={"a.weight": model.a.weight.detach() * 100})
    found = scores_of(L1Importance(normalize="none"), model, graph, "a.weight", ctx)
    plain = scores_of(L1Importance(normalize="none"), model, graph, "a.weight")
    assert found - plain == pytest.approx(99 * reference(model, torch.abs, SUM[:1]), rel=1e-4)


@pytest.mark.parametrize("name", IMPORTANCES.names())
def test_every_importance_prunes_by_name_and_keeps_its_state_plain(name, tmp_path):
    model = Separable()
    data = torch.randn(4, 3, 12, 12)
    pruner = GroupPruner("p", importance={"class": name}, target={"macs": 0.6}, scope="global")
    pruner.bind(context(model).parameters)
    with pruner.observing(model, data):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(data).square().mean().backward()
        optimizer.step()
    masks = {}
    for group in pruner.groups(context(model).parameters):
        masks.update(pruner.compute_masks(group, context(model, inputs=data)))
    assert 0.588 <= pruner.achieved["macs"] <= 0.6
    assert any(bool((mask == 0).any()) for mask in masks.values())
    torch.save(pruner.state_dict(), tmp_path / "p.pt")
    GroupPruner("p", importance=name, target={"macs": 0.6}).load_state_dict(
        torch.load(tmp_path / "p.pt", weights_only=True)
    )


def test_importances_of_ones_own_and_states_that_do_not_fit():
    class Index(Importance):
        def family_scores(self, family, graph, ctx):
            return np.arange(len(family), dtype=np.float64)

    own = Index()
    assert as_importance(own) is own
    assert sorted(own.scores(graph_of(prepared(), *SHAPE)).values())[0] == 0
    with pytest.raises(CheckpointError, match="keeps no state"):
        L1Importance().load_state_dict({"samples": 1})
    with pytest.raises(ArgumentError, match="Did you mean 'taylor'"):
        as_importance("tailor")
