"""Calibration statistics: exact numbers, one pass, the collector's manners."""

import logging

import pytest
import torch
from torch import nn

import distiller_ng as distiller
from distiller_ng.data_loggers import (
    InplaceError,
    QuantCalibrationStatsCollector,
    collect_quant_stats,
    collector_context,
    load_quant_stats,
)
from distiller_ng.errors import ArgumentError, CalibrationError, LifecycleError, TargetError
from distiller_ng.ops.histogram import Histogram


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.relu = nn.ReLU(inplace=True)
        self.skip = nn.Identity()
        self.add = distiller.modules.EltwiseAdd()
        self.fc = nn.Linear(3, 4)

    def forward(self, x):
        y = self.skip(self.relu(self.conv(x)))
        return self.fc(self.add(y, y).mean((2, 3)))


def watch(module, batches, **kwargs):
    model = nn.Sequential(module).eval()
    collector = QuantCalibrationStatsCollector(model, **kwargs)
    with collector_context(collector), torch.no_grad():
        for batch in batches:
            model(*batch) if isinstance(batch, tuple) else model(batch)
    return collector.value()["0"]


def expected(batches):
    everything = torch.cat([b.double().flatten() for b in batches])
    samples = [row.double() for batch in batches for row in batch.flatten(1)]
    mean = everything.mean()
    return {
        "min": float(everything.min()),
        "max": float(everything.max()),
        "avg_min": sum(float(s.min()) for s in samples) / len(samples),
        "avg_max": sum(float(s.max()) for s in samples) / len(samples),
        "mean": float(mean),
        "std": float(everything.std(correction=0)),
        "b": float((everything - mean).abs().mean()),
        "total_numel": everything.numel(),
    }


def close(entry, wanted, b=1e-6):
    for key, value in wanted.items():
        assert entry[key] == pytest.approx(value, rel=b if key == "b" else 1e-6, abs=1e-7), key


def test_b4_averages_weigh_every_sample_alike():
    # one sample with maximum 1, then three with maximum 10: 7.75, where Distiller says 1.25
    batches = [torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 10.0]] * 3)]
    entry = watch(nn.ReLU(), batches)["output"]
    assert entry["avg_max"] == 7.75
    assert entry["avg_min"] == 0.0


def test_worked_example():
    entry = watch(nn.Hardtanh(-9, 9), [torch.tensor([[1.0, 3.0]]), torch.tensor([[5.0, 7.0]])])["output"]
    std = entry.pop("std")
    assert entry == {
        "min": 1.0, "max": 7.0, "avg_min": 3.0, "avg_max": 5.0, "mean": 4.0, "b": 2.0, "shape": "(1, 2)",
        "total_numel": 4,
    }  # fmt: skip
    assert std == pytest.approx(5**0.5)


@pytest.mark.parametrize("kind", ["alike", "shifting", "scaled", "offset", "many"])
def test_one_pass_equals_float64_references(kind):
    torch.manual_seed(1)
    scales = {
        "alike": [1, 1, 1],
        "shifting": [1, 1, 1, 1],
        "scaled": [0.01, 100, 1],
        "offset": [1, 1],
        "many": [1] * 70,
    }
    shifts = {
        "alike": [0, 0, 0],
        "shifting": [0, 50, -20, 3],
        "scaled": [0, 0, 5],
        "offset": [1e4, 1e4],
        "many": [2] * 70,
    }
    batches = [
        torch.randn(2 + i % 3, 3, 5, 4) * scale + shift
        for i, (scale, shift) in enumerate(zip(scales[kind], shifts[kind]))
    ]
    found = watch(nn.Hardtanh(-1e9, 1e9), batches)
    close(found["inputs"][0], expected(batches), b=2e-3)
    assert found["output"] == found["inputs"][0]


def test_b_of_large_tensors_is_estimated_from_a_part():
    torch.manual_seed(2)
    batches = [torch.randn(8, 16, 40, 40) * (1 + i) + i for i in range(5)]
    close(watch(nn.Hardtanh(-1e9, 1e9), batches)["output"], expected(batches), b=1e-2)


def test_second_pass_makes_b_exact():
    torch.manual_seed(3)
    model = nn.Sequential(nn.ReLU()).eval()
    batches = [torch.randn(4, 9000) * (1 + 9 * i) + 30 * i for i in range(3)]
    calls = []

    def test_fn(model):
        calls.append(model)
        for batch in batches:
            model(batch)

    wanted = expected([torch.relu(b) for b in batches])
    once = collect_quant_stats(model, test_fn)["0"]["output"]
    assert len(calls) == 1
    twice = collect_quant_stats(model, test_fn, second_pass=True)["0"]["output"]
    assert len(calls) == 3
    assert once["b"] == pytest.approx(wanted["b"], rel=1e-2)
    close(twice, wanted)
    assert {k: v for k, v in once.items() if k != "b"} == {k: v for k, v in twice.items() if k != "b"}


def test_distillers_own_order_of_the_second_pass():
    model, x = nn.Sequential(nn.ReLU()).eval(), torch.randn(2, 6)
    collector = QuantCalibrationStatsCollector(model)
    with pytest.raises(LifecycleError, match="first"):
        collector.start_second_pass()
    with collector_context(collector):
        model(x)
        collector.start_second_pass()
        model(x)
        collector.stop_second_pass()
    assert collector.value()["0"]["output"]["total_numel"] == 12
    close(collector.value()["0"]["output"], expected([torch.relu(x)]))


def test_every_leaf_but_identity_and_only_what_ran():
    model = Net().eval()
    model.unused = nn.Linear(2, 2)
    before = [set(vars(module)) for module in model.modules()]
    stats = collect_quant_stats(model, lambda model: model(torch.randn(2, 2, 6, 6)))
    assert list(stats) == ["conv", "relu", "add", "fc", "mean"]
    assert list(stats["add"]["inputs"]) == [0, 1]
    assert stats["conv"]["inputs"][0]["shape"] == "(2, 2, 6, 6)"
    assert list(stats["conv"]["output"]) == [
        "min", "max", "avg_min", "avg_max", "mean", "std", "b", "shape", "total_numel"
    ]  # fmt: skip
    assert [set(vars(module)) for module in model.modules()] == before
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


def test_in_place_modules_do_no_harm():
    torch.manual_seed(0)
    x = torch.randn(2, 2, 6, 6)
    stats = [None, None]
    for number, inplace in enumerate((True, False)):
        torch.manual_seed(5)
        model = Net().eval()
        model.relu.inplace = inplace
        stats[number] = collect_quant_stats(model, lambda model: model(x))
    assert stats[0] == stats[1]
    assert stats[0]["relu"]["inputs"][0]["min"] < 0 <= stats[0]["relu"]["output"]["min"]


def test_in_place_modules_can_be_refused_or_switched_off():
    model = Net().eval()
    run = lambda model: model(torch.randn(2, 2, 6, 6))  # noqa: E731
    with pytest.raises(InplaceError, match="'relu' works in place"):
        collect_quant_stats(model, run, inplace_runtime_check=True)
    assert issubclass(InplaceError, RuntimeError)
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    stats = collect_quant_stats(model, run, inplace_runtime_check=True, disable_inplace_attrs=True)
    assert "relu" in stats
    assert model.relu.inplace is True
    nn.Dropout(inplace=False)
    collect_quant_stats(
        nn.Sequential(nn.Dropout()).eval(), lambda model: model(torch.ones(2, 2)), inplace_runtime_check=True
    )


def test_data_parallel_is_refused():
    for model in (nn.DataParallel(Net()), nn.Sequential(nn.DataParallel(nn.Linear(2, 2)))):
        with pytest.raises(ValueError, match="DataParallel"):
            QuantCalibrationStatsCollector(model)


def test_nan_and_infinity_name_the_layer_and_leave_the_model():
    model = Net().eval()
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0] = float("nan")
    collector = QuantCalibrationStatsCollector(model)
    with pytest.raises(CalibrationError, match="the output of 'conv'"), collector_context(collector):
        model(torch.randn(1, 2, 6, 6))
    with pytest.raises(CalibrationError):
        collector.value()
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    with pytest.raises(CalibrationError, match="input 0 of '0'"):
        collect_quant_stats(nn.Sequential(nn.ReLU()), lambda model: model(torch.tensor([[float("inf"), 1.0]])))


def test_values_of_attention_masks_overflow_nothing():
    lowest = torch.finfo(torch.float32).min
    x = torch.tensor([[0.0, 1.0, lowest, lowest]] * 4)
    entry = watch(nn.Softmax(dim=1), [x, x])["inputs"][0]
    assert (entry["min"], entry["max"], entry["avg_min"]) == (lowest, 1.0, lowest)
    assert entry["mean"] == pytest.approx(lowest / 2, rel=1e-6)
    assert entry["std"] == pytest.approx(-lowest / 2, rel=1e-2) and entry["b"] == pytest.approx(-lowest / 2, rel=1e-2)


def test_an_error_in_the_block_is_not_hidden():
    model = Net().eval()
    collector = QuantCalibrationStatsCollector(model)
    with pytest.raises(KeyError), collector_context(collector):
        model(torch.full((1, 2, 6, 6), float("nan")))
        raise KeyError("mine")
    assert not collector.is_collecting


def test_modules_list_names_modules_and_containers():
    model = nn.Sequential(Net(), nn.Sequential(nn.Linear(4, 4), nn.ReLU())).eval()
    run = lambda model: model(torch.randn(2, 2, 6, 6))  # noqa: E731
    assert list(collect_quant_stats(model, run, modules_to_collect=["1", "0.fc"])) == ["0.fc", "1.0", "1.1"]
    assert list(collect_quant_stats(model, run, modules_to_collect=["module.1.0"])) == ["1.0"]
    assert list(collect_quant_stats(model, run, classes=[nn.Linear], modules_to_collect=["1"])) == ["1.0"]
    assert len(collect_quant_stats(model, run, modules_to_collect=[])) == 7
    assert list(collect_quant_stats(model, run, modules_to_collect=["0.mean"])) == ["0.mean"]
    with pytest.raises(TargetError, match="no module '0.fcc'.*'0.fc'"):
        collect_quant_stats(model, run, modules_to_collect=["0.fcc"])


def test_whole_numbers_and_odd_shapes():
    entry = watch(nn.Embedding(10, 3), [torch.tensor([[1, 2], [9, 4]])])["inputs"][0]
    assert (entry["min"], entry["max"]) == (1, 9) and type(entry["min"]) is int
    assert entry["avg_min"] == 2.5
    entry = watch(nn.ReLU(), [torch.tensor([1.0, 5.0]), torch.tensor([3.0])])["output"]
    assert (entry["avg_min"], entry["avg_max"], entry["shape"]) == (5 / 3, 13 / 3, "(2)")  # batch-wide, 2 and 1 samples
    entry = watch(nn.ReLU(), [torch.tensor(2.0)])["output"]
    assert (entry["min"], entry["std"], entry["shape"], entry["total_numel"]) == (2.0, 0.0, "()", 1)
    stats = collect_quant_stats(
        nn.Sequential(nn.ReLU(), nn.Flatten()), lambda model: (model(torch.empty(0, 3)), model(torch.ones(1, 3)))
    )
    assert stats["0"]["output"]["total_numel"] == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    x = (torch.randn(4, 3, 8, 8) * 3).to(dtype)
    close(watch(nn.Hardtanh(-99, 99), [x])["inputs"][0], expected([x]), b=1e-3)


def test_memory_layout_does_not_matter():
    x = torch.randn(4, 3, 8, 8)
    plain = watch(nn.ReLU(), [x])
    for other in (x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        found = watch(nn.ReLU(), [other])["output"]
        assert found.pop("shape") == plain["output"]["shape"]
        assert {key: plain["output"][key] for key in found} == pytest.approx(found, rel=1e-5)


def test_keyword_arguments_numbers_splits_and_recurrent_layers():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.add, self.stack = distiller.modules.EltwiseAdd(), distiller.modules.Stack()
            self.split, self.lstm = distiller.modules.Split(2, dim=1), nn.LSTM(2, 3)
            self.attention = nn.MultiheadAttention(4, 2)

        def forward(self, x):
            self.add(x, 2, x)
            self.stack([x, x])
            self.attention(x[None], key=x[None], value=x[None])
            parts = self.split(x)
            self.lstm(parts[0][:, None], (torch.zeros(1, 1, 3), torch.ones(1, 1, 3)))
            return x

    x = torch.arange(12.0).reshape(3, 4)
    stats = collect_quant_stats(Odd().eval(), lambda model: model(x))
    assert list(stats["add"]["inputs"]) == [0, 2]
    assert list(stats["stack"]["inputs"]) == [0, 1]
    assert (stats["split"]["output"]["max"], stats["split"]["output"]["total_numel"]) == (11.0, 12)
    assert list(stats["lstm"]["inputs"]) == [0, 1, 2] and stats["lstm"]["output"]["shape"] == "(3, 1, 3)"
    assert list(stats["attention"]["inputs"]) == [0, 1, 2] and "attention.out_proj" not in stats


def test_masks_of_attention_are_no_activations():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    x, padding = torch.randn(2, 3, 4), torch.tensor([[False, False, True], [False, False, False]])
    stats = collect_quant_stats(layer, lambda model: model(x, src_key_padding_mask=padding))  # -inf where it is True
    assert list(stats["self_attn"]["inputs"]) == [0, 1, 2]


def test_shared_modules_and_wrappers():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = self.b = nn.Linear(2, 2)

        def forward(self, x):
            return self.b(self.a(x))

    class Wrapper(nn.Module):
        def __init__(self, wrapped):
            super().__init__()
            self.wrapped_module = wrapped

        def forward(self, x):
            return self.wrapped_module(x)

    stats = collect_quant_stats(Twice(), lambda model: model(torch.ones(3, 2)))
    assert list(stats) == ["a"] and stats["a"]["output"]["total_numel"] == 12
    stats = collect_quant_stats(nn.Sequential(Wrapper(nn.Linear(2, 2))), lambda model: model(torch.ones(3, 2)))
    assert list(stats) == ["0"]


def test_inference_mode_and_mixed_modes():
    model, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)).eval(), torch.randn(4, 3)
    wanted = collect_quant_stats(model, lambda model: (model(x), model(x)))

    def run(model):
        with torch.inference_mode():
            model(x)
        model(x)

    assert collect_quant_stats(model, run) == wanted


def test_histograms_of_everything_for_the_clippings_that_need_them():
    x = torch.randn(4, 10000)
    run = lambda model: model(x)  # noqa: E731
    entry = collect_quant_stats(nn.Sequential(nn.ReLU()), run, histograms=True)["0"]["output"]
    histogram = entry["histogram"]
    assert isinstance(histogram, Histogram) and float(histogram.counts.sum()) == x.numel()
    assert (histogram.low, histogram.high) == pytest.approx((0.0, float(x.max())), abs=2 * histogram.width)
    large = torch.randn(2, 100000)
    large[0, 7] = 50.0
    entry = collect_quant_stats(nn.Sequential(nn.ReLU()), lambda model: model(large), histograms=True)["0"]["output"]
    assert 20000 < float(entry["histogram"].counts.sum()) <= 65536
    assert entry["histogram"].high >= 50.0  # whatever was sampled


def test_reset_start_stop():
    model = nn.Sequential(nn.ReLU()).eval()
    collector = QuantCalibrationStatsCollector(model)
    collector.stop()
    collector.start()
    with pytest.raises(LifecycleError, match="already"):
        collector.start()
    model(torch.ones(1, 2))
    collector.stop()
    model(torch.full((1, 2), 9.0))
    assert collector.value()["0"]["output"]["max"] == 1.0
    collector.start()
    model(torch.full((1, 2), 9.0))
    collector.stop()
    assert collector.value()["0"]["output"]["max"] == 9.0
    collector.reset()
    assert collector.value() == {}


def test_nothing_collected_says_so():
    with pytest.raises(CalibrationError, match="test_fn"):
        collect_quant_stats(nn.Sequential(nn.ReLU()), lambda model: None)


def test_training_mode_warns(caplog):
    with caplog.at_level(logging.WARNING):
        collect_quant_stats(nn.Sequential(nn.ReLU()).train(), lambda model: model(torch.ones(1, 2)))
    assert "training mode" in caplog.text


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_scripted_modules_are_refused_before_any_hook():
    model = nn.Sequential(nn.ReLU(), torch.jit.script(nn.Linear(2, 2))).eval()
    with pytest.raises(TargetError, match="cannot be watched: 1"):
        collect_quant_stats(model, lambda model: model(torch.ones(1, 2)))
    assert not model[0]._forward_hooks
    assert list(collect_quant_stats(model, lambda model: model(torch.ones(1, 2)), modules_to_collect=["0"])) == ["0"]


def test_attention_and_autocast():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    run = lambda model: model(torch.randn(2, 5, 8))  # noqa: E731
    stats = collect_quant_stats(layer, run)
    with torch.no_grad():  # torch's fused path must not hide the parts
        assert list(collect_quant_stats(layer, run)) == list(stats)
    assert {"self_attn", "linear1", "linear2", "norm2"} <= stats.keys()
    with torch.autocast("cpu", torch.bfloat16):
        assert list(collect_quant_stats(layer, run)) == list(stats)


def test_wrong_arguments():
    with pytest.raises(ArgumentError, match="torch.nn.Module"):
        QuantCalibrationStatsCollector("model")
    with pytest.raises(ArgumentError, match="classes"):
        QuantCalibrationStatsCollector(nn.ReLU(), classes=["ReLU"])


def test_a_model_that_is_one_layer():
    stats = collect_quant_stats(nn.ReLU(), lambda model: model(torch.ones(1, 2)))
    assert stats[""]["output"]["max"] == 1.0


class Functions(nn.Module):
    """Functions of several kinds, around a part and in one that has no parts."""

    class Scale(nn.Module):
        def forward(self, x):
            return x * 2 + 1

    def __init__(self):
        super().__init__()
        self.conv, self.mul, self.scale = nn.Conv2d(2, 2, 1), nn.Identity(), self.Scale()

    def forward(self, x, position=0):
        y = torch.relu(self.conv(x))
        y += x
        y = y + torch.cat([x, self.scale(x)], dim=1).chunk(2, dim=1)[1]
        masked = (y * 0.5).masked_fill(torch.tensor([[[False]], [[True]]]), float("-inf"))
        return 1 - torch.softmax(masked + y, dim=1), torch.arange(3) + position


def test_functions_are_named_after_the_module_that_calls_them():
    model, x = Functions().eval(), torch.rand(2, 2, 3, 3)
    kinds = [type(module) for module in model.modules()]
    expected = model(x)
    seen = []
    model.conv.register_forward_hook(lambda module, args, output: seen.append(output.mean() + 1))
    stats = collect_quant_stats(model, lambda model: seen.append(model(x)))
    assert torch.equal(seen[1][0], expected[0])
    # "mul" is a module of the model; masked_fill makes "add_2" infinite; the part Scale counts as a whole.
    assert list(stats) == ["conv", "scale", "relu", "add", "cat", "chunk", "add_1", "mul_1", "softmax", "sub"]
    assert stats["add"]["inputs"][1]["max"] == float(x.max())
    assert stats["add"]["inputs"][0]["max"] == stats["relu"]["output"]["max"]
    assert stats["add"]["output"]["max"] == stats["add_1"]["inputs"][0]["max"]
    assert set(stats["cat"]["inputs"]) == {0, 1}
    assert stats["chunk"]["output"]["total_numel"] == 2 * 4 * 9
    assert set(stats["mul_1"]["inputs"]) == {0}
    assert "inputs" not in stats["softmax"]
    assert [type(module) for module in model.modules()] == kinds
    assert not any("call_listeners" in vars(module) for module in model.modules())
    with pytest.raises(RuntimeError, match="expected input"):
        collect_quant_stats(model, lambda model: model(x[:, :1]))
    assert [type(module) for module in model.modules()] == kinds


def test_statistics_with_functions_belong_to_the_model():
    model, x = nn.Sequential(Functions(), nn.Flatten()).eval(), torch.rand(2, 2, 3, 3)
    stats = collect_quant_stats(model[0], lambda model: model(x))
    assert load_quant_stats(stats, model[0]).keys() == stats.keys()
    for wrong in ("conv.add", "scale.add", "add_0", "ad", "mul.add"):
        with pytest.raises(CalibrationError, match="another model"):
            load_quant_stats({**stats, wrong: stats["add"]}, model[0])
    histograms = distiller.data_loggers.collect_histograms(model[0], lambda model: model(x), activation_stats=stats)
    assert histograms["add_1"]["output"]["hist"].sum() == x.numel()


def test_observed_ranges_know_functions_too():
    model, x = Functions().eval(), torch.rand(2, 2, 3, 3)
    stats = collect_quant_stats(model, lambda model: model(x))
    ranges = distiller.data_loggers.collect_observed_ranges(model, lambda model: model(x), "min_max")
    assert list(ranges) == list(stats)  # without the function that makes infinite values
    assert ranges["add_1"]["output"]["max"] == pytest.approx(stats["add_1"]["output"]["max"])
    assert load_quant_stats(ranges, model).keys() == ranges.keys()
