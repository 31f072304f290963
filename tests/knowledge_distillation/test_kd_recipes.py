"""Distillation as recipes write it: hardness, layers one by one, a teacher that need not be named."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import distiller_ng as distiller
from distiller_ng.errors import ArgumentError
from distiller_ng.knowledge_distillation.distiller import KnowledgeDistiller
from distiller_ng.knowledge_distillation.per_layer import PerLayerDistiller


def net(width=8):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 4, 3))


def loss_of(student, teacher, section, x, y):
    """What training adds up for one minibatch."""
    schedule = {
        "version": 1,
        "distillers": {"kd": section},
        "policies": [
            {
                "distiller": {"instance_name": "kd"},
                "starting_epoch": 0,
                "ending_epoch": -1,
                "frequency": 0,
                "trigger": "step",
            }
        ],
    }
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    scheduler = distiller.dict_config(student, optimizer, schedule, teachers={"t": teacher}, example_inputs=x)
    for _ in scheduler.epochs(1):
        for _ in scheduler.minibatches([0]):
            total = scheduler.backward(functional.cross_entropy(student(x), y))
            optimizer.step()
    return total, scheduler


def test_hardness_weighs_the_two_losses_and_the_only_teacher_is_taken():
    torch.manual_seed(0)
    student, teacher, x, y = net(), net(16), torch.randn(5, 1, 4, 4), torch.randint(3, (5,))
    section = {"class": "KnowledgeDistiller", **KnowledgeDistiller.from_recipe({"hardness": 0.3}, print)}
    total, _ = loss_of(student, teacher, section, x, y)
    soft = [functional.log_softmax(m(x) / 2, dim=1) for m in (student, teacher)]
    divergence = (soft[1].exp() * (soft[1] - soft[0])).sum(1).mean()
    expected = 0.7 * functional.cross_entropy(student(x), y) + 0.3 * 4 * divergence
    torch.testing.assert_close(total, expected.detach())


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({}, {"loss_weights": {"distill": 0.5, "student": 0.5}, "temperature": 2.0}),
        ({"hardness": 1, "temperature": 5.5}, {"loss_weights": {"distill": 1.0, "student": 0.0}, "temperature": 5.5}),
        (
            {"hardness": 0.0, "output_keys": [], "teacher_input_keys": ["ids"]},
            {"loss_weights": {"distill": 0.0, "student": 1.0}, "temperature": 2.0, "teacher_input_keys": ["ids"]},
        ),
    ],
)
def test_properties_become_arguments_and_return(properties, expected):
    found = KnowledgeDistiller.from_recipe(properties, print)
    assert found == expected
    back = KnowledgeDistiller.to_recipe({**found, "teacher": "t"})
    assert back["hardness"] == properties.get("hardness", 0.5) and "teacher" not in back
    assert back["temperature"] == expected["temperature"]


@pytest.mark.parametrize("hardness", [1.5, -0.1, "much", True])
def test_a_hardness_is_a_share(hardness):
    with pytest.raises(ArgumentError) as caught:
        KnowledgeDistiller.from_recipe({"hardness": hardness}, print)
    assert caught.value.argument == ("hardness",)


def test_layers_one_by_one():
    torch.manual_seed(0)
    student, teacher, x, y = net(), net(), torch.randn(5, 1, 4, 4), torch.randint(3, (5,))
    section = {"class": "PerLayerDistiller", "gain": 0.5}
    total, _ = loss_of(student, teacher, section, x, y)
    ours, theirs = (student[0](x), student(x)), (teacher[0](x), teacher(x))
    terms = [(s - t).square().mean() / (t.square().mean() + 1e-6) for s, t in zip(ours, theirs, strict=True)]
    expected = functional.cross_entropy(student(x), y) + 0.5 * sum(terms)
    torch.testing.assert_close(total, expected.detach())


def test_one_list_of_layers_stands_for_both_and_projections_are_made_where_channels_differ():
    student, teacher, x, y = net(), net(16), torch.randn(5, 1, 4, 4), torch.randint(3, (5,))
    section = {"class": "PerLayerDistiller", "student_layer_names": ["0"]}
    total, scheduler = loss_of(student, teacher, section, x, y)
    assert torch.isfinite(total) and len(scheduler.optimizer.param_groups) == 2
    other = PerLayerDistiller("kd", None, {"t": teacher}, teacher_layer_names=["0"])
    assert [(str(p.student[0]), str(p.teacher[0])) for p in other.pairs] == [("0", "0")]


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"student_layer_names": ["0", "3"], "teacher_layer_names": ["0"]}, "student_layer_names"),
        ({"student_layer_names": "0"}, "student_layer_names"),
        ({"teacher_layer_names": [0]}, "teacher_layer_names"),
    ],
)
def test_lists_that_do_not_pair_up(settings, where):
    with pytest.raises(ArgumentError) as caught:
        PerLayerDistiller("kd", net(), {"t": net()}, **settings)
    assert caught.value.argument[0] == where
    with pytest.raises(ArgumentError, match="have 2 and 1"):
        PerLayerDistiller("kd", net(), {"t": nn.Sequential(nn.Conv2d(1, 2, 3))})


def test_with_several_teachers_one_must_be_named():
    with pytest.raises(ArgumentError, match="teacher is missing"):
        KnowledgeDistiller("kd", None, {"a": net(), "b": net()})
    assert KnowledgeDistiller("kd", None, {"a": net()}).sources[0].name == "a"


def test_hardness_written_as_text():
    found = KnowledgeDistiller.from_recipe({"hardness": "2.5e-1"}, pytest.fail)
    assert found["loss_weights"] == {"distill": 0.25, "student": 0.75}
    with pytest.raises(ArgumentError, match="hardness is a number from 0 to 1, got 'hard'"):
        KnowledgeDistiller.from_recipe({"hardness": "hard"}, pytest.fail)
