"""From a pruner's masks to whole dependency groups: votes, ties, followers, frozen channels."""

import pytest
import torch
from group_models import Concat, Residual, filter_mask, graph_of
from torch import nn

from distiller_ng.errors import ArgumentError, GraphError, ScheduleWarning
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.pruning.groups import channel_masks, expand_to_groups, keep_one_of_each


def zeros(mask, dim=0):
    """Indices along ``dim`` where a mask is all zero."""
    others = [d for d in range(mask.dim()) if d != dim]
    dead = (mask == 0).all(dim=others) if others else mask == 0
    return dead.nonzero().flatten().tolist()


def test_everything_that_belongs_to_the_filters_follows():
    model = Residual()
    found = expand_to_groups(
        graph_of(model, 1, 2, 6, 6), {"c.weight": filter_mask(model.c.weight, 1, 4)}, {"c.weight": 0}
    )
    assert {name: zeros(mask) for name, mask in found.items() if name != "fc.weight"} == {
        "c.weight": [1, 4],
        "c.bias": [1, 4],
    }
    assert zeros(found["fc.weight"], 1) == [1, 4] and zeros(found["fc.weight"]) == []
    assert all(mask.shape == dict(model.named_parameters())[name].shape for name, mask in found.items())


def test_coupled_tensors_agree_by_votes_then_by_norm():
    model = Residual()
    for weight, sizes in ((model.a.weight, (1, 2, 3, 4)), (model.b.weight, (4, 3, 1, 2))):
        weight.data = torch.tensor(sizes, dtype=torch.float32).reshape(-1, 1, 1, 1).expand_as(weight).clone()
    masks = {"a.weight": filter_mask(model.a.weight, 0, 1), "b.weight": filter_mask(model.b.weight, 1, 2)}
    found = expand_to_groups(graph_of(model, 1, 2, 6, 6), masks, {"a.weight": 0, "b.weight": 0})
    # 1 has two votes; 0 and 2 have one each and norms 5 and 4 (each tensor's over its mean, the same here).
    assert zeros(found["a.weight"]) == zeros(found["b.weight"]) == [1, 2]
    assert zeros(found["b.weight"], 1) == zeros(found["c.weight"], 1) == [1, 2]
    assert zeros(found["a.bias"]) == zeros(found["bn.weight"]) == zeros(found["bn.bias"]) == [1, 2]
    weights = {"a.weight": model.a.weight, "b.weight": model.b.weight.flip(0)}
    other = expand_to_groups(graph_of(model, 1, 2, 6, 6), masks, {"a.weight": 0, "b.weight": 0}, weights)
    assert zeros(other["a.weight"]) == [0, 1]


def test_the_smallest_count_asked_for_is_taken():
    model = Residual()
    masks = {"a.weight": filter_mask(model.a.weight, 0, 1, 2), "b.weight": filter_mask(model.b.weight, 2)}
    found = expand_to_groups(graph_of(model, 1, 2, 6, 6), masks, {"a.weight": 0, "b.weight": 0})
    assert zeros(found["a.weight"]) == zeros(found["b.weight"]) == [2]
    masks["b.weight"] = torch.ones_like(model.b.weight)
    found = expand_to_groups(graph_of(model, 1, 2, 6, 6), masks, {"a.weight": 0, "b.weight": 0})
    assert all(bool((mask == 1).all()) for mask in found.values())


def test_untargeted_coupled_tensors_follow_the_one_that_is_targeted():
    model = Residual()
    found = expand_to_groups(graph_of(model, 1, 2, 6, 6), {"b.weight": filter_mask(model.b.weight, 3)}, {"b.weight": 0})
    assert zeros(found["a.weight"]) == zeros(found["b.weight"]) == [3]


def test_channels_of_a_reader_take_the_filters_of_the_producers():
    model = Concat()
    mask = filter_mask(model.after.weight, 1, 6, 11, dim=1)
    found = expand_to_groups(graph_of(model, 1, 2, 6, 6), {"after.weight": mask}, {"after.weight": 1})
    assert zeros(found["left.weight"]) == zeros(found["left.bias"]) == [1]
    assert zeros(found["right.weight"]) == [2, 7]
    assert zeros(found["after.weight"], 1) == [1, 6, 11]
    assert "after.bias" not in found


def test_half_masked_units_are_counted_by_their_share():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 1)
            self.fc = nn.Linear(4 * 9, 2)

        def forward(self, x):
            return self.fc(self.conv(x).flatten(1))

    model = Flat()
    mask = filter_mask(model.fc.weight, *range(9), *range(9, 16), 18, 19, dim=1)  # shares 1, 7/9, 2/9, 0
    found = expand_to_groups(graph_of(model, 1, 1, 3, 3), {"fc.weight": mask}, {"fc.weight": 1})
    assert zeros(found["conv.weight"]) == [0, 1]
    assert zeros(found["fc.weight"], 1) == list(range(18))


def test_outputs_are_never_masked_and_the_reason_is_given():
    model = Residual()
    with pytest.warns(
        ScheduleWarning, match="channels of 'fc.weight' .dimension 0. cannot be removed and stay: .*output"
    ):
        found = expand_to_groups(
            graph_of(model, 1, 2, 6, 6), {"fc.weight": filter_mask(model.fc.weight, 0)}, {"fc.weight": 0}
        )
    assert all(bool((mask == 1).all()) for mask in found.values())


def test_of_partly_frozen_channels_the_next_ones_go():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.free = nn.Conv1d(1, 3, 1)
            self.seen = nn.Conv1d(1, 2, 1)
            self.next = nn.Conv1d(5, 4, 1)

        def forward(self, x):
            seen = self.seen(x)
            return self.next(torch.cat([self.free(x), seen], dim=1)), seen

    model = Part()
    model.next.weight.data = torch.tensor([3.0, 1, 2, 0, 0]).reshape(1, 5, 1).repeat(4, 1, 1)
    graph, mask = graph_of(model, 1, 1, 5), filter_mask(model.next.weight, 3, 4, dim=1)
    with pytest.warns(ScheduleWarning, match="cannot be removed"):
        found = expand_to_groups(graph, {"next.weight": mask}, {"next.weight": 1})
    assert zeros(found["free.weight"]) == zeros(found["next.weight"], 1) == [1, 2]
    assert "seen.weight" not in found


def test_no_dimension_is_emptied():
    model = Residual()
    found = expand_to_groups(
        graph_of(model, 1, 2, 6, 6), {"a.weight": torch.zeros_like(model.a.weight)}, {"a.weight": 0}
    )
    assert len(zeros(found["a.weight"])) == 3
    graph = graph_of(model, 1, 2, 6, 6)
    channels = graph.channels_of("c.weight", 0).tolist()
    assert set(channels) - keep_one_of_each(graph, channels, {channels[2]: 1.0}) == {channels[2]}


def test_scaled_masks_go_on_scaling():
    model = Residual()
    mask = filter_mask(model.c.weight, 0) * 1.5
    found = expand_to_groups(graph_of(model, 1, 2, 6, 6), {"c.weight": mask}, {"c.weight": 0})
    assert found["c.weight"].unique().tolist() == [0.0, 1.5]
    assert found["fc.weight"].unique().tolist() == [0.0, 1.0]


def test_masks_have_their_parameters_dtype_and_buffers_get_none():
    model = Residual().to(torch.bfloat16)
    graph = graph_of(model.float(), 1, 2, 6, 6)
    model.to(torch.bfloat16)
    found = channel_masks(graph, graph.channels_of("a.weight", 0)[:1])
    assert {mask.dtype for mask in found.values()} == {torch.bfloat16}
    assert set(found) == {"a.weight", "a.bias", "bn.weight", "bn.bias", "b.weight", "c.weight"}


def test_the_reader_sees_the_same_function_as_the_model_with_zeroed_groups():
    model = Residual()
    graph = graph_of(model, 1, 2, 6, 6)
    found = expand_to_groups(graph, {"a.weight": filter_mask(model.a.weight, 0, 2)}, {"a.weight": 0})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in found:
                parameter.mul_(found[name])
    x = torch.randn(2, 2, 6, 6)
    expected = model(x)
    with torch.no_grad():  # what the readers hold for dead channels cannot matter
        model.c.weight[:, [0, 2]] = 100.0
    assert torch.equal(model(x), expected)


def test_mistakes_are_typed():
    model = Residual()
    graph = graph_of(model, 1, 2, 6, 6)
    mask = torch.ones_like(model.a.weight)
    with pytest.raises(ArgumentError, match="no dimension for 'a.weight'"):
        expand_to_groups(graph, {"a.weight": mask}, {})
    with pytest.raises(ArgumentError, match=r"shape \[1\], the parameter's is \[4, 2, 1, 1\]"):
        expand_to_groups(graph, {"a.weight": torch.ones(1)}, {"a.weight": 0})
    with pytest.raises(GraphError, match="dimension 2"):
        expand_to_groups(graph, {"a.weight": mask}, {"a.weight": 2})
    assert expand_to_groups(graph, {}, {}) == {}


def test_tied_weights_answer_to_each_of_their_names():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.mix = nn.Linear(4, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.mix(self.embed(x)).relu())

    model = Tied()
    graph = DependencyGraph.trace(model.eval(), torch.zeros(1, 3, dtype=torch.long))
    mask = filter_mask(model.head.weight, 2, dim=1)
    found = expand_to_groups(graph, {"head.weight": mask}, {"head.weight": 1})
    assert zeros(found["embed.weight"], 1) == [2] and "head.weight" not in found
    assert zeros(found["mix.weight"]) == zeros(found["mix.weight"], 1) == [2]


def test_masks_keep_the_layout_of_their_parameters():
    model = Residual().to(memory_format=torch.channels_last)
    mask = filter_mask(model.b.weight, 1)
    found = expand_to_groups(graph_of(model, 1, 2, 6, 6), {"b.weight": mask}, {"b.weight": 0})
    assert found["b.weight"].is_contiguous(memory_format=torch.channels_last)
    assert zeros(found["a.weight"]) == [1]
