"""Recipes of the shapes that SparseML's own pages teach, loaded as they stand and trained, with what they must give.

Tables are SparseML's own results: sparsity after each update, phases of AC/DC, learning rates.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import distiller_ng as distiller
from distiller_ng.errors import ScheduleWarning


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


def batches(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(4, 1, 6, 6, generator=generator), torch.randint(0, 4, (4,), generator=generator))
        for _ in range(count)
    ]


def sparsity(parameter):
    return float((parameter == 0).double().mean())


def train(text, epochs, steps, look, *, model=None, optimizer=None, quiet=True, **options):
    """``look(model, optimizer)`` after each optimizer step, and after the end."""
    torch.manual_seed(0)
    model = Net() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9) if optimizer is None else optimizer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if quiet else "error", ScheduleWarning)
        scheduler = distiller.file_config(model, optimizer, text, **options)
    seen = []
    data = batches(steps)
    for _ in scheduler.epochs(epochs):
        for x, y in scheduler.minibatches(data):
            optimizer.zero_grad()
            scheduler.backward(nn.functional.cross_entropy(model(x), y))
            optimizer.step()
            seen.append(look(model, optimizer))
    seen.append(look(model, optimizer))
    return seen, model, scheduler


def pruning(tag="GMPruningModifier", **given):
    properties = {
        "params": "['blocks.0.conv']",
        "init_sparsity": 0.05,
        "final_sparsity": 0.85,
        "start_epoch": 0,
        "end_epoch": 4,
        "update_frequency": 1,
        **given,
    }
    body = "\n".join(f"    {key}: {value}" for key, value in properties.items() if value is not None)
    return f"pruning_modifiers:\n  - !{tag}\n{body}\n"


# -- sparsity after each update ----------------------------------------------------------------------------------------

CURVES = {
    "cubic": [0.05, 0.5125, 0.75, 0.8375, 0.85],
    "linear": [0.05, 0.25, 0.45, 0.65, 0.85],
    "inverse_cubic": [0.05, 0.1238, 0.215, 0.3462, 0.85],
}


@pytest.mark.parametrize("curve", CURVES)
def test_sparsity_after_each_update(curve):
    seen, _, _ = train(pruning(inter_func=curve), 5, 2, lambda m, o: sparsity(m.blocks[0].conv.weight))
    assert seen[0:10:2] == pytest.approx(CURVES[curve], abs=0.001)
    assert seen[1:10:2] == seen[0:10:2]  # nothing happens in between
    assert seen[8] == round(0.85 * 576) / 576


def test_sparsity_at_fractions_of_epochs():
    text = pruning(start_epoch=0.5, end_epoch=2.5, update_frequency=0.5)
    seen, _, _ = train(text, 3, 4, lambda m, o: sparsity(m.blocks[0].conv.weight))
    assert seen[0:2] == [0, 0]
    assert [seen[step] for step in (2, 4, 6, 8, 10)] == pytest.approx(CURVES["cubic"], abs=0.001)


@pytest.mark.parametrize(("strict", "expected"), [("false", 0.85), ("true", 0.8375)])
def test_training_that_stops_at_the_end(strict, expected):
    seen, _, _ = train(f"strict_sparseml: {strict}\n" + pruning(), 4, 2, lambda m, o: sparsity(m.blocks[0].conv.weight))
    assert seen[-2] == pytest.approx(0.8375, abs=0.001)
    assert seen[-1] == pytest.approx(expected, abs=0.001)


def test_sparsity_is_held_or_given_back():
    look = lambda m, o: sparsity(m.blocks[0].conv.weight)  # noqa: E731
    held, _, _ = train(pruning(end_epoch=1), 3, 2, look)
    assert held[-1] == pytest.approx(0.85, abs=0.001)
    free, _, _ = train(pruning(end_epoch=1, leave_enabled=False), 3, 2, look)
    assert free[-1] < 0.05


def test_the_exact_number_of_weights_goes():
    _, model, _ = train(
        pruning(params="['re:blocks.*conv.w', fc]", final_sparsity=0.9, end_epoch=1), 2, 2, lambda m, o: 0
    )
    for parameter in (model.blocks[0].conv.weight, model.blocks[1].conv.weight, model.fc.weight):
        assert int((parameter == 0).sum()) == round(0.9 * parameter.numel())
    assert sparsity(model.stem.weight) == 0


# -- AC/DC -------------------------------------------------------------------------------------------------------------


def test_phases_of_acdc():
    text = """
pruning_modifiers:
  - !ACDCPruningModifier
    params: ['re:blocks.*conv.weight']
    compression_sparsity: 0.9
    start_epoch: 1
    end_epoch: 9
    update_frequency: 2
"""

    def look(model, optimizer):
        buffers = [s["momentum_buffer"] for s in optimizer.state.values() if s.get("momentum_buffer") is not None]
        return sparsity(model.blocks[0].conv.weight) > 0.5, all(float(b.abs().sum()) == 0 for b in buffers)

    seen, _, _ = train(text, 11, 2, look)
    compressed = [is_sparse for is_sparse, _ in seen[:-1:2]]
    assert compressed == [epoch in (3, 4) or epoch >= 7 for epoch in range(11)]
    assert [step / 2 for step, (_, is_zero) in enumerate(seen) if is_zero] in ([5.0], [4.5])


# -- learning rates and other values -----------------------------------------------------------------------------------


def test_learning_rates_of_a_recipe():
    text = """
training_modifiers:
  - !LearningRateModifier
    start_epoch: 0
    end_epoch: -1.0
    update_frequency: -1.0
    init_lr: 0.1
    lr_class: MultiStepLR
    lr_kwargs: {'milestones': [2, 3.5], 'gamma': 0.1}
"""
    seen, _, _ = train(text, 4, 4, lambda m, o: o.param_groups[0]["lr"])
    assert seen == pytest.approx([0.1] * 8 + [0.01] * 6 + [0.001] * 3)


def test_the_later_modifier_wins():
    text = """
training_modifiers:
  - !SetLearningRateModifier {start_epoch: 0.0, learning_rate: 0.7}
  - !LearningRateFunctionModifier {start_epoch: 0, end_epoch: 2, lr_func: linear, init_lr: 0.4, final_lr: 0.0}
  - !SetWeightDecayModifier {start_epoch: 1, weight_decay: 0.25}
"""
    seen, _, _ = train(text, 3, 2, lambda m, o: (o.param_groups[0]["lr"], o.param_groups[0]["weight_decay"]))
    assert [rate for rate, _ in seen] == pytest.approx([0.7, 0.3, 0.2, 0.1, 0, 0, 0])
    assert [decay for _, decay in seen] == [0, 0, *[0.25] * 5]


def test_frozen_parameters_train_again():
    text = "modifiers:\n  - !TrainableParamsModifier {params: ['re:stem'], trainable: false, start_epoch: 1, end_epoch: 2}\n"
    seen, _, _ = train(text, 3, 2, lambda m, o: m.stem.weight.requires_grad)
    assert seen == [True, True, False, False, True, True, True]


# -- the shapes of SparseML's own examples -----------------------------------------------------------------------------

SCRATCH = """
# variables of all kinds, a rate that stays, one ranking over all layers
lr_func: constant
init_lr: 0.001
final_lr: 0.0
num_epochs: 2.0
active_epochs: 1.0
mask_type: unstructured
_all_epochs: eval(active_epochs + num_epochs)

training_modifiers:
  - !EpochRangeModifier
    start_epoch: 0.0
    end_epoch: eval(_all_epochs)
  - !LearningRateFunctionModifier
    start_epoch: 0.0
    end_epoch: eval(num_epochs)
    lr_func: eval(lr_func)
    init_lr: eval(init_lr)
    final_lr: eval(final_lr)

pruning_modifiers:
  - !GlobalMagnitudePruningModifier
    start_epoch: 0.0
    params: __ALL_PRUNABLE__
    init_sparsity: 0.05
    final_sparsity: 0.8
    end_epoch: eval(active_epochs)
    update_frequency: 1.0
    mask_type: eval(mask_type)
    leave_enabled: True
    inter_func: cubic
"""
FRAGMENTS = {
    "epochs": "    - !EpochRangeModifier\n        start_epoch: 0.0\n        end_epoch: 2.0\n",
    "constant": "    - !ConstantPruningModifier\n        params: __ALL__\n",
    "constant in a group": "training_modifiers:\n   - !ConstantPruningModifier\n     start_epoch: 0.0\n     params: __ALL_PRUNABLE__\n",
    "gradual": "    - !GMPruningModifier\n        params: ['blocks.1.conv']\n        init_sparsity: 0.05\n        final_sparsity: 0.8\n        start_epoch: 0.5\n        end_epoch: 2.0\n        update_frequency: 1.0\n",
    "misspelt": pruning("MagnutidePruningModifier", params="__ALL_PRUNABLE__", mask_type="4block", end_epoch=1),
    "movement": pruning("MovementPruningModifier", params="__ALL_PRUNABLE__", end_epoch=1),
    "obs": pruning("OBSPruningModifier", params="__ALL_PRUNABLE__", end_epoch=1, num_grads=4, global_sparsity=True),
    "mfac": pruning(
        "MFACPruningModifier", params="__ALL_PRUNABLE__", end_epoch=1, num_grads=2, fisher_block_size=10000
    ),
    "quantization": "    - !QuantizationModifier\n        start_epoch: 0.0\n",
    "rate": "    - !SetLearningRateModifier\n        start_epoch: 1.0\n        learning_rate: 0.1\n",
    "steps": "    - !LearningRateModifier\n       start_epoch: 0.0\n       end_epoch: 25.0\n       lr_class: MultiStepLR\n       lr_kwargs:\n           gamma: 0.9\n           milestones: [0.5, 1.5, 10.0]\n       init_lr: 0.1\n",
    "trainable": "    - !TrainableParamsModifier\n      params: __ALL__\n",
    "decay": "    - !SetWeightDecayModifier\n        start_epoch: 1.0\n        weight_decay: 0.0\n",
    "everything": SCRATCH,
}


@pytest.mark.parametrize("name", FRAGMENTS)
def test_examples_load_and_train(name):
    seen, model, scheduler = train(FRAGMENTS[name], 3, 2, lambda m, o: o.param_groups[0]["lr"])
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
    assert scheduler.entries and all(entry.started for entry in scheduler.entries)
    if name == "everything":
        weights = [model.stem.weight, model.fc.weight, *(block.conv.weight for block in model.blocks)]
        total = sum(w.numel() for w in weights)
        assert sum(int((w == 0).sum()) for w in weights) == round(0.8 * total)
        assert scheduler.max_epochs == 3 and set(seen) == {0.001}


DISTILLATION = {
    "outputs": """
hardness: &hardness 1.0
temperature: &temperature 2.0
distillation_modifiers:
  - !DistillationModifier
     hardness: eval(hardness)
     temperature: *temperature
""",
    "layers": """
gain: 0.01
knowledge_modifiers:
  - !PerLayerDistillationModifier
    start_epoch: 0.0
    end_epoch: 1
    gain: eval(gain)
    project_features: true
    student_layer_names:
    - stem
    - blocks.0.conv
""",
}


@pytest.mark.parametrize("name", DISTILLATION)
def test_distillation(name):
    model = Net()
    teacher = copy.deepcopy(model)
    _, trained, scheduler = train(DISTILLATION[name], 1, 2, lambda m, o: 0, model=model, teachers={"teacher": teacher})
    assert all(entry.started for entry in scheduler.entries)
    assert not torch.equal(trained.fc.weight, teacher.fc.weight)


def test_a_sparse_model_stays_sparse_while_it_is_quantized_and_taught():
    text = """
num_epochs: 2
distillation_modifiers:
  - !DistillationModifier {hardness: 0.5, temperature: 2.0, start_epoch: 0.0, end_epoch: eval(num_epochs)}
pruning_modifiers:
  - !ConstantPruningModifier {params: __ALL_PRUNABLE__, start_epoch: 0.0}
quantization_modifiers:
  - !QuantizationModifier {start_epoch: 1.0, disable_quantization_observer_epoch: 1.5, freeze_bn_stats_epoch: 1.5}
"""
    torch.manual_seed(0)
    model = Net()
    teacher = copy.deepcopy(model)
    zeros = torch.rand_like(model.blocks[0].conv.weight) < 0.7
    with torch.no_grad():
        model.blocks[0].conv.weight[zeros] = 0
    _, trained, _ = train(text, 2, 2, lambda m, o: 0, model=model, teachers={"teacher": teacher})
    weights = dict(trained.named_parameters())
    name = next(name for name in weights if name.startswith("blocks.0") and name.endswith("conv.weight"))
    assert bool((weights[name][zeros] == 0).all()) and sparsity(weights[name]) < 0.75
