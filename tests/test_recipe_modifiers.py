"""Every modifier of a recipe: it loads on a small network, trains, and does what its numbers say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import distiller_ng as distiller
from distiller_ng.errors import ScheduleError

STEPS = 4


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        self.fc = nn.Linear(32, 4)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.relu1(self.bn1(self.conv1(x))), 2)
        return self.fc(self.relu2(self.conv2(x)).flatten(1))


WEIGHTS = ("conv1.weight", "conv2.weight", "fc.weight")


def run(modifiers, *, epochs=4, model=None, lr=0.05, watch=None, **options):
    """Train a network by a recipe with these modifiers."""
    model = model or Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    text = f"modifiers:\n{modifiers}"
    torch.manual_seed(1)
    x, y = torch.randn(8, 1, 6, 6), torch.randint(4, (8,))
    scheduler = distiller.file_config(model, optimizer, text, example_inputs=x, **options)
    for epoch in scheduler.epochs(epochs):
        for step, (images, labels) in enumerate(scheduler.minibatches([(x, y)] * STEPS)):
            optimizer.zero_grad()
            scheduler.backward(nn.functional.cross_entropy(model(images), labels))
            optimizer.step()
            if watch is not None:
                watch(epoch + step / STEPS, model)
    return model, scheduler


def zeros(model, name):
    return float((model.get_parameter(name) == 0).double().mean())


def total(model):
    weights = [model.get_parameter(name) for name in WEIGHTS]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


GMP = """
  - !{tag}
    init_sparsity: {init}
    final_sparsity: {final}
    start_epoch: {start}
    end_epoch: {end}
    update_frequency: {frequency}
    params: {params}
    inter_func: {curve}
    mask_type: {mask}
"""


def gmp(**settings):
    usual = {
        "tag": "GMPruningModifier",
        "init": 0.05,
        "final": 0.85,
        "start": 0.0,
        "end": 4.0,
        "frequency": 1.0,
        "params": "['fc.weight']",
        "curve": "cubic",
        "mask": "unstructured",
    }
    return GMP.format(**{**usual, **settings})


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ("cubic", [0.05, 0.5125, 0.75, 0.8375, 0.85]),
        ("linear", [0.05, 0.25, 0.45, 0.65, 0.85]),
        ("inverse_cubic", [0.05, 0.1238, 0.215, 0.3462, 0.85]),
    ],
)
def test_sparsity_at_every_update(curve, expected):
    found = {}
    run(gmp(curve=curve), epochs=5, watch=lambda at, m: found.update({at: zeros(m, "fc.weight")}))
    assert [found[at] for at in (0.0, 1.0, 2.0, 3.0, 4.0)] == pytest.approx(expected, abs=0.5 / 128 + 1e-4)
    assert found[0.75] == found[0.0] and found[4.75] == found[4.0] == round(0.85 * 128) / 128


def test_fractions_of_epochs():
    found = {}
    run(gmp(start=0.5, end=2.5, frequency=0.5), watch=lambda at, m: found.update({at: zeros(m, "fc.weight")}))
    rounded = [round(128 * level) / 128 for level in (0.05, 0.5125, 0.75, 0.8375, 0.85)]
    assert [found[at] for at in (0.5, 1.0, 1.5, 2.0, 2.5)] == rounded and found[0.25] == 0


def test_training_that_stops_at_the_end_reaches_the_end():
    model, _ = run(gmp(), epochs=4)
    assert zeros(model, "fc.weight") == round(0.85 * 128) / 128


@pytest.mark.parametrize("tag", ["MagnitudePruningModifier", "MagnutidePruningModifier", "MovementPruningModifier"])
def test_layers_alone(tag):
    model, scheduler = run(gmp(tag=tag, params="__ALL_PRUNABLE__"), epochs=5)
    for name in WEIGHTS:
        pruned = float((scheduler.masks[name].mask == 0).double().mean())
        assert pruned == zeros(model, name) == pytest.approx(0.85, abs=0.5 / 72)


@pytest.mark.parametrize("extra", ["", "    global_sparsity: True\n"])
def test_all_layers_together(extra):
    tag = "GMPruningModifier" if extra else "GlobalMagnitudePruningModifier"
    model, _ = run(gmp(tag=tag, params="__ALL_PRUNABLE__") + extra)
    assert total(model) == pytest.approx(0.85, abs=1e-3)
    assert len({round(zeros(model, name), 3) for name in WEIGHTS}) > 1


@pytest.mark.parametrize("mask", ["block4", "4block", "[1, 4]", "[2, 2]", "2:4", "'2:4'", "tensorrt"])
@pytest.mark.parametrize("layer", ["conv2.weight", "fc.weight"])
def test_mask_types_on_convolutions_and_linear_layers(layer, mask):
    model, scheduler = run(gmp(mask=mask, final=0.5, params=f"[{layer}]"))
    live = (scheduler.masks[layer].mask != 0).movedim(1, -1)
    assert zeros(model, layer) == 0.5
    fours = live.reshape(-1, 4).sum(1)
    if mask in ("2:4", "'2:4'", "tensorrt"):
        assert bool((fours == 2).all())
    elif mask != "[2, 2]":
        assert set(fours.tolist()) == {0, 4}


def test_own_levels_by_target_and_where_a_curve_starts():
    text = gmp(init="__FROM_PARAM__", final="{0.5: ['re:conv.*weight'], 0.8: [fc.weight]}", params="[]")
    model = Net()
    with torch.no_grad():
        model.fc.weight[:2] = 0
    found = {}
    run(text, model=model, watch=lambda at, m: found.update({at: [zeros(m, n) for n in WEIGHTS]}))
    assert found[0.0] == [0, 0, 0.5]
    assert [zeros(model, n) for n in WEIGHTS] == pytest.approx([0.5, 0.5, 0.8], abs=0.5 / 72)


def test_masks_that_are_left_or_let_go():
    for leave, alive in (("True", False), ("False", True)):
        model, _ = run(gmp(end=1.0) + f"    leave_enabled: {leave}\n", epochs=3)
        assert (zeros(model, "fc.weight") < 0.5) is alive


def test_constant_holds_zeros_and_frees_them_at_its_end():
    for end, alive in (("-1.0", False), ("1.0", True)):
        model = Net()
        with torch.no_grad():
            model.fc.weight[:, ::2] = 0
            model.fc.bias.zero_()
        run(f"  - !ConstantPruningModifier\n    params: __ALL__\n    end_epoch: {end}\n", model=model)
        assert bool((model.fc.weight[:, ::2] != 0).any()) is alive
        assert bool((model.fc.bias != 0).all())


def test_acdc_phases_and_momentum():
    text = (
        "  - !ACDCPruningModifier\n    compression_sparsity: 0.9\n    start_epoch: 1\n    end_epoch: 9\n"
        "    update_frequency: 2\n    params: __ALL_PRUNABLE__\n"
    )
    found = {}
    run(text, epochs=10, watch=lambda at, m: found.update({at: total(m) > 0.89}))
    assert {int(at) for at, sparse in found.items() if sparse} == {3, 4, 7, 8, 9}
    with pytest.raises(ScheduleError, match="whole epochs"):
        run(text.replace("update_frequency: 2", "update_frequency: 0.5"))


@pytest.mark.parametrize("mask", ["filter", "channel"])
def test_structured_pruning_and_thinning(mask):
    text = (
        "  - !StructuredPruningModifier\n    params: [conv2.weight]\n    init_sparsity: 0.0\n    final_sparsity: 0.5\n"
        f"    start_epoch: 0\n    end_epoch: 2\n    update_frequency: 1\n    mask_type: {mask}\n"
    )
    model, _ = run(text)
    whole = model.conv2.weight.flatten(2).abs().sum((1 if mask == "filter" else 0, 2))
    assert int((whole == 0).sum()) == 4 and bool((model.conv2.bias != 0).all())
    thin = (
        f"  - !LayerThinningModifier\n    structure_type: {mask}\n    update_epochs: [3]\n"
        "    param_group_dependency_map: {'conv2.weight,conv2.bias': ['fc.weight']}\n"
    )
    if mask == "channel":
        model, _ = run(text + thin)
        assert (model.conv1.out_channels, model.bn1.num_features, model.conv2.in_channels) == (4, 4, 4)


def test_rigl_and_top_kast_are_sparse_all_along():
    common = "    start_epoch: 0\n    end_epoch: 3\n    update_frequency: 0.5\n    params: __ALL_PRUNABLE__\n"
    found = {}
    rigl = f"  - !RigLPruningModifier\n    final_sparsity: 0.8\n    sparsity_strategy: uniform\n{common}"
    run(rigl, watch=lambda at, m: found.update({at: total(m)}))
    assert all(level == pytest.approx(0.8, abs=0.01) for level in found.values())
    kast = f"  - !TopKASTPruningModifier\n    forward_sparsity: 0.8\n    backward_sparsity: 0.5\n{common}"
    model, _ = run(kast)
    assert total(model) == pytest.approx(0.8, abs=0.01)


def test_layers_left_out_and_powers():
    outputs, x = [], torch.randn(3, 1, 6, 6)
    text = "  - !LayerPruningModifier\n    layers: [relu2]\n    start_epoch: 1.0\n    end_epoch: 2.0\n"
    run(text, watch=lambda at, m: outputs.append(type(m.relu2).__name__))
    assert outputs == ["ReLU"] * 4 + ["SkippedReLU"] * 4 + ["ReLU"] * 8
    model = Net().eval()
    expected = model(x)
    text = "  - !PowerpropagationModifier\n    params: __ALL_PRUNABLE__\n    alpha: 2.0\n    start_epoch: 0\n    end_epoch: 9\n"
    run(text, model=model, lr=0.0)
    torch.testing.assert_close(model.eval()(x), expected, rtol=1e-4, atol=1e-5)


def test_parameters_are_set_frozen_and_logged(caplog):
    caplog.set_level("INFO", logger="distiller_ng")
    text = """
  - !SetParamModifier
    params: [fc.bias]
    val: [1.0, 2.0, 3.0, 4.0]
  - !GradualParamModifier
    params: [conv2.bias]
    init_val: [1, 1, 1, 1, 1, 1, 1, 1]
    final_val: [0, 0, 0, 0, 0, 0, 0, 0]
    start_epoch: 0
    end_epoch: 2
    update_frequency: 0.5
  - !TrainableParamsModifier
    params: ['re:conv1']
    trainable: False
  - !SparsificationLoggingModifier
    start_epoch: 0
    update_frequency: 2.0
  - !SetWeightDecayModifier
    weight_decay: 1e-3
"""
    first = Net().conv1.weight.detach()
    model, scheduler = run(text)
    assert torch.equal(model.conv1.weight, first)
    assert scheduler.optimizer.param_groups[0]["weight_decay"] == 0.001
    assert sum("sparsity 0.0000" in record.message for record in caplog.records) == 2
    model, _ = run(text, lr=0.0)
    assert model.fc.bias.tolist() == [1, 2, 3, 4] and model.conv2.bias.tolist() == [0] * 8


@pytest.mark.parametrize(
    "properties",
    [
        "start_epoch: 0.0",
        "scheme: {weights: {num_bits: 4, symmetric: true, strategy: channel}}\n    ignore: [fc]",
        "scheme: tensorrt",
        "submodules: [conv1, conv2]\n    quantize_linear_activations: false",
        "start_epoch: 1.0\n    freeze_bn_stats_epoch: 2.0\n    disable_quantization_observer_epoch: 1.5",
    ],
)
def test_quantization(properties):
    model, scheduler = run(f"  - !QuantizationModifier\n    {properties}\n")
    quantizer = scheduler.schedule[0][0].quantizer
    assert quantizer.is_enabled and len(quantizer.schemes) == (2 if "fc]" in properties or "sub" in properties else 3)
    assert quantizer.bn_is_frozen is ("freeze" in properties) and quantizer.observes is ("disable" not in properties)
    weight = model.conv2.quantized("weight")
    steps = 16 if "num_bits: 4" in properties else 256
    assert len(weight[0].unique()) <= steps and torch.isfinite(model(torch.randn(2, 1, 6, 6))).all()


def test_quantization_never_ends_and_knows_one_generation_of_properties():
    with pytest.raises(ScheduleError, match="end_epoch"):
        run("  - !QuantizationModifier\n    end_epoch: 3.0\n")
    with pytest.raises(ScheduleError, match="does not go with"):
        run("  - !QuantizationModifier\n    submodules: [fc]\n    ignore: [conv1]\n")


def test_distillation_needs_its_teacher_and_adds_its_terms():
    text = "  - !DistillationModifier\n    hardness: 1.0\n    temperature: 2.0\n"
    teacher = Net(seed=5).eval()
    model, _ = run(text, epochs=12, teachers={"t": teacher})
    alone, _ = run(gmp(), epochs=12)
    x = torch.randn(32, 1, 6, 6)

    def distance(student):
        mine, theirs = (nn.functional.log_softmax(m.eval()(x), 1) for m in (student, teacher))
        return float((theirs.exp() * (theirs - mine)).sum(1).mean())

    assert distance(model) < distance(alone)
    layers = "  - !PerLayerDistillationModifier\n    gain: 0.01\n    epsilon: 1e-6\n"
    model, scheduler = run(layers, teachers={"t": teacher})
    assert [pair.name for pair in scheduler.schedule[0][0].distiller.pairs] == ["conv1", "conv2", "fc"] or len(
        scheduler.schedule[0][0].distiller.pairs
    ) == 3
    with pytest.raises(ScheduleError, match="teacher"):
        run(text)


@pytest.mark.parametrize(
    "text",
    [
        "  - !ASRegModifier\n    layers: [relu1]\n    alpha: 0.001\n    reg_func: hs\n    reg_tens: out\n",
        "  - !STRPruningModifier\n    params: __ALL_PRUNABLE__\n    init_threshold: -3.0\n    end_epoch: 3.0\n",
        "  - !SoftMovementPruningModifier\n    params: __ALL_PRUNABLE__\n    regularization: 400\n    score_lr: 1.0\n",
    ],
    ids=["asreg", "str", "soft_movement"],
)
def test_what_the_other_framework_does_not_load(text):
    model, _ = run(text)
    assert list(model.state_dict()) == list(Net().state_dict())
    assert (total(model) > 0.1) is ("Pruning" in text)
