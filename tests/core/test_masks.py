from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from distiller_ng.core.masker import ParameterMasker
from distiller_ng.core.masks import RESTORED, create_model_masks_dict
from distiller_ng.errors import ArgumentError, CheckpointError, TargetError


def model_of(weight):
    model = nn.Linear(len(weight[0]), len(weight), bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(weight))
    return model


@pytest.fixture
def model():
    return model_of([[1.0, 2.0], [3.0, 4.0]])


def test_one_masker_a_parameter_by_any_spelling():
    masks = create_model_masks_dict(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    assert list(masks) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert masks["module.0.weight"] is masks["0.weight"]
    assert all(masker.mask is None for masker in masks.values())
    with pytest.raises(KeyError):
        masks["nothing"]


def test_weights_change_only_when_masks_are_applied(model):
    masks = create_model_masks_dict(model)
    masks.set("weight", torch.tensor([[1.0, 0.0], [0.0, 1.0]]), owner="p")
    assert model.weight.tolist() == [[1, 2], [3, 4]]
    masks.project_()
    assert model.weight.tolist() == [[1, 0], [0, 4]]


def test_owners_multiply_update_their_own_and_release_their_own(model):
    masks = create_model_masks_dict(model)
    masks.set("weight", torch.tensor([[1.0, 0.0], [1.0, 1.0]]), owner="a")
    masks.set("weight", torch.tensor([[1.0, 1.0], [0.0, 1.0]]), owner="b")
    assert masks["weight"].mask.tolist() == [[1, 0], [0, 1]]
    masks.set("weight", torch.tensor([[0.0, 1.0], [1.0, 1.0]]), owner="a")
    assert masks["weight"].mask.tolist() == [[0, 1], [0, 1]]
    masks.release("a")
    assert masks["weight"].mask.tolist() == [[1, 1], [0, 1]]
    masks.release("b")
    assert masks["weight"].mask is None


def test_a_users_own_mask_wins_until_it_is_dropped(model):
    masks = create_model_masks_dict(model)
    masks.set("weight", torch.zeros(2, 2), owner="a")
    masks["weight"].mask = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    masks.set("weight", torch.tensor([[0.0, 0.0], [0.0, 1.0]]), owner="a")
    assert masks["weight"].mask.tolist() == [[1, 1], [0, 1]]
    masks.release("user")
    assert masks["weight"].mask.tolist() == [[0, 0], [0, 1]]
    masks["weight"].mask = None
    assert masks["weight"].owners == {}


def test_restored_masks_yield_to_the_first_decision(model):
    masks = create_model_masks_dict(model)
    masks.set("weight", torch.zeros(2, 2), owner=RESTORED)
    assert masks["weight"].mask.tolist() == [[0, 0], [0, 0]]
    masks.set("weight", torch.ones(2, 2), owner="a")
    assert masks["weight"].mask.tolist() == [[1, 1], [1, 1]]


def test_scaled_masks_are_applied_once_and_projected_as_binary(model):
    masks = create_model_masks_dict(model)
    masks.set("weight", torch.tensor([[2.0, 0.0], [2.0, 2.0]]), owner="p", binary=False)
    for _ in range(3):
        masks.project_()
    assert model.weight.tolist() == [[2, 0], [6, 8]]


def test_masks_of_another_shape_or_name_are_refused(model):
    masks = create_model_masks_dict(model)
    with pytest.raises(ArgumentError, match=r"shape \[2\].*\[2, 2\]"):
        masks.set("weight", torch.ones(2), owner="p")
    with pytest.raises(TargetError, match="Did you mean 'weight'"):
        masks.set("wieght", torch.ones(2, 2), owner="p")


def test_masks_take_the_parameters_dtype():
    model = nn.Linear(2, 1, bias=False).to(torch.bfloat16)
    masks = create_model_masks_dict(model)
    masks.set("weight", torch.tensor([[True, False]]), owner="p")
    assert masks["weight"].mask.dtype == torch.bfloat16
    masks.project_()
    assert model.weight[0, 1] == 0


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_attached_optimizers_project_after_every_step(model, make):
    masks = create_model_masks_dict(model)
    optimizer = make(model.parameters(), lr=0.1)
    handle = masks.attach(optimizer)
    assert masks.attach(optimizer) is handle  # attaching twice is attaching once
    masks.set("weight", torch.tensor([[1.0, 0.0], [1.0, 1.0]]), owner="p")
    for _ in range(3):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        assert model.weight[0, 1] == 0 and model.weight[0, 0] != 0
    assert masks.steps == 3
    masks.detach()
    optimizer.step()
    assert masks.steps == 3


def test_fused_steps_skipped_by_a_grad_scaler_do_not_count(model):
    masks = create_model_masks_dict(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    masks.attach(optimizer)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert masks.steps == 0
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    assert masks.steps == 1


def test_optimizer_state_is_zeroed_where_weights_change_sides(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    masks = create_model_masks_dict(model)
    masks.attach(optimizer)
    masks.set("weight", torch.tensor([[1.0, 0.0], [1.0, 1.0]]), owner="p")
    masks.project_()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    buffer = optimizer.state[model.weight]["momentum_buffer"]
    assert buffer.tolist() == [[1, 1], [1, 1]]
    masks.set("weight", torch.tensor([[1.0, 1.0], [0.0, 1.0]]), owner="p", reset_state=True)
    masks.project_()
    assert buffer.tolist() == [[1, 0], [0, 1]]  # one became live, one was pruned


def test_state_round_trip_and_refusal(model):
    masks = create_model_masks_dict(model)
    masks.set("weight", torch.tensor([[1.0, 0.0], [1.0, 1.0]]), owner="a")
    masks.set("weight", torch.tensor([[1.0, 1.0], [0.0, 1.0]]), owner="b")
    other = create_model_masks_dict(model_of([[5.0, 6.0], [7.0, 8.0]]))
    other.load_state_dict(masks.state_dict())
    assert set(other["weight"].owners) == {"a", "b"}
    assert other["weight"].mask.tolist() == [[1, 0], [0, 1]]
    wrong = create_model_masks_dict(nn.Linear(3, 2, bias=False))
    with pytest.raises(CheckpointError, match=r"\[2, 2\]"):
        wrong.load_state_dict(masks.state_dict())
    assert wrong["weight"].mask is None


@pytest.mark.parametrize("wrong", [torch.zeros(2), torch.zeros(2, 1), torch.zeros(3)])
def test_directly_assigned_masks_must_fit_too(model, wrong):
    masks = create_model_masks_dict(model)
    with pytest.raises(ArgumentError, match=r"the parameter's is \[2, 2\]"):
        masks["weight"].mask = wrong
    assert masks["weight"].mask is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_live_on_their_own(model, copied):
    masks, optimizer = create_model_masks_dict(model), torch.optim.SGD(model.parameters(), lr=0.0)
    masks.attach(optimizer)
    other, other_model, other_optimizer = copied((masks, model, optimizer))
    other["weight"].mask = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert not masks.has_changes and other.has_changes
    other_model(torch.ones(1, 2)).sum().backward()
    other_optimizer.step()
    assert other_model.weight.tolist() == [[1, 0], [3, 4]] and model.weight.tolist() == [[1, 2], [3, 4]]


class TestParameterMasker:
    def test_distillers_direct_use(self):
        masker = ParameterMasker("a")
        weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        assert masker.apply_mask(weight) is None
        masker.mask = torch.tensor([0.0, 1.0])
        assert masker.apply_mask(weight) is weight
        assert weight.tolist() == [0, -2]
        assert masker.mask_gradient(torch.ones(2)).tolist() == [0, 1]

    def test_double_copies_come_back_once(self):
        masker = ParameterMasker("a")
        masker.use_double_copies = True
        masker.mask = torch.tensor([0.0, 1.0])
        weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        masker.apply_mask(weight)
        assert weight.tolist() == [0, -2]
        masker.apply_mask(weight)  # a second forward before the step must not overwrite the copy
        masker.revert_weights(weight)
        assert weight.tolist() == [1, -2]
        weight.data.fill_(5)
        masker.revert_weights(weight)
        assert weight.tolist() == [5, 5]

    def test_scaled_masks_act_once_on_double_copies(self):
        masker = ParameterMasker("a")
        masker.use_double_copies = True
        masker.mask = torch.tensor([0.0, 2.0])
        weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        for _ in range(3):
            masker.apply_mask(weight)
        assert weight.tolist() == [0, -4]

    def test_regularization_masks_last_one_application(self):
        masker = ParameterMasker("a")
        masker.mask = torch.tensor([0.0, 1.0])
        masker.is_regularization_mask = True
        weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        masker.apply_mask(weight)
        assert weight.tolist() == [0, -2] and masker.mask is None

    def test_dropping_a_regularization_mask_leaves_other_owners(self):
        masker = ParameterMasker("a")
        masker.set(torch.tensor([1.0, 1.0, 0.0]), owner="pruner")
        masker.set(torch.tensor([0.0, 1.0, 1.0]), owner="lasso")
        masker.is_regularization_mask, masker.regularization_owner = True, "lasso"
        weight = nn.Parameter(torch.ones(3))
        masker.apply_mask(weight)
        assert weight.tolist() == [0, 1, 0] and masker.mask.tolist() == [1, 1, 0]
