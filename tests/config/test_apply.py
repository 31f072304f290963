"""``distiller_ng.apply``: recipes and schedules at once, without training."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import distiller_ng as distiller
from distiller_ng.errors import ArgumentError, CalibrationError, ScheduleError


def made():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5))


def loader():
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(48, 4, 4, 4, generator=generator), torch.randint(0, 5, (48,), generator=generator))
    return DataLoader(data, 8, shuffle=True)


def schedule(cls, **settings):
    return {
        "pruners": {"p": {"class": cls, **settings}},
        "policies": [{"pruner": {"instance_name": "p"}, "starting_epoch": 0, "ending_epoch": 10, "frequency": 2}],
    }


def sparsity(model):
    weights = [p for p in model.parameters() if p.dim() > 1]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


WAYS = {
    "magnitude": schedule("MagnitudePruner", init_sparsity=0.1, final_sparsity=0.5),
    "agp": schedule("AutomatedGradualPruner", initial_sparsity=0.1, final_sparsity=0.5, weights=["__ALL_PRUNABLE__"]),
    "obs": schedule("OBSPruner", init_sparsity=0.1, final_sparsity=0.5, num_grads=8, fisher_block_size=20),
    "mfac": schedule("MFACPruner", sparsity=0.5, num_grads=8),
    "sparsegpt": schedule("SparseGPTPruner", sparsity=0.5),
    "sparsegpt 2:4": schedule("SparseGPTPruner", mask_type="2:4"),
    "wanda": schedule("WandaPruner", sparsity=0.5),
    "wanda 2:4": schedule("WandaPruner", mask_type="2:4"),
}


@pytest.mark.parametrize("name", WAYS)
def test_every_kind_of_pruner_reaches_its_level_at_once(name):
    model = made()
    buffers = model[1].running_mean.clone()
    summary = distiller.apply(model, WAYS[name], None if name in ("magnitude", "agp") else loader())
    assert sparsity(model) == pytest.approx(0.5, abs=0.01)
    assert "4.weight" in str(summary)
    assert model.training and torch.equal(model[1].running_mean, buffers)
    if "2:4" in name:
        assert (model[4].weight.view(5, 8, 4) != 0).sum(dim=2).eq(2).all()
        assert (model[0].weight != 0).sum(dim=1).eq(2).all()


RECIPE = """
num_epochs: 10
modifiers:
  - !EpochRangeModifier
    start_epoch: 0.0
    end_epoch: eval(num_epochs)
  - !{tag}
    params: __ALL_PRUNABLE__
    init_sparsity: 0.05
    final_sparsity: 0.6
    start_epoch: 0.0
    end_epoch: 8.0
    update_frequency: 0.5
{more}
"""


@pytest.mark.parametrize(
    ("tag", "more"),
    [
        ("GMPruningModifier", ""),
        ("OBSPruningModifier", "    num_grads: 8\n    fisher_block_size: 20\n    damp: 1e-7\n"),
        ("MFACPruningModifier", "    num_grads: {0.0: 6, 0.5: 8}\n    available_gpus: [cpu]\n    grads_device: cpu\n"),
    ],
)
@pytest.mark.filterwarnings("ignore::distiller_ng.errors.ScheduleWarning")
def test_a_recipe_prunes_once_to_its_final_level(tag, more):
    model = made()
    decided = []

    class Counted(list):
        def __iter__(self):
            decided.append(1)
            return super().__iter__()

    distiller.apply(model, RECIPE.format(tag=tag, more=more), Counted(loader()))
    assert sparsity(model) == pytest.approx(0.6, abs=0.01)
    assert len(decided) <= 2  # one sampling, which goes round a small loader at most once


@pytest.mark.filterwarnings("ignore:.*leaves 1.weight:distiller_ng.errors.ScheduleWarning")
def test_a_recipe_of_the_newer_framework():
    text = """
sparsity_stage:
  sparsity_modifiers:
    SparseGPTModifier:
      sparsity: 0.5
      mask_structure: "2:4"
      dampening_frac: 0.02
      targets: ["Linear"]
      ignore: ["re:0"]
"""
    model = made()
    with pytest.warns(distiller.ScheduleWarning, match="Linear"):
        distiller.apply(model, text, loader())
    assert (model[4].weight.view(5, 8, 4) != 0).sum(dim=2).eq(2).all()
    assert model[0].weight.all()


def test_stages_follow_each_other():
    text = """
first:
  first_modifiers:
    - !MagnitudePruningModifier
      params: ['0.weight']
      init_sparsity: 0.0
      final_sparsity: 0.5
      start_epoch: 0.0
      end_epoch: 2.0
      update_frequency: 1.0
second:
  second_modifiers:
    - !ConstantPruningModifier
      params: __ALL_PRUNABLE__
"""
    model = made()
    summary = distiller.apply(model, text)
    assert float((model[0].weight == 0).float().mean()) == 0.5
    assert "0.weight" in str(summary)


def test_losses_are_guessed_or_given():
    model = made()
    seen = []

    def loss(outputs, target):
        seen.append(len(target))
        return nn.functional.cross_entropy(outputs, target)

    distiller.apply(model, WAYS["obs"], loader(), loss=loss)
    assert seen == [8] * 8
    sampler = distiller.GradientSampler(loader(), loss)
    distiller.apply(made(), WAYS["obs"], sampler)
    with pytest.raises(ArgumentError, match="a sampler has its own"):
        distiller.apply(made(), WAYS["obs"], sampler, loss=loss)


def test_what_is_missing_is_said():
    with pytest.raises(CalibrationError, match="grad_sampler"):
        distiller.apply(made(), WAYS["sparsegpt"])
    with pytest.raises(ScheduleError, match="p2"):
        distiller.apply(made(), {"policies": [{"pruner": {"instance_name": "p2"}, "epochs": [0]}]})
    with pytest.raises(ArgumentError, match="must be a torch.nn.Module"):
        distiller.apply("model", WAYS["magnitude"])
    with pytest.raises(ArgumentError, match="recipe_args"):
        distiller.apply(made(), WAYS["magnitude"], recipe_args={"a": 1})


@pytest.mark.parametrize(
    ("properties", "pruned"),
    [
        ({"targets": ["re:4$"]}, ["4.weight"]),
        ({"targets": ["__ALL__"], "ignore": ["4"]}, ["0.weight"]),
        ({"ignore": ["re:[0-3]$"]}, ["4.weight"]),
        ({}, ["0.weight", "4.weight"]),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::distiller_ng.errors.ScheduleWarning")
def test_modules_that_newer_recipes_name(properties, pruned):
    text = f"""
s_stage:
  s_modifiers:
    WandaPruningModifier: {json.dumps({"sparsity": 0.5, "mask_structure": "0:0", **properties})}
"""
    model = made()
    distiller.apply(model, text, loader())
    assert [n for n, p in model.named_parameters() if p.dim() > 1 and float((p == 0).float().mean()) == 0.5] == pruned


def test_profiles_by_layer_are_refused():
    text = """
s_stage:
  s_modifiers:
    SparseGPTModifier: {sparsity: 0.5, sparsity_profile: owl}
"""
    with pytest.raises(ScheduleError, match="sparsity_profile.*scope: global"):
        distiller.apply(made(), text, loader())
