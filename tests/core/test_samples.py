"""Gradients and calibration passes outside the training step: what they give, and what they leave alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import distiller_ng as distiller
from distiller_ng.core.samples import GradientSampler
from distiller_ng.errors import ArgumentError, CalibrationError


def line(weight=3.0):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, weight)
    return model


def named(model):
    return dict(model.named_parameters())


BATCHES = [(torch.tensor([[1.0]]), torch.tensor([[0.0]])), (torch.tensor([[2.0]]), torch.tensor([[0.0]]))]


def test_the_docstrings_example_and_batches_begin_again():
    model = line()
    found = GradientSampler(BATCHES).gradients(model, named(model), 3)
    assert [float(g["weight"]) for g in found] == [6.0, 24.0, 6.0]


@pytest.mark.parametrize(
    ("outputs", "target", "expected"),
    [
        (torch.zeros(1, 2), torch.tensor([1]), 0.6931),
        (torch.zeros(1, 4, 2), torch.zeros(1, 4).long(), 0.6931),  # logits last
        (torch.zeros(1, 2, 4), torch.zeros(1, 4).long(), 0.6931),  # logits second
        (torch.ones(2, 1), torch.zeros(2), 1.0),
        ((torch.zeros(1, 2), None), torch.tensor([1]), 0.6931),
        ({"logits": torch.zeros(1, 2)}, torch.tensor([1]), 0.6931),
        ({"loss": torch.tensor(5.0), "logits": torch.zeros(1, 2)}, torch.tensor([1]), 5.0),
    ],
)
def test_the_loss_that_is_guessed(outputs, target, expected):
    from distiller_ng.core._default_loss import default_loss

    assert float(default_loss(outputs, target)) == pytest.approx(expected, abs=1e-4)


def test_a_loss_that_cannot_be_guessed_is_asked_for():
    model = line()
    sampler = GradientSampler([(torch.ones(2, 1), torch.zeros(3))])
    with pytest.raises(ArgumentError, match=r"outputs \[2, 1\] of float32 and a target \[3\].*loss=criterion"):
        next(sampler.gradients(model, named(model), 1))


@pytest.mark.parametrize(
    "builder",
    [
        lambda kwargs: triples(**kwargs),
        lambda **kwargs: triples(**kwargs),
        lambda scale=1.0: triples(scale),
    ],
    ids=["positional", "keywords", "named"],
)
def test_sparsemls_builders_however_they_are_written(builder):
    model = line()
    sampler = GradientSampler.of(
        {"data_loader_builder": builder, "loss_function": lambda out, target: (out - target).sum()}
    )
    found = sampler.with_options({"scale": 2.0}).gradients(model, named(model), 2)
    assert [float(g["weight"]) for g in found] == [2.0, 2.0]


def triples(scale=1.0):
    while True:
        yield [torch.tensor([[scale]])], {}, torch.tensor([[0.0]])


def test_a_builder_without_arguments():
    sampler = GradientSampler.of(
        {"data_loader_builder": lambda: triples(), "loss_function": lambda out, target: out.sum()}
    )
    model = line()
    assert [float(g["weight"]) for g in sampler.gradients(model, named(model), 1)] == [1.0]


@pytest.mark.parametrize("wrong", [3, iter(BATCHES), {"loader": 1}, {"data_loader_builder": 5}])
def test_what_is_no_sampler(wrong):
    with pytest.raises(ArgumentError):
        GradientSampler.of(wrong)


def test_sampling_leaves_everything_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model[1].eval()
    model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
    generator = torch.Generator().manual_seed(5)
    data = TensorDataset(torch.randn(12, 4), torch.randint(0, 3, (12,)))
    loader = DataLoader(data, 4, shuffle=True, generator=generator)
    running = iter(loader)
    next(running)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    states = (torch.get_rng_state(), generator.get_state(), random.getstate(), np.random.get_state()[2])
    found = list(GradientSampler(loader).gradients(model, named(model), 5))
    assert len(found) == 5 and all(g.keys() == named(model).keys() for g in found)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [m.training for m in model] == [True, False, True, True] and model.training
    assert model[0].weight.grad.eq(7).all() and model[3].weight.grad is None
    assert torch.equal(torch.get_rng_state(), states[0]) and torch.equal(generator.get_state(), states[1])
    assert random.getstate() == states[2] and np.random.get_state()[2] == states[3]
    assert len(list(running)) == 2  # the running epoch goes on


def test_persistent_workers_of_a_running_epoch_go_on():
    data = TensorDataset(torch.arange(8.0).reshape(8, 1), torch.zeros(8, 1))
    loader = DataLoader(data, 2, num_workers=1, persistent_workers=True)
    running = iter(loader)
    seen = [next(running)[0].flatten().tolist()]
    model = line()
    assert len(list(GradientSampler(loader).gradients(model, named(model), 2))) == 2
    seen += [x.flatten().tolist() for x, _ in running]
    assert seen == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_minibatches_whose_gradients_overflow_are_left_out():
    model = line()
    batches = [(torch.tensor([[float("inf")]]), torch.tensor([[0.0]])), *BATCHES]
    assert len(list(GradientSampler(batches).gradients(model, named(model), 3))) == 2
    with pytest.raises(CalibrationError, match="finite"):
        list(GradientSampler(batches[:1]).gradients(model, named(model), 2))


def test_empty_loaders_and_frozen_parameters_are_refused():
    model = line()
    with pytest.raises(CalibrationError, match="empty"):
        list(GradientSampler([]).gradients(model, named(model), 2))
    model.weight.requires_grad_(False)
    with pytest.raises(CalibrationError, match="requires_grad"):
        list(GradientSampler(BATCHES).gradients(model, named(model), 2))


def test_consumers_without_gradients_stay_so():
    model = line()
    with torch.no_grad():
        for _ in GradientSampler(BATCHES).gradients(model, named(model), 2):
            assert not torch.is_grad_enabled()


def test_half_models_get_inputs_of_their_type():
    model = line().bfloat16()
    (found,) = GradientSampler(BATCHES).gradients(model, named(model), 1)
    assert found["weight"].dtype == torch.bfloat16 and float(found["weight"]) == 6.0


def test_mappings_are_keyword_arguments():
    class Library(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = line()

        def forward(self, x, labels):
            return {"loss": (self.layer(x) - labels).square().mean()}

    model = Library()
    batches = [{"x": torch.tensor([[1.0]]), "labels": torch.tensor([[0.0]])}]
    (found,) = GradientSampler(batches).gradients(model, named(model), 1)
    assert float(found["layer.weight"]) == 6.0


def test_the_short_form_makes_the_sampler():
    model = line()
    scheduler = distiller.CompressionScheduler(model)
    assert scheduler.grad_sampler is None
    for _ in scheduler.epochs(1):
        for _ in scheduler.minibatches(BATCHES):
            break
        assert len(list(scheduler.grad_sampler.gradients(model, named(model), 2))) == 2
        break
    own = GradientSampler(BATCHES)
    scheduler.grad_sampler = own
    assert scheduler.grad_sampler is own
    scheduler.grad_sampler = {"data_loader_builder": triples}
    assert isinstance(scheduler.grad_sampler, GradientSampler)


def test_passes_run_the_model_without_gradients():
    model = line()
    outputs = [run() for run in GradientSampler(BATCHES).passes(model)]
    assert [float(y) for y in outputs] == [3.0, 6.0] and not outputs[0].requires_grad
    assert len(list(GradientSampler(BATCHES).passes(model, 1))) == 1


def test_other_weights_stand_in():
    model = line()
    instead = {"weight": torch.full((1, 1), 5.0)}
    (found,) = GradientSampler(BATCHES).gradients(model, named(model), 1, instead)
    assert float(found["weight"]) == 10.0 and model.weight.item() == 3.0
    outputs = [float(run()) for run in GradientSampler(BATCHES).passes(model, None, named(model), instead)]
    assert outputs == [5.0, 10.0] and model.weight.item() == 3.0


def test_a_recurrent_layer_with_other_weights():
    model = nn.LSTM(2, 3)
    batches = [(torch.randn(4, 1, 2), None)]
    sampler = GradientSampler(batches, lambda outputs, _: outputs[0].sum())
    parameters = {"weight_hh_l0": model.weight_hh_l0}
    (same,) = sampler.gradients(model, parameters, 1)
    (other,) = sampler.gradients(model, parameters, 1, {"weight_hh_l0": torch.zeros(12, 3)})
    assert not torch.equal(same["weight_hh_l0"], other["weight_hh_l0"])


def test_gradients_of_masked_weights_are_what_they_are():
    model = line()
    scheduler = distiller.CompressionScheduler(model)
    scheduler.masks.set("weight", torch.zeros(1, 1), owner="p")
    scheduler.masks["weight"].masks_gradients = True
    scheduler.masks.prepare()
    scheduler.grad_sampler = BATCHES
    ctx = distiller.StepContext(
        model=model,
        parameters=scheduler.parameters,
        masks=scheduler.masks,
        window=distiller.PolicyWindow.from_range(0, 1, 1),
        position=distiller.TrainPosition(0),
        data=scheduler.data,
    )
    assert [float(g["weight"]) for g in ctx.gradients(["weight"], 1)] == [6.0]
    model(torch.ones(1, 1)).sum().backward()
    assert float(model.weight.grad) == 0  # the hook is back


def test_shared_modules_and_tied_weights_are_put_back_and_all_of_them_stand_in():
    shared = nn.Linear(2, 2, bias=False)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(2, 2, bias=False))
    model[3].weight = shared.weight
    parameters = dict(model.named_parameters())
    own, other = shared.weight, torch.eye(2)
    sampler = GradientSampler([torch.tensor([[1.0, 2.0]])], lambda outputs, _: outputs.sum())
    outputs = [run() for run in sampler.passes(model, None, parameters, {"0.weight": other})]
    assert outputs[0].tolist() == [[1, 2]]
    list(sampler.gradients(model, parameters, 1, {"0.weight": other}))
    assert shared.weight is own and model[3].weight is own and model[2].weight is own
