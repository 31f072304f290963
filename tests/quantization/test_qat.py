"""Quantization-aware training: what each quantizer computes, against formulas written out again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.quantization.activations import (
    ClippedLinearQuantization,
    FakeLinearQuantization,
    FakeQuantizationWrapper,
    LearnedClippedLinearQuantization,
    LSQActivation,
)
from distiller_ng.quantization.base import QUANTIZERS
from distiller_ng.quantization.dorefa import DorefaQuantizer
from distiller_ng.quantization.lsq import LSQQuantizer
from distiller_ng.quantization.ncf import NCFQuantAwareTrainQuantizer
from distiller_ng.quantization.pact import PACTQuantizer
from distiller_ng.quantization.qat_range_linear import QuantAwareTrainRangeLinearQuantizer
from distiller_ng.quantization.wrpn import WRPNQuantizer
from distiller_ng.quantization.xnor import XNORQuantizer

ALL = [
    DorefaQuantizer,
    WRPNQuantizer,
    PACTQuantizer,
    QuantAwareTrainRangeLinearQuantizer,
    NCFQuantAwareTrainQuantizer,
    LSQQuantizer,
    XNORQuantizer,
]
FEW_BITS = {XNORQuantizer: {"bits_activations": None, "overrides": {"conv1": None, "fc": None}}}
every_quantizer = pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
MODES = ["SYMMETRIC", "SYMMETRIC_RESTRICTED", "ASYMMETRIC_UNSIGNED", "ASYMMETRIC_SIGNED"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(4, 4, 3), nn.ReLU6()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.relu1(self.bn1(self.conv1(x)))
        return self.fc(self.relu2(self.conv2(x)).mean((2, 3)))


def new_model(seed=0):
    torch.manual_seed(seed)
    return Net()


def prepared(cls, model=None, **kwargs):
    model = new_model() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    kwargs = kwargs if cls is XNORQuantizer else {"bits_activations": 4, "bits_weights": 4, **kwargs}
    quantizer = cls(model, optimizer, **kwargs)
    quantizer.prepare_model()
    return quantizer


def batch(seed=1, n=4):
    torch.manual_seed(seed)
    return torch.randn(n, 2, 8, 8), torch.randint(0, 3, (n,))


def step(quantizer, x, y):
    quantizer.optimizer.zero_grad()
    nn.functional.cross_entropy(quantizer.model(x), y).backward()
    quantizer.optimizer.step()


# -- every quantizer ---------------------------------------------------------------------------------------------------


@every_quantizer
def test_registered_under_distillers_names_and_learns(cls):
    assert QUANTIZERS.get(cls.__name__).cls is cls
    quantizer = prepared(cls, **FEW_BITS.get(cls, {}))
    (x, y), model = batch(n=8), quantizer.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    for _ in range(12):
        losses.append(float(nn.functional.cross_entropy(model(x), y).detach()))
        step(quantizer, x, y)
    assert min(losses[-4:]) < losses[0]
    # The batch norm cancels the bias before it, and no ReLU hits PACT's initial clip of 8 here.
    stayed = {n for n, p in model.named_parameters() if torch.equal(p, before[n])}
    assert stayed <= {"conv1.bias", "relu1.clip_val", "relu2.clip_val"}


@every_quantizer
def test_pruned_weights_quantize_to_zero(cls):
    model = new_model()
    mask = (torch.arange(model.conv2.weight.numel()) % 2).reshape(model.conv2.weight.shape).float()
    with torch.no_grad():
        model.conv2.weight.mul_(mask)
    quantizer = prepared(cls, model)
    x, y = batch()
    model(x)
    quantized = model.conv2.quantized("weight")
    assert bool((quantized[mask == 0] == 0).all()) and bool((quantized[mask == 1] != 0).any())
    nn.functional.cross_entropy(model(x), y).backward()
    assert model.conv2.float_weight.grad is not None
    quantizer.model.eval()
    assert torch.isfinite(model(x)).all()


@every_quantizer
def test_a_layer_of_zeros_is_no_nan(cls):
    model = new_model()
    with torch.no_grad():
        model.conv2.weight.zero_()
    prepared(cls, model)
    x, y = batch()
    nn.functional.cross_entropy(model(x), y).backward()
    assert torch.isfinite(model.conv2.float_weight.grad).all() and torch.isfinite(model(x)).all()


@every_quantizer
def test_waiting_models_are_the_float_model_and_its_parameters_exist(cls):
    plain, (x, _) = new_model(), batch()
    quantizer = prepared(cls)
    names = list(quantizer.model.state_dict())
    quantizer.disable()
    assert list(quantizer.model.state_dict()) == names
    for mode in (True, False):
        plain.train(mode)
        quantizer.model.train(mode)
        assert torch.equal(quantizer.model(x), plain(x))
    quantizer.enable()
    quantizer.model.train()(x)
    assert not torch.equal(quantizer.model.eval()(x), plain(x))


@every_quantizer
def test_state_dict_round_trip_is_exact(cls):
    quantizer, (x, y) = prepared(cls), batch()
    for _ in range(3):
        step(quantizer, x, y)
    other = prepared(cls, new_model(seed=5))
    other.model.load_state_dict(quantizer.model.state_dict())
    assert torch.equal(other.model.eval()(x), quantizer.model.eval()(x))
    assert torch.equal(copy.deepcopy(other.model)(x), other.model(x))


@every_quantizer
def test_no_module_of_another_model_is_touched(cls):
    """B6: Distiller patched the model's class, so every other instance of it broke."""
    bystander, (x, _) = new_model(), batch()
    expected = bystander.eval()(x)
    forwards = {kind: kind.forward for kind in (Net, nn.Conv2d, nn.Linear, nn.ReLU, nn.Sequential)}
    prepared(cls)
    assert torch.equal(bystander(x), expected) and torch.equal(Net().eval()(x), Net().eval()(x)) is not None
    assert all(kind.forward is forward for kind, forward in forwards.items())
    assert "forward" not in vars(bystander)


def test_b6_qat_leaves_the_class_of_the_model_alone():
    forward = nn.Sequential.forward
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    prepared(QuantAwareTrainRangeLinearQuantizer, model)
    assert nn.Sequential.forward is forward and "forward" not in vars(model)
    other = nn.Sequential(nn.Linear(3, 2))
    assert other(torch.ones(1, 3)).shape == (1, 2) and not hasattr(other, "inputs_quant")


@every_quantizer
def test_bf16_autocast_and_bf16_models(cls):
    quantizer, (x, y) = prepared(cls), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nn.functional.cross_entropy(quantizer.model(x), y)
    loss.backward()
    assert quantizer.model.conv1.float_weight.grad.dtype == torch.float32
    half = prepared(cls, new_model().bfloat16()).model
    half(x.bfloat16()).float().sum().backward()
    assert half.conv1.float_weight.grad.dtype == torch.bfloat16


@every_quantizer
def test_channels_last_and_no_bias(cls):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 2, False))
    prepared(cls, model.to(memory_format=torch.channels_last))
    x = torch.randn(2, 2, 4, 4).to(memory_format=torch.channels_last)
    model(x).sum().backward()
    assert model[0].float_weight.grad.shape == (4, 2, 3, 3)


@every_quantizer
def test_export_of_the_trained_model(cls):
    quantizer, (x, y) = prepared(cls), batch()
    step(quantizer, x, y)
    model = quantizer.model.eval()
    exported = torch.export.export(model, (x,), strict=False).module()
    torch.testing.assert_close(exported(x), model(x))


# -- DoReFa, WRPN, PACT ------------------------------------------------------------------------------------------------


def dorefa(w, bits):
    w = w.double()
    if bits == 1:
        return torch.where(w >= 0, 1.0, -1.0).double() * w.abs().mean()
    n = 2**bits - 1
    v = torch.tanh(w) / (2 * torch.tanh(w).abs().max()) + 0.5
    return 2 * torch.round(v * n) / n - 1


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_dorefa(bits):
    quantizer = prepared(DorefaQuantizer, bits_weights=bits, bits_activations=2)
    conv, x = quantizer.model.conv1, batch()[0]
    expected = dorefa(conv.float_weight.detach(), bits)
    torch.testing.assert_close(conv.quantized("weight").double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(conv(x), nn.functional.conv2d(x, expected.float(), conv.bias), rtol=1e-5, atol=1e-5)
    relu = quantizer.model.relu1
    assert type(relu) is ClippedLinearQuantization and type(quantizer.model.relu2) is ClippedLinearQuantization
    values = torch.tensor([-0.5, 0.4, 0.9, 7.0])
    torch.testing.assert_close(relu(values), torch.tensor([0.0, 1 / 3, 1.0, 1.0]))
    assert conv.bias is conv._parameters["bias"]


def test_dorefa_gradient_is_that_of_tanh():
    quantizer = prepared(DorefaQuantizer, bits_weights=3, bits_activations=None)
    layer = quantizer.model.fc
    weight = layer.float_weight.detach().clone().double().requires_grad_()
    largest = torch.tanh(weight).abs().max()
    (torch.tanh(weight) / largest).sum().backward()  # rounding passes gradients straight through
    layer.quantized("weight").sum().backward()
    torch.testing.assert_close(layer.float_weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_wrpn(bits):
    quantizer = prepared(WRPNQuantizer, bits_weights=bits)
    layer, n = quantizer.model.fc, (2**bits - 1) / 2
    with torch.no_grad():
        layer.float_weight[0, :4] = torch.tensor([-3.0, -0.4, 0.2, 2.0])
    expected = (torch.round(layer.float_weight.detach().clamp(-1, 1) * n)).clamp(
        -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    )
    torch.testing.assert_close(layer.quantized("weight"), expected / n)


def test_a_layer_whose_weights_all_become_zero_is_reported(caplog):
    model = new_model()
    with torch.no_grad():
        model.conv2.weight.clamp_(-0.05, 0.05)
        model.conv1.weight.zero_()  # pruned away: no news
    quantizer = prepared(WRPNQuantizer, model, bits_weights=4)
    assert "every weight of conv2 quantizes to 0" in caplog.text and "conv1" not in caplog.text
    caplog.clear()
    quantizer.wait()
    with torch.no_grad():
        model.conv2.weight.mul_(4)
    quantizer.enable()
    assert caplog.text == ""


def test_wrpn_refuses_one_bit():
    with pytest.raises(ArgumentError, match="WRPN needs 2 bits"):
        prepared(WRPNQuantizer, bits_weights=1)


def test_pact_clips_have_a_group_of_their_own_and_learn():
    quantizer = prepared(PACTQuantizer, act_clip_init_val=0.3, act_clip_decay=0.01, overrides={"relu2": None})
    model, optimizer = quantizer.model, quantizer.optimizer
    assert type(model.relu1) is LearnedClippedLinearQuantization and type(model.relu2) is nn.ReLU6
    assert len(optimizer.param_groups) == 2
    assert optimizer.param_groups[1]["params"][0] is model.relu1.clip_val
    assert (optimizer.param_groups[1]["weight_decay"], optimizer.param_groups[0]["weight_decay"]) == (0.01, 0)
    assert "relu1.clip_val" in model.state_dict()
    x = torch.tensor([-1.0, 0.1, 0.5, 9.0], requires_grad=True)
    model.relu1(x).sum().backward()
    assert float(model.relu1.clip_val.grad) == pytest.approx(2.0)  # the two that were clipped
    assert x.grad.tolist() == [0, 1, 0, 0]
    expected = torch.round(x.detach().clamp(0, 0.3) / 0.3 * 15) / 15 * 0.3
    torch.testing.assert_close(model.relu1(x.detach()), expected)


def test_pact_without_decay_takes_the_optimizers():
    model = new_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    PACTQuantizer(model, optimizer, 4, 4).prepare_model()
    assert optimizer.param_groups[1]["weight_decay"] == 0.5 and len(optimizer.param_groups[1]["params"]) == 2


def test_pact_start_by_override_and_again_when_it_begins_to_act():
    quantizer = prepared(PACTQuantizer, act_clip_init_val=8, overrides={"relu1": {"act_clip_init_val": 2.0}})
    clips = [quantizer.model.relu1.clip_val, quantizer.model.relu2.clip_val]
    assert [float(clip) for clip in clips] == [2.0, 8.0]
    quantizer.wait()
    with torch.no_grad():
        [clip.mul_(0.1) for clip in clips]  # what weight decay would do to them
    quantizer.enable()
    assert [float(clip) for clip in clips] == [2.0, 8.0]
    with torch.no_grad():
        [clip.mul_(0.5) for clip in clips]
    quantizer.disable()  # to compare with floating point, say
    quantizer.enable()
    assert [float(clip) for clip in clips] == [1.0, 4.0]


@pytest.mark.parametrize(("name", "value"), [("act_clip_init_val", 0), ("act_clip_decay", -1), ("act_clip_decay", "a")])
def test_pact_refuses(name, value):
    with pytest.raises(ArgumentError) as caught:
        prepared(PACTQuantizer, **{name: value})
    assert caught.value.argument == (name,)


# -- range-linear ------------------------------------------------------------------------------------------------------


def grid(w, bits, mode, axis=None):
    """Step, zero point (q = round(w / step) + zero_point) and integer range, in float64."""
    rows = w.double().reshape(1, -1) if axis is None else w.double().movedim(axis, 0).flatten(1)
    low, high = rows.amin(1), rows.amax(1)
    if mode.startswith("SYMMETRIC"):
        restricted = mode == "SYMMETRIC_RESTRICTED"
        n = 2 ** (bits - 1) - 1 if restricted else (2**bits - 1) / 2
        qmax = 2 ** (bits - 1) - 1
        return torch.maximum(-low, high) / n, torch.zeros_like(low), -qmax if restricted else -qmax - 1, qmax
    low, high = low.clamp(max=0), high.clamp(min=0)
    qmin = 0 if mode == "ASYMMETRIC_UNSIGNED" else -(2 ** (bits - 1))
    step = (high - low) / (2**bits - 1)
    return step, qmin - torch.round(low / step), qmin, qmin + 2**bits - 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("per_channel", [False, True])
def test_b3_each_mode_is_what_it_says(mode, per_channel):
    """B3: in Distiller three of the four modes were the fourth."""
    quantizer = prepared(
        QuantAwareTrainRangeLinearQuantizer, mode=mode, per_channel_wts=per_channel, bits_weights=4, bits_bias=None
    )
    conv, axis = quantizer.model.conv1, 0 if per_channel else None
    scale, zero, qmin, qmax = grid(conv.float_weight.detach(), 4, mode, axis)
    assert torch.equal(conv.weight_zero_point.double(), -zero)
    torch.testing.assert_close(conv.weight_scale.double(), 1 / scale)
    assert bool((zero == 0).all()) == mode.startswith("SYMMETRIC")
    shape = (-1, 1, 1, 1)
    q = (torch.round(conv.float_weight.double() / scale.reshape(shape)) + zero.reshape(shape)).clamp(qmin, qmax)
    expected = (q - zero.reshape(shape)) * scale.reshape(shape)
    torch.testing.assert_close(conv.quantized("weight").double(), expected, rtol=1e-5, atol=1e-7)
    assert len({float(v) for v in q.flatten()}) > 4
    # Activations
    fake = quantizer.model.relu1.fake_q
    quantizer.model.train()(batch()[0])
    assert (float(fake.zero_point) == 0) == (mode != "ASYMMETRIC_SIGNED")
    if mode == "ASYMMETRIC_SIGNED":
        assert float(fake.zero_point) == 8  # -(-8): the range of a ReLU begins at the smallest integer


def test_gradients_of_weights_pass_everywhere():
    quantizer = prepared(QuantAwareTrainRangeLinearQuantizer, bits_weights=2)
    layer = quantizer.model.fc
    layer.quantized("weight").sum().backward()
    assert torch.equal(layer.float_weight.grad, torch.ones_like(layer.float_weight))


def test_activations_are_wrapped_and_inputs_quantized():
    quantizer = prepared(QuantAwareTrainRangeLinearQuantizer, num_bits_inputs=2, mode="ASYMMETRIC_UNSIGNED")
    model = quantizer.model
    assert type(model.relu1) is FakeQuantizationWrapper and type(model.relu1.wrapped_module) is nn.ReLU
    assert type(model.inputs_quant) is FakeLinearQuantization and model.inputs_quant.num_bits == 2
    seen = []
    model.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    model.train()(batch()[0])
    assert len(seen[0].unique()) <= 4
    model(x=batch()[0])
    assert len(seen[1].unique()) <= 4
    assert quantizer.plan().rows[0].module == "(inputs)"


def test_several_inputs_have_ranges_of_their_own_and_integers_pass():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.table = nn.Linear(3, 3), nn.Embedding(5, 3)

        def forward(self, tokens, x, y):
            return self.fc(x + y + self.table(tokens))

    x = torch.ones(2, 3)
    inputs = (torch.tensor([1, 2]), x, 100 * x)
    model = Two()
    quantizer = QuantAwareTrainRangeLinearQuantizer(model, torch.optim.SGD(model.parameters(), lr=0.1), 8, 8)
    quantizer.prepare_model(inputs)
    model.train()(*inputs)
    assert [float(q.tracked_max) for q in model.inputs_quant] == [1.0, 100.0]
    assert copy.deepcopy(model)(*inputs).shape == (2, 3)


def test_quantize_inputs_off_and_a_name_of_the_models_own():
    assert not hasattr(prepared(QuantAwareTrainRangeLinearQuantizer, quantize_inputs=False).model, "inputs_quant")
    model = new_model()
    model.inputs_quant = nn.Identity()
    with pytest.raises(ArgumentError, match="'inputs_quant' of its own"):
        prepared(QuantAwareTrainRangeLinearQuantizer, model)
    assert type(model.conv1) is nn.Conv2d


def test_prelu_keeps_the_name_of_its_parameter():
    model = nn.Sequential(nn.Linear(3, 3), nn.PReLU())
    for cls in (QuantAwareTrainRangeLinearQuantizer, LSQQuantizer):
        fresh = copy.deepcopy(model)
        prepared(cls, fresh, bits_activations=2)
        assert "1.weight" in dict(fresh.named_parameters())
        fresh.train()(torch.randn(16, 3))
        assert len(fresh(torch.randn(64, 3)).detach().unique()) <= 4


def test_observers_can_be_frozen():
    quantizer = prepared(QuantAwareTrainRangeLinearQuantizer)
    model = quantizer.model.train()
    model(batch()[0])
    before = {name: b.clone() for name, b in model.named_buffers() if "tracked_m" in name}
    quantizer.freeze_observers()
    model(10 * batch()[0])
    assert before and all(torch.equal(b, dict(model.named_buffers())[name]) for name, b in before.items())
    quantizer.freeze_observers(False)
    model(10 * batch()[0])
    assert not torch.equal(before["inputs_quant.tracked_max"], model.inputs_quant.tracked_max)


def test_saved_scales_belong_to_the_saved_weights():
    quantizer = prepared(QuantAwareTrainRangeLinearQuantizer, mode="SYMMETRIC_RESTRICTED")
    with torch.no_grad():
        quantizer.model.fc.float_weight.mul_(2)
    scale = quantizer.model.state_dict()["fc.weight_scale"]
    assert float(scale) == pytest.approx(7 / float(quantizer.model.fc.float_weight.abs().max()))
    found = quantizer.model.fc.quantization_parameters()
    assert float(found.scale) == pytest.approx(1 / float(scale)) and (found.qmin, found.qmax) == (-7, 7)


def test_modes_of_activations_and_weights_apart():
    quantizer = prepared(
        QuantAwareTrainRangeLinearQuantizer, mode={"activations": "ASYMMETRIC_UNSIGNED", "weights": "symmetric"}
    )
    assert quantizer.model.relu1.fake_q.mode.name == "ASYMMETRIC_UNSIGNED"
    assert float(quantizer.model.fc.weight_zero_point) == 0
    for wrong in ("SYM", {"activations": "SYMMETRIC"}, {"activations": "SYMMETRIC", "wts": "SYMMETRIC"}):
        with pytest.raises(ArgumentError) as caught:
            prepared(QuantAwareTrainRangeLinearQuantizer, mode=wrong)
        assert caught.value.argument[0] == "mode"


@pytest.mark.parametrize(
    ("name", "value"),
    [("ema_decay", 1.0), ("ema_decay", -0.1), ("num_bits_inputs", 0), ("bits_weights", 1), ("bits_activations", 99)],
)
def test_range_linear_refuses(name, value):
    with pytest.raises(ArgumentError) as caught:
        prepared(QuantAwareTrainRangeLinearQuantizer, **{name: value})
    assert caught.value.argument == (name,)


def test_transposed_convolutions_and_embeddings():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 2))
    prepared(QuantAwareTrainRangeLinearQuantizer, model, per_channel_wts=True)
    assert model[0].weight_scale.shape == (3,)
    table = nn.Sequential(nn.Embedding(5, 3))
    prepared(QuantAwareTrainRangeLinearQuantizer, table, per_channel_wts=True, quantize_inputs=False)
    assert table[0].weight_scale.shape == (1,)
    assert table(torch.tensor([1])).shape == (1, 3)


def test_ncf_quantizes_products_concatenations_and_linear_outputs():
    from distiller_ng.modules import Concat, EltwiseMult

    class NCF(nn.Module):
        def __init__(self):
            super().__init__()
            self.user, self.item, self.mult, self.cat = nn.Embedding(4, 3), nn.Embedding(4, 3), EltwiseMult(), Concat(1)
            self.final = nn.Linear(6, 1)

        def forward(self, u, i):
            u, i = self.user(u), self.item(i)
            return self.final(self.cat(self.mult(u, i), u))

    model = NCF()
    names = list(dict(model.named_parameters()))
    prepared(NCFQuantAwareTrainQuantizer, model, bits_activations=2, mode="ASYMMETRIC_UNSIGNED")
    assert not hasattr(model, "inputs_quant") and list(dict(model.named_parameters())) == names
    tokens = torch.arange(4)
    model.train()(tokens, tokens)
    assert isinstance(model.mult, FakeQuantizationWrapper) and isinstance(model.cat, FakeQuantizationWrapper)
    assert float(model.final.output_quant.iter_count) == 1 and len(model(tokens, tokens).detach().unique()) <= 4


# -- LSQ, XNOR-Net++ ---------------------------------------------------------------------------------------------------


def test_lsq_weights_and_steps():
    quantizer = prepared(LSQQuantizer, bits_weights=3, bits_activations=2, overrides={"fc": {"bits_weights": 8}})
    model = quantizer.model
    weight = model.conv1.float_weight.detach()
    start = 2 * weight.abs().mean() / 3**0.5
    torch.testing.assert_close(model.conv1.weight_step.detach(), start.reshape(1))
    expected = torch.round((weight / start).clamp(-4, 3)) * start
    torch.testing.assert_close(model.conv1.quantized("weight"), expected)
    assert type(model.relu1) is LSQActivation and not model.relu1.signed
    steps = quantizer.optimizer.param_groups[1]
    assert len(steps["params"]) == 5 and steps["weight_decay"] == 0
    x, y = batch()
    before = [float(p) for p in steps["params"]]
    step(quantizer, x, y)
    step(quantizer, x, y)
    assert all(float(p) != b for p, b in zip(steps["params"], before))


def test_lsq_gradient_of_the_step():
    quantizer = prepared(LSQQuantizer, bits_weights=3)
    layer = quantizer.model.train().fc
    layer.quantized("weight").sum().backward()
    v = (layer.float_weight / layer.weight_step).detach().double()
    inside = torch.round(v) - v
    per_value = torch.where(v <= -4, -4.0, torch.where(v >= 3, 3.0, inside))
    expected = per_value.sum() / (v.numel() * 3) ** 0.5
    assert float(layer.weight_step.grad) == pytest.approx(float(expected), rel=1e-4)


def test_lsq_per_channel_and_late_start():
    quantizer = prepared(LSQQuantizer, per_channel_wts=True)
    conv = quantizer.model.conv1
    assert conv.weight_step.shape == (4,)
    quantizer.wait()
    with torch.no_grad():
        conv.weight.mul_(3)
    before = conv.weight_step.detach().clone()
    quantizer.enable()
    torch.testing.assert_close(conv.weight_step.detach(), 3 * before)


@pytest.mark.parametrize("bits", [1, 17])
def test_lsq_refuses(bits):
    with pytest.raises(ArgumentError, match="LSQ has 2 to 16"):
        prepared(LSQQuantizer, bits_weights=bits)


def test_xnor():
    quantizer = prepared(XNORQuantizer, overrides={"conv1": None, "fc": None})
    model, x = quantizer.model, torch.randn(2, 4, 5, 5)
    conv = model.conv2
    alpha = conv.float_weight.detach().abs().mean((1, 2, 3))
    torch.testing.assert_close(conv.output_quant.alpha.detach(), alpha)
    sign = torch.where(conv.float_weight.detach() >= 0, 1.0, -1.0)
    expected = nn.functional.conv2d(torch.where(x >= 0, 1.0, -1.0), sign, conv.bias) * alpha.reshape(1, -1, 1, 1)
    torch.testing.assert_close(conv(x), expected)
    assert type(model.conv1) is nn.Conv2d and type(model.fc) is nn.Linear
    assert quantizer.optimizer.param_groups[1]["params"] == [conv.output_quant.alpha]
    weights_only = prepared(XNORQuantizer, bits_activations=None, overrides={"conv1": None, "fc": None}).model.conv2
    torch.testing.assert_close(weights_only(x), nn.functional.conv2d(x, sign, conv.bias) * alpha.reshape(1, -1, 1, 1))


def test_xnor_warns_of_rectifiers():
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert "relu1, relu2: a binary layer right after" in " ".join(XNORQuantizer(model, optimizer).plan().warnings)
    assert XNORQuantizer(model, optimizer, bits_activations=None).plan().warnings == ()


@pytest.mark.parametrize(("name", "value"), [("bits_weights", 2), ("bits_activations", 8)])
def test_xnor_refuses(name, value):
    with pytest.raises(ArgumentError, match="1 or null"):
        prepared(XNORQuantizer, **{name: value})


def test_a_sequential_model_runs_its_input_quantizer_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    x = torch.rand(8, 3) * 0.01  # a grid for such inputs would cut the outputs off
    expected = model(x).detach()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    QuantAwareTrainRangeLinearQuantizer(model, optimizer, 8, 8, None).prepare_model()
    model.train()(x)
    assert len(model) == 3
    assert [type(child).__name__ for child in model][-1] == "QuantizedLinear"
    assert torch.allclose(model.eval()(x), expected, atol=0.01)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
