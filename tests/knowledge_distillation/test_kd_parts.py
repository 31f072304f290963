"""The small parts of distillation: weights over time, structures, projections, pairs, flags, labels in a graph."""

from __future__ import annotations

import argparse
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from distiller_ng.errors import ArgumentError, CheckpointError
from distiller_ng.knowledge_distillation import DistillationLossWeights, add_distillation_args
from distiller_ng.knowledge_distillation.capture import Call
from distiller_ng.knowledge_distillation.labels import LabelSource
from distiller_ng.knowledge_distillation.pairs import PairOptions, read_pairs
from distiller_ng.knowledge_distillation.projections import Projections, projection_dim
from distiller_ng.knowledge_distillation.structures import batch_size, find_output, named_tensors, the_logits
from distiller_ng.knowledge_distillation.weights import read_loss_weights, weight_at

# -- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "values"),
    [
        (0.3, {0: 0.3, 99: 0.3}),
        ({0: 1.0, 10: 0.5}, {0: 1.0, 5: 0.75, 10: 0.5, 50: 0.5}),
        ({4: 0.2, 2: 1.0}, {0: 1.0, 2: 1.0, 2.5: 0.8, 3: 0.6, 4: 0.2, 5: 0.2}),
        ({7: 0.5}, {0: 0.5, 7: 0.5, 8: 0.5}),
        (lambda epoch: epoch / 10, {0: 0.0, 5: 0.5, 7.5: 0.75}),
    ],
)
def test_weights_over_time(weight, values):
    for epoch, value in values.items():
        assert weight_at(weight, epoch) == pytest.approx(value)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (None, (0.5, 0.5, 0)),
        ([0.7, 0.3], (0.7, 0.3, 0)),
        ((1, 2, 3), (1, 2, 3)),
        ({"student": 0.2, "distill": 0.8}, (0.8, 0.2, 0)),
        ({"distill": {"0": 1, "2.5": 0.5}, "student": 1, "teacher": 0.1}, ({0: 1, 2.5: 0.5}, 1, 0.1)),
    ],
)
def test_loss_weights_as_written(written, expected):
    weights = read_loss_weights(written, has_logits=True)
    assert weights == expected and isinstance(weights, DistillationLossWeights)
    assert read_loss_weights(None, has_logits=False) == (0, 1, 0)


@pytest.mark.parametrize("weight", [{}, {"a": 1}, {0: "x"}, {-1: 0.5}, True, None, float("inf"), -0.1, "0.5"])
def test_weights_that_are_none(weight):
    with pytest.raises(ArgumentError) as caught:
        read_loss_weights([weight, 0.5, 0], has_logits=True)
    assert caught.value.argument == ("loss_weights", "distill")


def test_a_function_that_gives_no_weight():
    with pytest.raises(ArgumentError, match="finite number from 0"):
        weight_at(lambda epoch: -1.0, 0)


# -- structures -------------------------------------------------------------------------------------------------------


@dataclass
class Output:
    logits: Any
    states: Any = None


Pair = namedtuple("Pair", ["first", "second"])
T = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("output", "path"),
    [
        (T, ""),
        ({"a": {"b": T}}, "a.b"),
        ({"a": (1, T)}, "a.1"),
        ([T, 2], "0"),
        ([T, 2], 0),
        (Output(T), "logits"),
        (Output(None, [0, {"x": T}]), "states.1.x"),
        (Pair(1, T), "second"),
        (Pair(1, T), "1"),
        ({3: T}, "3"),
    ],
)
def test_paths_into_outputs(output, path):
    assert find_output(output, path, whose="student") is T


@pytest.mark.parametrize(
    ("output", "path", "message"),
    [
        ({"logits": T}, "logit", "the student's output has no 'logit'.*Did you mean 'logits'"),
        (T, "x", "It is a Tensor"),
        ((T, T), "2", "no '2'"),
        (Output(T), "states", "it is None"),
    ],
)
def test_paths_that_lead_nowhere(output, path, message):
    with pytest.raises(ArgumentError, match=message):
        find_output(output, path, whose="student", argument=("output_keys",))


@pytest.mark.parametrize(
    "output", [T, {"logits": T, "loss": torch.ones(())}, Output(T), (T,), {"scores": T}, Output(T, (T,))]
)
def test_where_the_logits_are(output):
    assert the_logits(output, [], whose="student")[0] is T


@pytest.mark.parametrize("output", [(T, T), {"a": T, "b": T}, [], None, {"a": [T, T]}, Pair(T, 1)])
def test_logits_that_have_to_be_named(output):
    with pytest.raises(ArgumentError, match="say what to compare, output_keys"):
        the_logits(output, [], whose="student")


def test_sizes_and_names_of_tensors():
    assert batch_size({"loss": torch.ones(()), "logits": torch.zeros(5, 2)}) == 5 and batch_size("x") == 1
    found = dict(named_tensors({"a": T, "b": [T, {"c": T}], "ids": torch.zeros(2, dtype=torch.int64)}))
    assert list(found) == ["a", "b.0", "b.1.c"]
    assert list(dict(named_tensors(T))) == [""]


# -- projections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teacher", "alignment", "dim"),
    [
        ([2, 8], [2, 16], "shape", 1),
        ([2, 8], [2, 8], "shape", 0),
        ([2, 5, 8], [2, 5, 16], "shape", 2),
        ([2, 8, 5], [2, 16, 5], "shape", 1),
        ([2, 8, 4, 4], [2, 16, 4, 4], "shape", 1),
        ([2, 4, 4, 8], [2, 4, 4, 16], "shape", 3),
        ([2, 8, 4, 4, 4], [2, 9, 4, 4, 4], "shape", 1),
        ([2, 8, 4, 4], [2, 16, 8, 8], "channels", 1),
        ([2, 8, 4, 4], [2, 16, 8, 8], "positions", 0),
        ([2, 8], [2, 3, 4], "batch", 0),
    ],
)
def test_the_dimension_that_is_projected(student, teacher, alignment, dim):
    assert projection_dim(student, teacher, alignment) == dim


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ([2, 8, 4, 4], [2, 16, 8, 8]),
        ([2, 8, 4, 4], [2, 8, 8, 4]),
        ([2, 8], [2, 8, 1]),
        ([2], [2]),
        ([2, 3, 8], [2, 4, 9]),
    ],
)
def test_shapes_without_a_projection(student, teacher):
    with pytest.raises(ArgumentError, match=r"student \[2"):
        projection_dim(student, teacher, "shape")


@pytest.mark.parametrize(
    ("student", "teacher", "kind"),
    [
        ((2, 3), (2, 5), nn.Linear),
        ((2, 7, 3), (2, 7, 5), nn.Linear),
        ((2, 3, 7), (2, 5, 7), nn.Conv1d),
        ((2, 3, 7, 7), (2, 5, 7, 7), nn.Conv2d),
        ((2, 3, 2, 2, 2), (2, 5, 2, 2, 2), nn.Conv3d),
    ],
)
def test_kinds_values_and_state_of_projections(student, teacher, kind):
    projections, other = Projections(), Projections()
    features = torch.randn(student)
    before = torch.get_rng_state()
    assert projections.fit("a", features, torch.zeros(teacher), "shape")
    assert not projections.fit("a", features, torch.zeros(teacher), "shape")
    assert torch.equal(before, torch.get_rng_state())
    module = projections.modules["a"]
    assert type(module) is kind and module.weight.abs().max() <= 3**-0.5
    assert projections.apply("a", features).shape == teacher
    other.fit("a", features, torch.zeros(teacher), "shape")
    assert torch.equal(other.modules["a"].weight, module.weight)  # the same on every rank and in every run
    other.fit("b", features, torch.zeros(teacher), "shape")
    assert not torch.equal(other.modules["b"].weight, module.weight)
    with torch.no_grad():
        module.weight.add_(1.0)
    fresh = Projections()
    fresh.load_state_dict(projections.state_dict(), torch.device("cpu"))
    assert type(fresh.modules["a"]) is kind and torch.equal(fresh.modules["a"].weight, module.weight)
    kept = other.modules["a"].weight
    other.load_state_dict(projections.state_dict(), torch.device("cpu"))
    assert other.modules["a"].weight is kept and torch.equal(kept, module.weight)


@pytest.mark.parametrize(("channels", "kind"), [(2, None), (5, [5, 2, 1, 1])])
def test_a_teacher_of_another_size_makes_the_projection_anew(channels, kind):
    projections, student = Projections(), torch.zeros(1, 2, 3, 3)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    projections.fit("a", student, torch.zeros(1, 4, 3, 3), "shape")
    projections.join_(optimizer)
    assert projections.fit("a", student, torch.zeros(1, channels, 3, 3), "shape") is (kind is not None)
    projections.join_(optimizer)
    assert [list(p.shape) for p in projections.parameters()] == ([] if kind is None else [kind])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == (1 if kind is None else 2)
    assert projections.apply("a", student).shape[1] == channels


def test_features_that_need_none():
    projections = Projections()
    assert not projections.fit("a", T, T, "shape")
    assert projections.apply("a", T) is T and projections.parameters() == [] and not projections.has_changes
    assert projections.state_dict()["a"]["weight"] is None


def test_a_projection_of_an_unknown_kind_in_a_file():
    state = {"a": {"kind": "Spline", "dim": 1, "size": 3, "weight": torch.zeros(5, 3)}}
    with pytest.raises(CheckpointError, match="a is a Spline"):
        Projections().load_state_dict(state, torch.device("cpu"))


# -- pairs ------------------------------------------------------------------------------------------------------------


def test_every_way_to_write_pairs():
    options = PairOptions(loss="L1", gain=2.0)
    forms = [
        {"a": "b"},
        {"a": {"teacher": "b"}},
        [{"student": "a", "teacher": "b"}],
        [{"student": ["a"], "teacher": ["b"]}],
    ]
    for form in forms:
        (pair,) = read_pairs(form, None, options)
        assert (pair.name, str(pair.student[0]), str(pair.teacher[0]), pair.gain) == ("a -> b", "a", "b", 2.0)
        assert type(pair.loss).__name__ == "MeanAbsoluteError"
    same, part, output = read_pairs(["x", "lstm[0.1]"], {"states.1": {"teacher": "states.2", "loss": "PKD"}}, options)
    assert same.name == "x" and same.student == same.teacher
    assert (part.student[0].layer, part.student[0].path) == ("lstm", "0.1")
    assert (output.name, output.student[0].layer, output.teacher[0].path) == ("states.1 -> states.2", "", "states.2")
    assert read_pairs(None, None, options) == read_pairs([], {}, options) == []


def test_the_same_pair_twice_has_two_names():
    first, second = read_pairs(["a", {"student": "a", "teacher": "a", "loss": "AT"}], None, PairOptions())
    assert first.name == "a" and second.name == "a #1"


# -- flags ------------------------------------------------------------------------------------------------------------


def parse(*words, **options):
    parser = argparse.ArgumentParser()
    add_distillation_args(parser, **options)
    return parser.parse_args(list(words))


def test_flags_are_distillers():
    assert vars(parse()) == {
        "kd_teacher": None,
        "kd_resume": "",
        "kd_temp": 1.0,
        "kd_distill_wt": 0.5,
        "kd_student_wt": 0.5,
        "kd_teacher_wt": 0.0,
        "kd_start_epoch": 0,
    }
    long = parse(
        *[
            "--kd-temperature",
            "5",
            "--kd-distill-wt",
            "0.7",
            "--kd-student-wt",
            "0.3",
            "--kd-teacher-wt",
            "0.1",
            "--kd-start-epoch",
            "2",
        ]
    )
    short = parse(*["--kd-temp", "5.0", "--kd-dw", "0.7", "--kd-sw", "0.3", "--kd-tw", "0.1", "--kd-start-epoch", "2"])
    assert long == short and long.kd_temp == 5.0 and long.kd_start_epoch == 2
    named = parse(
        "--kd-teacher", "a", "--kd-pretrained", "--kd-resume", "f.pth", arch_choices=("a", "b"), enable_pretrained=True
    )
    assert (named.kd_teacher, named.kd_pretrained, named.kd_resume) == ("a", True, "f.pth")


@pytest.mark.parametrize(
    "words",
    [
        "--kd-temp 0",
        "--kd-temp x",
        "--kd-dw -1",
        "--kd-sw nan",
        "--kd-start-epoch -1",
        "--kd-teacher c",
        "--kd-pretrained",
    ],
)
def test_flags_that_are_wrong(words, capsys):
    with pytest.raises(SystemExit):
        parse(*words.split(), arch_choices=["a", "b"])
    assert "error: " in capsys.readouterr().err


def test_help_names_the_group(capsys):
    with pytest.raises(SystemExit):
        parse("--help", arch_choices=["a", "b"])
    text = capsys.readouterr().out
    assert "Knowledge Distillation Training Arguments" in text and "a | b" in text


# -- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 4), (2, 4, 3, 3)])
@pytest.mark.parametrize("wrap", [lambda loss: loss, lambda loss: 0.5 * loss + 1.0, lambda loss: loss / 3 * 2])
def test_labels_in_the_graph_of_a_loss(shape, wrap):
    torch.manual_seed(0)
    logits, other = torch.randn(shape, requires_grad=True), torch.randn(shape)
    labels = torch.randint(0, 4, (shape[0], *shape[2:]))
    labels.view(-1)[0] = -100
    loss = wrap(functional.cross_entropy(logits, labels))
    call = Call((), {}, logits, {})
    own = LabelSource(None).loss(call, other, loss)
    torch.testing.assert_close(own, functional.cross_entropy(other, labels))
    assert not own.requires_grad


def test_a_watched_criterion_is_matched_with_its_pass():
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    source = LabelSource(criterion)
    source.install()
    source.install()
    source.open()
    outputs = [torch.randn(3, 4, requires_grad=True) for _ in range(2)]
    labels = [torch.tensor([0, 1, 2]), torch.tensor([3, 3, 3])]
    total = sum(criterion(o, y) for o, y in zip(outputs, labels, strict=True))
    taught = torch.randn(3, 4)
    for output, y in zip(outputs, labels, strict=True):
        want = functional.cross_entropy(taught, y, label_smoothing=0.1)
        torch.testing.assert_close(source.loss(Call((), {}, output, {}), taught, total), want)
    source.remove()
    assert not criterion._forward_hooks and not source._seen
