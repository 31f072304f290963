"""What every registered distillation loss and distiller keeps to."""

from __future__ import annotations

import inspect
import textwrap

import pytest
import torch
import yaml
from torch import nn

import distiller_ng as distiller
from distiller_ng.knowledge_distillation import DISTILLATION_LOSSES, DISTILLERS, create_loss

NAMES = DISTILLATION_LOSSES.names()
every_loss = pytest.mark.parametrize("name", NAMES)


def sample_of(text):
    """The YAML at the end of a docstring."""
    return yaml.safe_load(textwrap.dedent(text[text.rindex("\n", 0, text.index("distillers:")) :]))


def sides(loss, seed=0, dtype=torch.float32):
    """Features that every loss can compare."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(4, 3, 5, 5, generator=generator).to(dtype) for _ in range(loss.layers)]
    return made[0] if loss.layers == 1 else made


def leaves(value):
    return [value] if isinstance(value, torch.Tensor) else list(value)


@every_loss
def test_a_scalar_that_is_not_negative_and_moves_the_student_only(name):
    loss = create_loss(name)
    student, teacher = sides(loss, 0), sides(loss, 1)
    for tensor in (*leaves(student), *leaves(teacher)):
        tensor.requires_grad_()
    copies = [t.detach().clone() for t in (*leaves(student), *leaves(teacher))]
    value = loss(student, teacher)
    value.backward()
    assert value.shape == () and float(value.detach()) > 0
    assert all(t.grad is not None and bool(t.grad.abs().sum() > 0) for t in leaves(student))
    assert all(t.grad is None for t in leaves(teacher))
    assert all(torch.equal(a, b.detach()) for a, b in zip(copies, (*leaves(student), *leaves(teacher)), strict=True))


@every_loss
def test_equal_sides_are_as_near_as_can_be(name):
    loss = create_loss(name)
    student = sides(loss)
    for tensor in leaves(student):
        tensor.requires_grad_()
    value = loss(student, [t.detach() for t in leaves(student)])
    value.backward()
    if name != "CE":  # the teacher's entropy
        assert abs(float(value.detach())) < 1e-6
    assert all(float(t.grad.abs().max()) < 1e-5 for t in leaves(student))


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types_of_numbers(name, dtype):
    loss = create_loss(name)
    value = loss(sides(loss, 0, dtype), sides(loss, 1, dtype))
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    want = loss(sides(loss, 0, dtype), sides(loss, 1, dtype))
    assert torch.equal(value, want)
    mixed = loss(sides(loss, 0), sides(loss, 1, dtype))
    assert bool(torch.isfinite(mixed))


@every_loss
def test_memory_layouts_do_not_matter(name):
    loss = create_loss(name)

    def laid_out(value):
        return [t.to(memory_format=torch.channels_last) for t in leaves(value)]

    plain = loss(sides(loss, 0), sides(loss, 1))
    torch.testing.assert_close(loss(laid_out(sides(loss, 0)), laid_out(sides(loss, 1))), plain)


@every_loss
def test_documentation_has_source_example_and_yaml(name):
    cls = DISTILLATION_LOSSES.get(name).cls
    text = inspect.getdoc(cls)
    assert "Source: " in text and "https://" in text and "Example" in text
    definition = sample_of(text)
    (arguments,) = definition["distillers"].values()
    made = DISTILLERS.get(arguments.pop("class")).cls(
        "kd",
        None,
        {"resnet56": nn.Linear(1, 1), "bert": nn.Linear(1, 1)},
        **arguments,
    )
    losses = [type(pair.loss) for pair in made.pairs] + ([type(made.logits)] if made.logits is not None else [])
    assert cls in losses


@pytest.mark.parametrize("name", DISTILLERS.names())
def test_documentation_of_distillers_is_a_schedule(name):
    text = inspect.getdoc(DISTILLERS.get(name).cls)
    definition = sample_of(text)
    (arguments,) = definition["distillers"].values()
    assert arguments.pop("class") == name
    model = nn.ModuleDict({"layer2": nn.Conv2d(1, 1, 1), "layer3": nn.Conv2d(1, 1, 1)})
    other = nn.ModuleDict({"layer2": nn.Conv2d(1, 1, 1), "layer3": nn.Conv2d(1, 1, 1)})
    made = DISTILLERS.get(name).cls("kd", model, {"resnet56": other, "other": other}, **arguments)
    assert made.name == "kd"


def test_the_policys_documented_schedule_loads():
    text = inspect.getdoc(distiller.KnowledgeDistillationPolicy)
    plan = sample_of(text)
    model, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    scheduler = distiller.dict_config(model, None, plan, teachers={"resnet56": teacher})
    assert len(scheduler.schedule) == 1
