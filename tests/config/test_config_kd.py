"""Distillers in schedules: what a file says equals what Python and flags say; every mistake with its place."""

from __future__ import annotations

import argparse
import copy
import warnings

import pytest
import torch
from config_helpers import Net
from torch import nn
from torch.nn import functional

import distiller_ng as distiller
from distiller_ng.knowledge_distillation import KnowledgeDistiller, MutualDistiller
from distiller_ng.knowledge_distillation.distiller import DISTILLERS
from distiller_ng.knowledge_distillation.per_layer import PerLayerDistiller

X, Y = torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 3] * 2)


class Wide(Net):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 6, 3)


@pytest.fixture
def models():
    torch.manual_seed(0)
    return Net(), Wide()


def load(tmp_path, models, body, policy="", **options):
    """A schedule with one distiller called kd."""
    path = tmp_path / "kd.yaml"
    policy = policy or "    starting_epoch: 0\n    ending_epoch: 4\n"
    path.write_text(f"distillers:\n  kd:\n{body}policies:\n  - distiller:\n      instance_name: kd\n{policy}")
    optimizer = torch.optim.SGD(models[0].parameters(), lr=0.1)
    options = {"teachers": {"wide": models[1]}, "example_inputs": (X[:1],), **options}
    return distiller.file_config(models[0], optimizer, path, **options)


def first_losses(scheduler, model, steps=3):
    losses = []
    for _ in scheduler.epochs(1):
        for batch in scheduler.minibatches([X] * steps):
            scheduler.optimizer.zero_grad()
            losses.append(float(scheduler.backward(functional.cross_entropy(model(batch), Y))))
            scheduler.optimizer.step()
    return losses


def test_yaml_python_and_flags_give_the_same_losses(tmp_path, models):
    losses = {}
    student, teacher = copy.deepcopy(models)
    body = (
        "    class: KnowledgeDistiller\n    teacher: wide\n    temperature: 4.0\n"
        "    loss_weights: {distill: 0.7, student: 0.2, teacher: 0.1}\n"
    )
    losses["yaml"] = first_losses(load(tmp_path, (student, teacher), body), student)

    student, teacher = copy.deepcopy(models)
    scheduler = distiller.CompressionScheduler(student, optimizer=torch.optim.SGD(student.parameters(), lr=0.1))
    weights = distiller.DistillationLossWeights(0.7, 0.2, 0.1)
    scheduler.add_policy(
        distiller.KnowledgeDistillationPolicy(student, teacher, 4.0, weights), starting_epoch=0, ending_epoch=4
    )
    losses["python"] = first_losses(scheduler, student)

    student, teacher = copy.deepcopy(models)
    parser = argparse.ArgumentParser()
    distiller.knowledge_distillation.add_distillation_args(parser)
    args = parser.parse_args(
        ["--kd-teacher", "wide", "--kd-temp", "4", "--kd-dw", "0.7", "--kd-sw", "0.2", "--kd-tw", "0.1"]
    )
    dlw = distiller.DistillationLossWeights(args.kd_distill_wt, args.kd_student_wt, args.kd_teacher_wt)
    scheduler = distiller.CompressionScheduler(student, optimizer=torch.optim.SGD(student.parameters(), lr=0.1))
    policy = distiller.KnowledgeDistillationPolicy(student, teacher, args.kd_temp, dlw)
    scheduler.add_policy(policy, starting_epoch=args.kd_start_epoch, ending_epoch=4, frequency=1)
    losses["flags"] = first_losses(scheduler, policy.forward)
    assert losses["yaml"] == losses["python"] == losses["flags"]
    assert len(set(losses["yaml"])) == 3


def test_layers_in_yaml_and_in_python(tmp_path, models):
    body = """\
    class: KnowledgeDistiller
    teacher: wide
    logits: none
    layers:
      conv1: conv1
      conv2: {teacher: conv2, loss: AT, gain: {0: 100.0, 2: 10.0}}
    loss: mse
    gain: 0.5
    normalize: false
    spatial_weight: none
"""
    student, teacher = copy.deepcopy(models)
    scheduler = load(tmp_path, (student, teacher), body)
    assert [tuple(p.shape) for p in scheduler.optimizer.param_groups[1]["params"]] == [(8, 4, 1, 1)]
    from_yaml = first_losses(scheduler, student)
    student, teacher = copy.deepcopy(models)
    scheduler = distiller.CompressionScheduler(student, optimizer=torch.optim.SGD(student.parameters(), lr=0.1))
    layers = {"conv1": "conv1", "conv2": {"teacher": "conv2", "loss": "AT", "gain": {0: 100.0, 2: 10.0}}}
    policy = distiller.KnowledgeDistillationPolicy(
        student,
        teacher,
        1.0,
        distiller.DistillationLossWeights(0, 1, 0),
        logits=None,
        layers=layers,
        gain=0.5,
        example_inputs=X[:1],
    )
    scheduler.add_policy(policy, starting_epoch=0, ending_epoch=4)
    assert first_losses(scheduler, student) == from_yaml


@pytest.mark.parametrize(
    "teacher",
    [
        "teacher: self",
        "teacher: {ema: 0.99}",
        "ema: 0.99",
        "teacher: [wide, self]",
        "teacher: [wide, {ema: 0.9}]\n    teacher_weights: [3, 1]",
    ],
)
def test_every_way_to_name_a_teacher(tmp_path, models, teacher):
    scheduler = load(tmp_path, models, f"    class: KnowledgeDistiller\n    {teacher}\n")
    assert len(first_losses(scheduler, models[0])) == 3


def test_the_only_teacher_need_not_be_named(tmp_path, models):
    scheduler = load(tmp_path, models, "    class: KnowledgeDistiller\n    temperature: 2.0\n")
    assert scheduler.schedule[0][0].teacher is models[1]


def test_weights_over_the_epochs_as_written(tmp_path, models):
    body = "    class: KnowledgeDistiller\n    teacher: wide\n    loss_weights:\n      distill: {0: 1.0, 2.5: 0.5}\n      student: 0.5\n"
    scheduler = load(tmp_path, models, body)
    assert scheduler.schedule[0][0].loss_wts == ({0: 1.0, 2.5: 0.5}, 0.5, 0)


def test_two_models_together(tmp_path, models):
    scheduler = load(tmp_path, models, "    class: MutualDistiller\n    peer: wide\n")
    assert len(scheduler.optimizer.param_groups) == 2 and len(first_losses(scheduler, models[0])) == 3


def test_dict_config_and_a_component_alone(tmp_path, models):
    definition = {"class": "KnowledgeDistiller", "teacher": "wide"}
    plan = {"distillers": {"kd": definition}, "policies": [{"distiller": {"instance_name": "kd"}, "epochs": [0]}]}
    scheduler = distiller.dict_config(models[0], None, plan, teachers={"wide": models[1]})
    assert isinstance(scheduler.schedule[0][0], distiller.KnowledgeDistillationPolicy)
    load(tmp_path, models, "    class: KnowledgeDistiller\n    teacher: wide\n    temperature: 3.0\n")
    made = distiller.config_component_from_file_by_class(
        models[0], tmp_path / "kd.yaml", "KnowledgeDistiller", teachers={"wide": models[1]}
    )
    assert isinstance(made, KnowledgeDistiller) and made.temperature == 3.0 and made.name == "kd"


BAD = [
    ("teacher: wde", 4, "kd.teacher", "no teacher is called 'wde'. Did you mean 'wide'"),
    ("teacher: [wide, nobody]", 4, "kd.teacher[1]", "no teacher is called 'nobody'"),
    ("teacher: wide\n    temprature: 2.0", 5, "kd.temprature", "Did you mean 'temperature'"),
    ("teacher: wide\n    temperature: '2'", 5, "kd.temperature", "write it without quotes"),
    ("teacher: wide\n    temperature: 0", 5, "kd.temperature", "above 0"),
    ("teacher: wide\n    loss_weights: {distil: 1}", 5, "kd.loss_weights.distil", "Did you mean 'distill'"),
    (
        "teacher: wide\n    loss_weights: [0.5, -0.5]",
        5,
        "kd.loss_weights.student",
        "student must be a finite number from 0",
    ),
    ("teacher: wide\n    logits: KLL", 5, "kd.logits", "Did you mean 'KL'"),
    (
        "teacher: wide\n    layers: {conv: conv1}",
        5,
        "kd.layers.conv",
        "the student has no layer 'conv'. Did you mean 'conv2' or 'conv1'",
    ),
    ("teacher: wide\n    layers: {conv1: {teacher: cnv1}}", 5, "kd.layers.conv1", "the teacher has no layer 'cnv1'"),
    (
        "teacher: wide\n    layers:\n      - conv1\n      - {student: conv2, teacher: fc2}",
        7,
        "kd.layers[1].teacher",
        "Did you mean 'fc'",
    ),
    ("teacher: wide\n    layers: {conv1: {teacher: conv1, gane: 2}}", 5, "kd.layers.conv1.gane", "Did you mean 'gain'"),
    ("teacher: wide\n    layers: {conv1: conv2}", 5, "kd.layers.conv1", "differ in more than their channels"),
    (
        "teacher: wide\n    layers: {conv1: conv1}\n    project: false\n    loss: AT\n    normalize: true",
        8,
        "kd.normalize",
        "take MSE or L1",
    ),
    ("teacher: {ema: 1.5}", 4, "kd.teacher.ema", "below 1"),
    ("teacher: wide\n    autocast: fp16", 5, "kd.autocast", "'float16' or 'bfloat16'"),
]


@pytest.mark.parametrize(("body", "line", "path", "message"), BAD)
def test_mistakes_have_their_place(tmp_path, models, body, line, path, message):
    before = copy.deepcopy([m.state_dict() for m in models])
    with pytest.raises(distiller.ScheduleError) as caught:
        load(tmp_path, models, f"    class: KnowledgeDistiller\n    {body}\n")
    (problem,) = caught.value.problems
    assert (problem.line, problem.path) == (line, f"distillers.{path}")
    assert message in problem.message
    for model, state in zip(models, before, strict=True):
        assert not any(module._forward_hooks for module in model.modules()) and model.training
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_several_mistakes_at_once(tmp_path, models):
    body = "    class: KnowledgeDistiller\n    teacher: wide\n    temperature: -1\n    layers: {conv9: conv1, conv1: conv8}\n    loss: MSS\n"
    with pytest.raises(distiller.ScheduleError) as caught:
        load(tmp_path, models, body)
    assert [p.line for p in caught.value.problems] == [5, 6, 6, 7]


def test_teachers_that_are_no_modules(tmp_path, models):
    for teachers in ({"wide": "resnet"}, {1: models[1]}):
        with pytest.raises(distiller.ArgumentError, match="teachers maps names to modules"):
            load(tmp_path, models, "    class: KnowledgeDistiller\n    teacher: self\n", teachers=teachers)


def test_a_capacity_gap_warns_with_its_place(tmp_path):
    small, large = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 100), nn.Linear(100, 4))
    with pytest.warns(distiller.ScheduleWarning, match=r"kd.yaml:2:\d+: distillers.kd: teacher 'wide' has 45 times"):
        load(tmp_path, (small, large), "    class: KnowledgeDistiller\n    teacher: wide\n", example_inputs=None)


def test_policy_arguments_are_refused(tmp_path, models):
    policy = "      args: {temperature: 2.0}\n    epochs: [0]\n"
    with pytest.raises(distiller.ScheduleError, match="a distiller policy has no argument 'temperature'"):
        load(tmp_path, models, "    class: KnowledgeDistiller\n    teacher: wide\n", policy)


def test_loading_draws_no_random_numbers_and_warns_of_nothing(tmp_path, models):
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path, models, "    class: KnowledgeDistiller\n    teacher: wide\n    layers: {conv1: conv1}\n")
    assert torch.equal(state, torch.get_rng_state())


def test_the_registered_distillers():
    assert {entry.name: entry.cls for entry in DISTILLERS} == {
        "KnowledgeDistiller": KnowledgeDistiller,
        "MutualDistiller": MutualDistiller,
        "PerLayerDistiller": PerLayerDistiller,
    }
