"""Every distillation loss: literal values, gradients, shapes it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from distiller_ng.errors import ArgumentError
from distiller_ng.knowledge_distillation import DISTILLATION_LOSSES, create_loss
from distiller_ng.knowledge_distillation.base import DistillationLoss

LN3 = math.log(3)


def tensor(*rows):
    return torch.tensor(rows)


def maps(*channels):
    """[1, C, 1, W]"""
    return torch.tensor([[[list(channel)] for channel in channels]], dtype=torch.float32)


VALUES = [
    ("KL", {}, tensor([0.0, 0.0]), tensor([LN3, 0.0]), 0.75 * math.log(1.5) + 0.25 * math.log(0.5)),
    # softened by 2: p_t = sqrt(3) : 1
    ("KL", {"temperature": 2.0}, tensor([0.0, 0.0]), tensor([2 * LN3, 0.0]), 0.13081203594113697),
    ("KL", {}, tensor([1.0, 1.0], [0.0, 0.0]), tensor([3.0, 3.0], [LN3, 0.0]), 0.13081203594113697 / 2),
    ("KL", {"reduction": "mean"}, tensor([0.0, 0.0]), tensor([LN3, 0.0]), 0.13081203594113697 / 2),
    ("CE", {}, tensor([0.0, 0.0]), tensor([LN3, 0.0]), math.log(2)),
    ("CE", {"reduction": "mean"}, tensor([0.0, 0.0]), tensor([LN3, 0.0]), math.log(2) / 2),
    ("Euclidean", {}, tensor([0.0, 0.0], [1.0, 1.0]), tensor([3.0, 4.0], [1.0, 1.0]), 2.5),
    ("MSE", {}, tensor([1.0, 2.0]), tensor([3.0, 2.0]), 2.0),
    ("L1", {}, tensor([1.0, 2.0]), tensor([3.0, 2.0]), 1.0),
    ("Cosine", {}, tensor([1.0, 0.0]), tensor([3.0, 4.0]), 0.4),
    ("Cosine", {}, maps([1.0, 2.0], [0.0, 0.0]), maps([3.0, 5.0], [4.0, 0.0]), 0.2),
    ("AT", {}, maps([1.0, 0.0]), maps([0.0, 2.0]), 1.0),
    ("AT", {}, maps([3.0, 4.0]), maps([1.0, 0.0], [1.0, 0.0]), ((9 / math.hypot(9, 16) - 1) ** 2 + 256 / 337) / 2),
    ("AT", {"power": 1.0}, maps([3.0, -4.0]), maps([1.0, 0.0]), ((0.6 - 1) ** 2 + 0.64) / 2),
    ("PKD", {}, tensor([2.0, 0.0]), tensor([0.0, 5.0]), 2.0),
    ("PKD", {}, tensor([1.0, 0.0], [2.0, 2.0]), tensor([3.0, 4.0], [1.0, 1.0]), (0.4**2 + 0.8**2) / 2),
    ("FSP", {}, [maps([1.0, 1.0]), maps([2.0, 0.0])], [maps([1.0, 1.0]), maps([4.0, 2.0])], 4.0),
    ("Relation", {}, tensor([0.0], [1.0], [2.0]), tensor([0.0], [1.0], [3.0]), 4 / 32 / 9),
    # a right angle against a straight line: distances 1, 1, sqrt(2) against 1, 1, 2
    (
        "RKD",
        {"distance_weight": 0.0, "angle_weight": 1.0},
        tensor([0.0, 0.0], [1.0, 0.0], [0.0, 1.0]),
        tensor([0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]),
        # at sample 0 the cosine is 0 against -1, at the others cos 45 degrees against 1; each twice, of 27
        2 * (0.5 + 2 * (0.5 * (1 - math.sqrt(0.5)) ** 2)) / 27,
    ),
]


@pytest.mark.parametrize(("name", "arguments", "student", "teacher", "expected"), VALUES)
def test_literal_values(name, arguments, student, teacher, expected):
    loss = create_loss({"class": name, **arguments})
    assert float(loss(student, teacher)) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_every_registered_loss_has_a_literal_value():
    assert {type(create_loss(name)) for name, *_ in VALUES} == {entry.cls for entry in DISTILLATION_LOSSES}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 0.5, 20.0])
def test_kl_value_and_gradient_equal_a_float64_reference(temperature):
    rng = np.random.default_rng(0)
    s, t = rng.normal(size=(7, 10)) * 3, rng.normal(size=(7, 10)) * 3
    p, q = softmax(t / temperature), softmax(s / temperature)
    value = (p * (np.log(p) - np.log(q))).sum() / 7
    gradient = (q - p) / temperature / 7
    student = torch.tensor(s, requires_grad=True)
    teacher = torch.tensor(t, requires_grad=True)
    loss = create_loss("KL", temperature=temperature)
    result = loss(student, teacher)
    result.backward()
    assert result.dtype == torch.float64 and float(result.detach()) == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(student.grad.numpy(), gradient, rtol=1e-10, atol=1e-15)
    assert teacher.grad is None
    assert loss.scale == temperature**2
    single = torch.tensor(s, dtype=torch.float32, requires_grad=True)
    loss(single, torch.tensor(t, dtype=torch.float32)).backward()
    np.testing.assert_allclose(single.grad.numpy(), gradient, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["KL", "CE", "MSE", "L1", "Euclidean", "Cosine", "PKD", "AT", "RKD"])
def test_gradients_by_finite_differences(name):
    torch.manual_seed(0)
    shape = (4, 3, 2, 2)
    student = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(shape, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: create_loss(name)(x, teacher), (student,))


def test_gradient_of_fsp_by_finite_differences():
    torch.manual_seed(0)
    one, two, *targets = (torch.randn(2, c, 3, 3, dtype=torch.float64) for c in (2, 3, 2, 3))
    loss = create_loss("FSP")
    assert torch.autograd.gradcheck(lambda a, b: loss([a, b], targets), (one.requires_grad_(), two.requires_grad_()))


@pytest.mark.parametrize(
    ("name", "student", "teacher", "message"),
    [
        ("KL", (2, 5), (2, 6), "5 and 6 channels"),
        ("CE", (2, 5), (3, 5), "the batches differ"),
        ("Euclidean", (2, 5), (2, 5, 1), "2 and 3 dimensions"),
        ("MSE", (2, 4, 3, 3), (2, 8, 3, 3), "projection"),
        ("L1", (2, 4, 3, 3), (2, 4, 5, 5), "positions differ"),
        ("Cosine", (2, 4, 8), (2, 4, 9), "8 and 9 channels"),
        ("AT", (2, 4, 3, 3), (2, 8, 5, 5), "positions differ"),
        ("AT", (2, 4), (2, 4), "positions"),
        ("PKD", (2, 7, 4), (2, 7, 5), "4 and 5 channels"),
        ("Relation", (3, 4), (2, 4), "the batches differ"),
    ],
)
def test_shapes_that_do_not_fit(name, student, teacher, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        create_loss(name)(torch.zeros(student), torch.zeros(teacher))
    if message != "positions":
        assert str(list(student)) in str(caught.value) and str(list(teacher)) in str(caught.value)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ([(2, 3, 4, 4), (2, 5, 4, 4)], [(2, 3, 4, 4), (2, 6, 4, 4)], "5 and 6 channels"),
        ([(2, 3, 4, 4)], [(2, 3, 4, 4)], "takes 2 floating-point tensors"),
        ([(2, 3), (2, 3)], [(2, 3), (2, 3)], "feature maps"),
    ],
)
def test_shapes_that_fsp_refuses(student, teacher, message):
    with pytest.raises(ArgumentError, match=message):
        create_loss("FSP")([torch.zeros(s) for s in student], [torch.zeros(s) for s in teacher])


def test_fsp_pools_larger_maps_and_compares_other_resolutions():
    first = torch.tensor([[[[1.0, 5.0], [2.0, 3.0]]]])
    second = torch.tensor([[[[2.0]]]])
    # max of the first is 5: G = 5 * 2 / 1
    teacher = [torch.full((1, 1, 4, 4), 3.0), torch.full((1, 1, 4, 4), 2.0)]  # G = 6
    assert float(create_loss("FSP")([first, second], teacher)) == (10 - 6) ** 2


def test_attention_and_relation_take_other_numbers_of_channels():
    torch.manual_seed(0)
    assert float(create_loss("AT")(torch.randn(2, 3, 4, 4), torch.randn(2, 9, 4, 4))) > 0
    assert float(create_loss("RKD")(torch.randn(4, 3), torch.randn(4, 9, 2, 2))) > 0


def test_relation_of_one_sample_and_of_equal_samples():
    loss = create_loss("RKD")
    one = torch.randn(1, 3, requires_grad=True)
    value = loss(one, torch.randn(1, 3))
    value.backward()
    assert float(value.detach()) == 0 and bool((one.grad == 0).all())
    same = torch.ones(3, 2, requires_grad=True)
    loss(same, torch.randn(3, 2)).backward()
    assert bool(torch.isfinite(same.grad).all())


def test_classes_are_dimension_1_of_pictures_and_the_last_of_tokens():
    torch.manual_seed(0)
    s, t = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    loss = create_loss("KL", temperature=2.0)
    flat = loss(s.permute(0, 2, 3, 1).reshape(-1, 5), t.permute(0, 2, 3, 1).reshape(-1, 5))
    torch.testing.assert_close(loss(s, t), flat)
    tokens = loss(s.permute(0, 2, 3, 1).reshape(2, 12, 5), t.permute(0, 2, 3, 1).reshape(2, 12, 5))
    torch.testing.assert_close(tokens, flat)
    last = create_loss({"class": "KL", "temperature": 2.0, "class_dim": -1})
    torch.testing.assert_close(last(s, t), loss(s.reshape(-1, 4), t.reshape(-1, 4)))


def test_half_precision_is_computed_in_float32_and_autocast_does_not_change_it():
    torch.manual_seed(0)
    s, t = torch.randn(4, 10), torch.randn(4, 10)
    for name in ("KL", "MSE", "Cosine", "PKD"):
        loss = create_loss(name)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = loss(s.bfloat16(), t.bfloat16())
        assert inside.dtype == torch.float32
        torch.testing.assert_close(inside, loss(s.bfloat16().float(), t.bfloat16().float()))


def test_classes_masked_out_with_infinity_do_not_count():
    student = torch.tensor([[0.0, 0.0, -50.0]], requires_grad=True)
    value = create_loss("KL")(student, torch.tensor([[LN3, 0.0, -math.inf]]))
    assert float(value.detach()) == pytest.approx(0.13081203, rel=1e-4)


def test_several_teachers_are_averaged_as_probabilities():
    first, second = torch.tensor([[LN3, 0.0]]), torch.tensor([[0.0, 0.0]])
    for temperature in (1.0, 3.0):
        loss = create_loss("KL", temperature=temperature)
        mixed = torch.softmax(loss.combine([first * temperature, second], [0.5, 0.5]) / temperature, 1)
        torch.testing.assert_close(mixed, torch.tensor([[0.625, 0.375]]))
        weighted = torch.softmax(loss.combine([first * temperature, second], [0.2, 0.8]) / temperature, 1)
        torch.testing.assert_close(weighted, torch.tensor([[0.55, 0.45]]))
    torch.testing.assert_close(create_loss("MSE").combine([first, second], [0.25, 0.75]), first / 4)


def test_names_in_any_case_definitions_and_objects():
    assert type(create_loss("mse")).__name__ == "MeanSquaredError"
    assert create_loss({"class": "at", "power": 4}).power == 4.0
    made = create_loss("KL", temperature=3.0)
    assert made.temperature == 3.0 and create_loss(made) is made
    assert create_loss("MSE", temperature=3.0).scale == 1.0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("KLL", "Did you mean 'KL'"),
        ({"class": "AT", "powr": 2}, "Did you mean 'power'"),
        ({"class": "AT", "power": 0}, "above 0"),
        ({"class": "KL", "temperature": -1}, "temperature must be"),
        ({"class": "KL", "class_dim": 0}, "class_dim"),
        ({"class": "KL", "reduction": "sum"}, "reduction"),
        ({"class": "RKD", "angle_weight": "a"}, "angle_weight"),
        ({}, "unknown distillation loss"),
        (3, "by its name"),
    ],
)
def test_wrong_definitions(spec, message):
    with pytest.raises(ArgumentError, match=message):
        create_loss(spec)


def test_a_class_dim_that_the_logits_do_not_have():
    with pytest.raises(ArgumentError, match="class_dim 3 of logits of shape"):
        create_loss({"class": "KL", "class_dim": 3})(torch.zeros(2, 4), torch.zeros(2, 4))


@pytest.mark.parametrize("value", [torch.zeros(2, 3, dtype=torch.int64), "text", None, (torch.zeros(2, 3),) * 3])
def test_what_is_no_tensor_of_numbers(value):
    with pytest.raises(ArgumentError, match="takes 1 floating-point tensor"):
        create_loss("MSE")(value if value is not None else [None], torch.zeros(2, 3))


def test_a_loss_of_the_users_own(registered_loss):
    assert float(create_loss("Largest")(tensor([1.0, 5.0]), tensor([2.0, 2.0]))) == 3.0


@pytest.fixture
def registered_loss():
    @DISTILLATION_LOSSES.register("Largest")
    class Largest(DistillationLoss):
        def distance(self, student, teacher):
            return (student - teacher).abs().max()

    yield Largest
    del DISTILLATION_LOSSES._entries["Largest"]
