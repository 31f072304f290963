"""Quantizers in schedules: when they act, what they compose with, and how their runs are saved and resumed."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml
from torch import nn

import distiller_ng as distiller
from distiller_ng.checkpoint import CompressionRecord, load_checkpoint, save_checkpoint
from distiller_ng.config.schema import schedule_schema
from distiller_ng.errors import ArgumentError, CheckpointError, ScheduleError, ScheduleWarning, TargetError
from distiller_ng.models import create_model
from distiller_ng.policies import QuantizationPolicy
from distiller_ng.quantization import (
    DorefaQuantizer,
    PACTQuantizer,
    QuantAwareTrainRangeLinearQuantizer,
    QuantizedLayer,
    Quantizer,
)
from distiller_ng.quantization.activations import FakeQuantizationWrapper, LearnedClippedLinearQuantization

SCHEDULES = Path(__file__).parents[1] / "quantization" / "schedules"
KINDS = {
    "dorefa": {"class": "DorefaQuantizer", "bits_activations": 8, "bits_weights": 3},
    "wrpn": {"class": "WRPNQuantizer", "bits_activations": 4, "bits_weights": 4},
    "pact": {"class": "PACTQuantizer", "bits_activations": 4, "bits_weights": 4, "act_clip_decay": 0.01},
    "linear": {
        "class": "QuantAwareTrainRangeLinearQuantizer",
        "bits_activations": 8,
        "bits_weights": 4,
        "per_channel_wts": True,
    },
    "lsq": {"class": "LSQQuantizer", "bits_activations": 4, "bits_weights": 4},
    "xnor": {"class": "XNORQuantizer", "overrides": {"conv1": None, "fc": None}},
}
every_kind = pytest.mark.parametrize("kind", list(KINDS))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.conv2, self.relu2, self.fc = nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.relu2(self.conv2(self.relu1(self.bn1(self.conv1(x))))).mean((2, 3)))


def data(batches=2):
    torch.manual_seed(7)
    return [(torch.randn(4, 2, 8, 8), torch.randint(0, 3, (4,))) for _ in range(batches)]


def schedule(kind, start=0, end=4, *, args=None, prune=False, **extra):
    policy = {"instance_name": "q", **({"args": args} if args else {})}
    result = {
        "quantizers": {"q": {**KINDS[kind], **extra}},
        "policies": [{"quantizer": policy, "starting_epoch": start, "ending_epoch": end}],
    }
    if prune:
        result["pruners"] = {"p": {"class": "SparsityLevelParameterPruner", "levels": {"conv2.weight": 0.5}}}
        result["policies"].insert(0, {"pruner": {"instance_name": "p"}, "starting_epoch": 1, "ending_epoch": 2})
    return result


class Run:
    def __init__(self, sched, seed=0, optimizer=torch.optim.SGD):
        torch.manual_seed(seed)
        self.model = Net()
        settings = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
        self.optimizer = optimizer(self.model.parameters(), lr=0.05, **settings)
        self.scheduler = distiller.dict_config(self.model, self.optimizer, sched)
        self.quantizer = next(p.quantizer for p, _ in self.scheduler.schedule if isinstance(p, QuantizationPolicy))

    def train(self, epochs, *, stop_after=None, at=lambda epoch: None):
        done = 0
        for epoch in self.scheduler.epochs(epochs):
            self.model.train()
            for x, y in self.scheduler.minibatches(data()):
                self.optimizer.zero_grad()
                self.scheduler.backward(nn.functional.cross_entropy(self.model(x), y))
                self.optimizer.step()
                done += 1
                if done == stop_after:
                    return self
            at(epoch)
        return self

    def parts(self):
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}


# -- when --------------------------------------------------------------------------------------------------------------


def test_quantized_from_the_start():
    run = Run(schedule("dorefa"))
    assert run.quantizer.is_prepared and run.quantizer.is_enabled
    assert isinstance(run.model.conv1, QuantizedLayer)


@every_kind
def test_a_warm_start_trains_in_floating_point_first(kind):
    torch.manual_seed(0)
    plain = Net()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    for _ in range(2):
        for x, y in data():
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(x), y).backward()
            optimizer.step()
    run = Run(schedule(kind, start=2))
    names = {name for name, _ in run.model.named_parameters()}
    grouped = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    seen = {}

    def at(epoch):
        seen[epoch] = run.quantizer.is_enabled
        if epoch == 1:
            for name, parameter in plain.named_parameters():
                assert torch.equal(dict(run.model.named_parameters())[name], parameter)

    run.train(4, at=at)
    assert seen == {0: False, 1: False, 2: True, 3: True}
    assert {name for name, _ in run.model.named_parameters()} == names
    assert {id(p) for p in run.model.parameters()} == grouped


def test_a_fractional_start():
    run = Run(schedule("dorefa", start=0.5, end=2))
    states = []
    run.model.fc.register_forward_pre_hook(lambda module, args: states.append(run.quantizer.is_enabled))
    run.train(2)
    assert states == [False, True, True, True]


def test_the_model_stays_quantized_after_the_window():
    run = Run(schedule("dorefa", end=1)).train(3)
    assert run.quantizer.is_enabled


def test_two_windows_of_one_quantizer():
    sched = schedule("pact", start=1, end=2)
    sched["policies"].append({"quantizer": {"instance_name": "q"}, "starting_epoch": 3, "ending_epoch": 4})
    run, seen = Run(sched), {}
    run.train(4, at=lambda epoch: seen.update({epoch: run.quantizer.is_enabled}))
    assert seen == {0: False, 1: True, 2: True, 3: True}
    sched["policies"][0]["starting_epoch"] = 0
    assert Run(sched).quantizer.is_enabled


def test_another_schedule_keeps_what_a_checkpoints_quantizer_learned(tmp_path):
    run = Run(schedule("pact", act_clip_init_val=0.4)).train(2)
    path = save_checkpoint(1, "net", run.model, run.optimizer, run.scheduler, dir=tmp_path)
    model, _, optimizer, start = load_checkpoint(Net(), path)
    clip = float(model.relu1.clip_val)
    assert clip != 0.4
    other = schedule("pact", start=1, end=9, act_clip_init_val=0.4)
    scheduler = distiller.dict_config(model, optimizer, other, resumed_epoch=start - 1)
    assert scheduler.schedule[0][0].quantizer.is_enabled
    scheduler.on_epoch_begin(start, optimizer)
    assert float(model.relu1.clip_val) == clip


def test_observers_and_batch_norms_freeze():
    run = Run(schedule("linear", args={"disable_observer_epoch": 1, "freeze_bn_epoch": 2}))
    ranges, statistics = [], []

    def at(epoch):
        ranges.append(float(run.model.relu1.fake_q.iter_count))
        statistics.append(int(run.model.bn1.num_batches_tracked))

    run.train(4, at=at)
    assert ranges == [2, 2, 2, 2] and statistics == [2, 4, 4, 4]
    assert run.model.bn1.weight.grad is not None and run.model.bn1.weight.requires_grad


def test_freezes_inside_an_epoch():
    run = Run(schedule("linear", args={"disable_observer_epoch": 0.5, "freeze_bn_epoch": 1.5})).train(3)
    assert (int(run.model.relu1.fake_q.iter_count), int(run.model.bn1.num_batches_tracked)) == (1, 3)


@pytest.mark.parametrize(
    ("kind", "args", "message"),
    [
        ("dorefa", {"disable_observer_epoch": 2}, "does not follow the ranges"),
        ("linear", {"disable_observer_epoch": -1}, "an epoch from 0"),
        ("linear", {"freeze_bn": 2}, "freeze_bn_epoch"),
        ("linear", {"freeze_bn_epoch": "3"}, "a number"),
    ],
)
def test_policy_arguments_that_cannot_be(kind, args, message):
    with pytest.raises(ScheduleError, match=message):
        Run(schedule(kind, args=args))


def test_freezing_batch_norms_of_a_model_without_any():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ScheduleError, match="no batch norm"):
        distiller.dict_config(model, optimizer, schedule("dorefa", args={"freeze_bn_epoch": 1}))
    assert type(model[0]) is nn.Linear


def test_direct_use_as_ported_scripts_have_it():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    quantizer = distiller.quantization.DorefaQuantizer(model, optimizer, 8, 4)
    scheduler = distiller.CompressionScheduler(model)
    scheduler.add_policy(distiller.QuantizationPolicy(quantizer), starting_epoch=0, ending_epoch=2, frequency=1)
    assert isinstance(model.conv1, QuantizedLayer)
    (x, y) = data()[0]
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1, optimizer)
    loss = scheduler.before_backward_pass(0, 0, 1, nn.functional.cross_entropy(model(x), y), optimizer)
    loss.backward()
    optimizer.step()
    scheduler.on_minibatch_end(0, 0, 1, optimizer)
    quantizer.quantize_params()
    assert model.conv1.weight.grad_fn is not None
    with pytest.raises(ArgumentError, match="another model"):
        distiller.CompressionScheduler(Net()).add_policy(QuantizationPolicy(quantizer), [0])
    with pytest.raises(ArgumentError, match="expected a Quantizer"):
        QuantizationPolicy(model)


class Halves(Quantizer):
    """Writes multiples of 1/2 into the parameters after every step."""

    def __init__(self, model, optimizer=None, bits_activations=None):
        super().__init__(model, optimizer, bits_activations, 8)
        self.param_quantization_fn = lambda parameter, meta: torch.round(parameter * 2) / 2 + 0.5 * (parameter == 0)


def test_quantizers_without_float_copies_overwrite_after_every_step():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = distiller.dict_config(
        model,
        optimizer,
        {k: v for k, v in schedule("dorefa", prune=True).items() if k == "pruners"}
        | {"policies": [{"pruner": {"instance_name": "p"}, "starting_epoch": 0, "ending_epoch": 1}]},
    )
    scheduler.add_policy(QuantizationPolicy(Halves(model, optimizer)), starting_epoch=0, ending_epoch=2)
    for _ in scheduler.epochs(2):
        for x, y in scheduler.minibatches(data()):
            optimizer.zero_grad()
            scheduler.backward(nn.functional.cross_entropy(model(x), y))
            optimizer.step()
        assert torch.equal(model.conv2.weight * 2, torch.round(model.conv2.weight * 2))
        assert float((model.conv2.weight == 0).double().mean()) >= 0.5


# -- composing ---------------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("start", [0, 3])
def test_b14_pruning_and_quantization_in_one_schedule(kind, start):
    """B14: Distiller renamed the weight, and the pruner no longer found it."""
    run = Run(schedule(kind, start, end=5, prune=True))
    conv = run.model.conv2

    def at(epoch):
        weight = conv._parameters["weight"]
        if epoch >= 1:
            assert float((weight == 0).double().mean()) == 0.5
        if epoch >= max(start, 1):
            quantized = conv.quantized("weight")
            assert bool((quantized[weight == 0] == 0).all()) and bool((quantized != 0).any())

    run.train(5, at=at)
    assert "conv2.weight" in run.scheduler.zeros_mask_dict
    assert "conv2.weight" in str(run.scheduler.finish())


def test_regularizers_and_learning_rates_compose():
    sched = schedule("pact", start=1, prune=True)
    sched["regularizers"] = {"r": {"class": "L2Regularizer", "reg_regims": {"conv1.weight": 0.01}}}
    sched["lr_schedulers"] = {"lr": {"class": "StepLR", "step_size": 1, "gamma": 0.5}}
    sched["policies"] += [
        {"regularizer": {"instance_name": "r"}, "starting_epoch": 0, "ending_epoch": 4},
        {"lr_scheduler": {"instance_name": "lr"}, "starting_epoch": 0, "ending_epoch": 4},
    ]
    run = Run(sched).train(2)
    assert [group["lr"] for group in run.optimizer.param_groups] == [0.0125, 0.0125]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dorefa", "pact", "lsq", "linear"])
def test_compiled_training_equals_eager(kind):
    eager = Run(schedule(kind)).train(2)
    compiled = Run(schedule(kind))
    net = torch.compile(compiled.model, backend="aot_eager")
    for _ in compiled.scheduler.epochs(2):
        for x, y in compiled.scheduler.minibatches(data()):
            compiled.optimizer.zero_grad()
            compiled.scheduler.backward(nn.functional.cross_entropy(net(x), y))
            compiled.optimizer.step()
    for a, b in zip(eager.model.parameters(), compiled.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# -- saving and resuming -----------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize(
    ("killed_after", "optimizer"), [(1, torch.optim.AdamW), (5, torch.optim.SGD), (8, torch.optim.AdamW)]
)
def test_resume_is_bit_identical(kind, optimizer, killed_after):
    sched = schedule(kind, start=2, end=5, prune=True)
    if kind == "linear":
        sched["policies"][1]["quantizer"]["args"] = {"disable_observer_epoch": 3, "freeze_bn_epoch": 4}
    whole = Run(sched, optimizer=optimizer).train(5)
    first, buffer = Run(sched, optimizer=optimizer).train(5, stop_after=killed_after), io.BytesIO()
    torch.save({key: part.state_dict() for key, part in first.parts().items()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    resumed = Run(sched, seed=9, optimizer=optimizer)
    for key, part in resumed.parts().items():
        part.load_state_dict(saved[key])
    resumed.train(5)
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@every_kind
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_checkpoint_rebuilds_the_quantized_model(kind, epochs, tmp_path):
    sched = schedule(kind, start=2, end=4, prune=True)
    run = Run(sched).train(epochs)
    path = save_checkpoint(epochs - 1, "net", run.model, run.optimizer, run.scheduler, dir=tmp_path)
    x = data()[0][0]
    expected = run.model.eval()(x)
    fresh = Net()
    model, scheduler, optimizer, start = load_checkpoint(fresh, path)
    assert model is fresh and start == epochs
    assert torch.equal(model.eval()(x), expected)
    assert [len(g["params"]) for g in optimizer.param_groups] == [len(g["params"]) for g in run.optimizer.param_groups]
    # The run's own schedule continues on it, without a second quantization or a second group.
    again = distiller.dict_config(model, optimizer, sched, scheduler, start - 1)
    policy = next(p for p, _ in again.schedule if isinstance(p, QuantizationPolicy))
    assert policy.quantizer.is_enabled == (epochs > 2)
    assert [len(g["params"]) for g in optimizer.param_groups] == [len(g["params"]) for g in run.optimizer.param_groups]
    assert torch.equal(model.eval()(x), expected)


def test_a_checkpoint_loads_into_a_model_its_schedule_prepared(tmp_path):
    run = Run(schedule("pact")).train(2)
    path = save_checkpoint(1, "net", run.model, run.optimizer, run.scheduler, dir=tmp_path)
    other = Run(schedule("pact"), seed=4)
    load_checkpoint(other.model, path, other.optimizer, scheduler=other.scheduler)
    for a, b in zip(run.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(CheckpointError, match="was quantized by PACTQuantizer"):
        load_checkpoint(Run(schedule("dorefa")).model, path)


def test_frozen_state_survives_a_checkpoint(tmp_path):
    run = Run(schedule("linear", args={"disable_observer_epoch": 1, "freeze_bn_epoch": 1})).train(2)
    path = save_checkpoint(1, "net", run.model, dir=tmp_path)
    model = load_checkpoint(Net(), path)[0].train()
    assert not model.bn1.training and not model.relu1.fake_q.observing
    x = data()[0][0]
    before = copy.deepcopy(model.state_dict())
    model(x)
    assert all(torch.equal(a, model.state_dict()[name]) for name, a in before.items())


def test_the_record_holds_json_and_says_how():
    run = Run(schedule("linear", start=1, overrides={"fc": {"bits_weights": None}}))
    entry = next(iter(CompressionRecord().completed(run.model)))
    assert entry.transform == "quantize" and entry.config["class"] == "QuantAwareTrainRangeLinearQuantizer"
    assert entry.config["arguments"]["overrides"] == {"fc": {"bits_weights": None}}
    assert entry.config["layout"] == {"inputs": 1} and entry.metadata["is_enabled"] is False
    assert len(CompressionRecord().completed(Net())) == 0
    fresh = CompressionRecord.from_json(CompressionRecord([entry]).to_json()).replay(Net())
    assert list(fresh.state_dict()) == list(run.model.state_dict())


def test_quantizers_of_ones_own_are_saved_with_a_warning(tmp_path, caplog):
    model = Net()
    quantizer = Halves(model, bits_activations=8)
    quantizer.replacement_factory[nn.ReLU] = lambda module, name, bits: FakeQuantizationWrapper(
        module, 8, "SYMMETRIC", 0.9
    )
    quantizer.prepare_model()
    save_checkpoint(0, "net", model, dir=tmp_path)
    assert "prepare the model with Halves before loading" in caplog.text


# -- files -------------------------------------------------------------------------------------------------------------


def load(name, model, text=None, tmp_path=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    path = SCHEDULES / f"{name}.yaml"
    if text is not None:
        path = tmp_path / "schedule.yaml"
        path.write_text(text)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scheduler = distiller.file_config(model, optimizer, path)
    return scheduler, optimizer, [str(w.message) for w in caught if issubclass(w.category, ScheduleWarning)]


def two_minibatches(scheduler, optimizer, epoch, shape):
    model = scheduler.model
    scheduler.on_epoch_begin(epoch, optimizer)
    for minibatch in range(2):
        scheduler.on_minibatch_begin(epoch, minibatch, 2, optimizer)
        loss = model(torch.randn(2, *shape)).square().mean()
        loss = scheduler.before_backward_pass(epoch, minibatch, 2, loss, optimizer)
        optimizer.zero_grad()
        loss.backward()
        scheduler.before_parameter_optimization(epoch, minibatch, 2, optimizer)
        optimizer.step()
        scheduler.on_minibatch_end(epoch, minibatch, 2, optimizer)
    scheduler.on_epoch_end(epoch, optimizer)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("name", ["preact_resnet20_pact", "preact_resnet20_dorefa", "linear_qat"])
def test_schedules_of_distillers_shapes_on_resnet20(name):
    torch.manual_seed(0)
    model = create_model(False, "cifar10", "preact_resnet20_cifar")
    before = dict(model.named_parameters())
    scheduler, optimizer, warned = load(name, model)
    assert warned == []
    for epoch in (0, 1, 199):
        two_minibatches(scheduler, optimizer, epoch, (3, 32, 32))
    after = dict(model.named_parameters())
    assert all(after[n] is p for n, p in before.items())
    quantized = [n for n, m in model.named_modules() if isinstance(m, QuantizedLayer)]
    if name == "linear_qat":
        assert "conv1" in quantized and "fc" in quantized and hasattr(model, "inputs_quant")
        return
    assert "conv1" not in quantized and "fc" not in quantized and "layer1.0.conv1" in quantized
    assert type(model.final_relu) is nn.ReLU and type(model.layer1[0].pre_relu) is nn.ReLU
    assert type(model.layer1[0].relu) is not nn.ReLU
    clips = [n for n in after if n.endswith("clip_val")]
    assert len(clips) == (17 if name.endswith("pact") else 0)


def test_the_editor_schema_knows_quantizers():
    schema = schedule_schema()
    for path in SCHEDULES.glob("*.yaml"):
        jsonschema.validate(yaml.safe_load(path.read_text()), schema)
    wrong = yaml.safe_load((SCHEDULES / "linear_qat.yaml").read_text())
    wrong["quantizers"]["linear"]["bits_wts"] = 8
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_schedule_with_dots_that_are_no_dots():
    features = nn.Sequential(*[nn.Conv2d(2, 2, 1) if i in (0, 4) else nn.ReLU() for i in range(10)])
    classifier = nn.Sequential(*[nn.Linear(2, 2) if i in (1, 6) else nn.ReLU() for i in range(7)])
    model = nn.Sequential()
    model.add_module("features", features)
    model.add_module("classifier", classifier)
    scheduler, _, _ = load("alexnet_bn_dorefa", model)
    plan = scheduler.schedule[0][0].quantizer.plan()
    assert [r.module for r in plan.rows if not r.is_quantized] == [
        "features.0",
        "features.2",
        "classifier.5",
        "classifier.6",
    ]
    assert plan["features.4"].weights == 4 and plan["features.1"].activations == 8


def test_pruning_quantization_and_freezes_of_a_file():
    torch.manual_seed(0)
    model = create_model(False, "cifar10", "resnet20_cifar")
    scheduler, optimizer, _ = load("prune_then_quantize", model)
    for epoch in range(5):
        two_minibatches(scheduler, optimizer, epoch, (3, 32, 32))
    conv = model.layer1[0].conv1
    assert float((conv.float_weight == 0).double().mean()) == pytest.approx(0.5, abs=1e-3)
    assert bool((conv.quantized("weight")[conv.float_weight == 0] == 0).all())
    assert model.layer3[0].conv1.quantized_parameters["weight"].num_bits == 4
    assert float(conv.weight_zero_point.abs().max()) == 0
    assert not model.bn1.training and not model.inputs_quant.observing


SEED = """\
quantizers:
  dorefa_quantizer:
    class: DorefaQuantizer
    bits_activations: 8
    bits_weights: 4
    overrides:
      conv1:
        bits_weights: null
        bits_activations: null
      relu1:
        bits_weights: null
        bits_activations: null
      'block1\\.conv1':
        bits_weights: 4
        bits_activations: null
      'block1\\.conv*':
        bits_weights: 2
        bits_activations: null
policies:
  - quantizer:
      instance_name: dorefa_quantizer
      starting_epoch: 0
      ending_epoch: 200
      frequency: 1
"""


class Seed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(1, 1, 1), nn.ReLU()
        self.block1 = nn.Module()
        for number in (1, 2, 3):
            self.block1.add_module(f"conv{number}", nn.Conv2d(1, 1, 1))


def test_the_page_of_distiller_runs_with_its_nesting_and_its_loose_pattern(tmp_path):
    model = Seed()
    scheduler, _, warned = load("", model, SEED, tmp_path)
    quantizer = scheduler.schedule[0][0].quantizer
    assert [quantizer.module_qbits_map[f"block1.conv{i}"].wts for i in (1, 2, 3)] == [4, 2, 2]
    assert type(model.conv1) is nn.Conv2d and type(model.relu1) is nn.ReLU
    assert scheduler.schedule[0][1].last_epoch == 199
    loose = [text for text in warned if "whole name" in text]
    assert len(loose) == 1 and "schedule.yaml:2:3: quantizers.dorefa_quantizer: " in loose[0] and ".*" in loose[0]
    assert any("one level further out" in text for text in warned)


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ("conv1:\n", "cnov1:\n", "7:7", "matches no module of the model. Did you mean 'conv1'"),
        ("bits_weights: 2\n", "bits_weights: 0\n", "17:23", "from 1 to 32"),
        ("bits_weights: 2\n", "bits_wts: 2\n", "17:19", "takes 'bits_wts'"),
        ("bits_weights: 2\n", "wts: 2\n", "17:14", "write 'bits_weights'"),
        ("bits_activations: 8\n", "bits_activations: eight\n", "4:23", "whole number"),
        ("DorefaQuantizer", "DoReFaQuantizer", "3:12", "Did you mean 'DorefaQuantizer'"),
        ("    bits_weights: 4\n", "    bits_weight: 4\n", "5:5", "Did you mean 'bits_weights'"),
    ],
)
def test_mistakes_are_found_where_they_stand_and_change_nothing(old, new, place, message, tmp_path):
    model = Seed()
    before = str(model)
    with pytest.raises(ScheduleError) as caught:
        load("", model, SEED.replace(old, new, 1), tmp_path)
    assert f"schedule.yaml:{place}: " in str(caught.value), str(caught.value)
    assert message in str(caught.value)
    assert str(model) == before


def test_unmatched_overrides_can_be_left_out(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(SEED.replace("conv1:\n", "cnov1:\n", 1))
    model = Seed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(ScheduleWarning, match="matches no module"):
        distiller.file_config(model, optimizer, path, on_unmatched="warn")
    assert isinstance(model.conv1, QuantizedLayer)


def test_one_quantizer_a_schedule_and_an_optimizer():
    sched = schedule("dorefa")
    sched["quantizers"]["second"] = dict(KINDS["wrpn"])
    with pytest.raises(ScheduleError, match="at most 1 quantizer"):
        Run(sched)
    with pytest.raises(ScheduleError, match="needs an optimizer"):
        distiller.dict_config(Net(), None, schedule("dorefa"))


def test_component_from_file_by_class():
    model = create_model(False, "cifar10", "preact_resnet20_cifar")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    path = SCHEDULES / "preact_resnet20_pact.yaml"
    quantizer = distiller.config_component_from_file_by_class(model, path, "PACTQuantizer", optimizer=optimizer)
    assert isinstance(quantizer, PACTQuantizer) and not quantizer.is_prepared
    quantizer.prepare_model()
    assert isinstance(model.layer1[0].relu, LearnedClippedLinearQuantization)


def test_names_of_the_public_api():
    assert distiller.quantization.QuantAwareTrainRangeLinearQuantizer is QuantAwareTrainRangeLinearQuantizer
    assert distiller.quantization.DorefaQuantizer is DorefaQuantizer
    assert distiller.policy.QuantizationPolicy is QuantizationPolicy
    assert issubclass(TargetError, ValueError)
