"""Observers: ranges, extension, merging, states; and the collector that uses them."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from distiller_ng.data_loggers import (
    OBSERVERS,
    ObservedRangesCollector,
    Observer,
    collect_observed_ranges,
    collector_context,
    load_quant_stats,
)
from distiller_ng.data_loggers.observers import EMAObserver, HistogramObserver, MinMaxObserver, observer_named
from distiller_ng.errors import ArgumentError, CalibrationError
from distiller_ng.ops.clipping import mse_range
from distiller_ng.ops.linear_quantization import LinearQuantMode

NAMES = ["ema", "histogram", "kl", "min_max", "mse", "percentile"]


def seen(observer, *batches):
    for batch in batches:
        observer.update(torch.as_tensor(batch))
    return observer


def gauss():
    return torch.randn(8, 5000, generator=torch.Generator().manual_seed(0))


def test_registry_has_one_of_each():
    assert OBSERVERS.names() == NAMES


@pytest.mark.parametrize(
    ("name", "arguments", "batches", "wanted"),
    [
        ("min_max", {}, [[0.0, 3.0], [-1.0, 2.0]], (-1.0, 3.0)),
        ("histogram", {}, [[0.0, 1.0], [4.0]], (0.0, 4.0)),
        ("ema", {"decay": 0.5}, [[0.0, 1.0], [0.0, 3.0]], (0.0, 7 / 3)),
        ("ema", {}, [[-2.0, 1.0]], (-2.0, 1.0)),
        ("percentile", {"percentile": 100}, [[0.0, 1.0], [4.0]], (0.0, 4.0)),
    ],
)
def test_exact_ranges(name, arguments, batches, wanted):
    assert seen(observer_named(name, arguments), *batches).range() == pytest.approx(wanted)


def test_percentile_leaves_out_the_rarest():
    low, high = seen(observer_named("percentile", {"percentile": 99.0}), torch.arange(1001.0)).range()
    assert (low, high) == pytest.approx((10, 990), abs=1)
    assert seen(observer_named("percentile", {"percentile": 99.0}), gauss().relu()).range()[0] == 0.0


@pytest.mark.parametrize("name", ["mse", "kl"])
@pytest.mark.parametrize("mode", ["SYMMETRIC", "ASYMMETRIC_UNSIGNED"])
def test_searched_ranges(name, mode):
    observer = seen(observer_named(name, {"num_bits": 4, "mode": mode}), *gauss())
    low, high = observer.range()
    assert -4.3 < low < -1.5 and 1.5 < high < 4.3
    if mode == "SYMMETRIC":
        assert low == -high
    everything = gauss()
    if name == "mse":
        reference = mse_range(everything, 4, LinearQuantMode[mode])
        assert (low, high) == pytest.approx([float(end) for end in reference], rel=0.05)


def test_positive_values_keep_zero_in_the_searched_range():
    low, high = seen(observer_named("mse"), torch.linspace(0, 6, 1000)).range()
    assert low == 0.0 and high == pytest.approx(6.0, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
class TestEveryObserver:
    def test_states_and_merging(self, name):
        everything = gauss()
        whole = seen(observer_named(name), everything[:4].abs(), everything[4:])
        part, other = seen(observer_named(name), everything[4:]), seen(observer_named(name), everything[:4].abs())
        part._join(other.state_dict())
        part._join(observer_named(name).state_dict())
        assert part.batches == 2
        assert part.range() == pytest.approx(whole.range(), rel=0.05, abs=0.01)
        copy = observer_named(name)
        copy.load_state_dict(torch.load(_saved(whole.state_dict()), weights_only=True))
        assert copy.range() == whole.range()
        assert seen(copy, everything).range() == seen(whole, everything).range()
        whole.reset()
        assert seen(whole, [1.0, 2.0]).range() == seen(observer_named(name), [1.0, 2.0]).range()

    def test_odd_tensors(self, name):
        observer = seen(observer_named(name), torch.empty(0, 3))
        with pytest.raises(CalibrationError, match="has seen no values"):
            observer.range()
        for batch in (
            torch.tensor(0.0),
            torch.zeros(2, 3),
            torch.tensor([1, 2]),
            torch.ones(1, 2, dtype=torch.bfloat16),
        ):
            observer.update(batch)
        low, high = observer.range()
        assert 0.0 <= low <= high <= 2.0
        with torch.inference_mode():
            observer.update(torch.ones(2))
        observer.update(torch.ones(2).requires_grad_())
        for wrong in ("x", None, torch.ones(1, dtype=torch.complex64)):
            with pytest.raises(ArgumentError, match="real numbers"):
                observer.update(wrong)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_nan_is_reported(self, name, value):
        observer = seen(observer_named(name), [1.0], [value, 2.0], [3.0])
        with pytest.raises(CalibrationError, match="NaN or infinite"):
            observer.range()


def _saved(state):
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_replicas_see_what_all_saw(monkeypatch):
    import torch.distributed as dist

    from distiller_ng.data_loggers.observers import base

    mine, theirs = seen(MinMaxObserver(), [0.0, 1.0]), seen(MinMaxObserver(), [-5.0], [2.0])
    mine.synchronize()  # without a group
    assert mine.range() == (0.0, 1.0)

    def gather(states, own):
        states[:] = [own, theirs.state_dict()]

    monkeypatch.setattr(base.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(base.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(base.dist, "all_gather_object", gather)
    assert dist is base.dist
    mine.synchronize()
    assert mine.range() == (-5.0, 2.0) and mine.batches == 3


_TWO_PROCESSES = """
import sys, torch, torch.distributed as dist
from torch import nn
from distiller_ng.data_loggers import ObservedRangesCollector, collector_context
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
model = nn.Sequential(nn.Hardtanh(-99, 99))
for observer in ("min_max", "ema", "mse"):
    collector = ObservedRangesCollector(model, observer)
    with collector_context(collector):
        model(torch.tensor([[-1.0, 2.0 + rank]]))
    collector.synchronize()
    found = collector.value()["0"]["output"]
    assert collector.observers()["0"]["output"].batches == 2
    assert abs(found["min"] + 1.0) < 1e-9 or observer == "mse", found
    assert found["max"] == {"min_max": 3.0}.get(observer, found["max"]) and 2.0 < found["max"] <= 3.0, found
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_real_processes(tmp_path):
    command = [sys.executable, "-c", _TWO_PROCESSES]
    running = [subprocess.Popen([*command, str(rank), str(tmp_path / "meeting")]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in running] == [0, 0]


def test_an_observer_of_ones_own():
    class ThreeSigma(Observer):
        def reset(self):
            super().reset()
            self.values = []

        def observe(self, values, low, high):
            self.values.append(values)

        def chosen_range(self):
            values = torch.cat(self.values)
            return values.mean() - 3 * values.std(), values.mean() + 3 * values.std()

        def merge(self, other):
            self.values += other.values

        def state(self):
            return {"values": self.values}

        def load_state(self, state):
            self.values = list(state["values"])

    found = collect_observed_ranges(nn.Sequential(nn.Hardtanh(-99, 99)), lambda model: model(gauss()), ThreeSigma)
    assert found["0"]["output"]["max"] == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("percentil", {}, "Did you mean 'percentile'"),
        ("percentile", {"percentile": 0.999}, "in percent"),
        ("percentile", {"percentile": 101}, "in percent"),
        ("percentile", {"percentage": 99}, "percentage"),
        ("ema", {"decay": 1.0}, "between 0 and 1"),
        ("histogram", {"bins": 1}, "from 2 on"),
        ("mse", {"num_bits": 0}, "bits"),
        ("kl", {"mode": "sideways"}, "sideways"),
        (3, {}, "name or an Observer"),
    ],
)
def test_wrong_arguments(name, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        observer_named(name, arguments)


def test_ranges_of_a_model_are_statistics(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    x = torch.randn(16, 4)
    collector = ObservedRangesCollector(model, EMAObserver(decay=0.9))
    with collector_context(collector):
        model(x)
    found = collector.value()
    assert found["0"]["inputs"][0]["min"] == pytest.approx(float(x.min()))
    assert found["1"]["output"]["min"] == 0.0 and found["1"]["output"]["shape"] == "(16, 4)"
    assert load_quant_stats(collector.save(tmp_path / "ranges"), model) == found
    assert isinstance(collector.observers()["1"]["output"], EMAObserver)
    assert collector.observers()["1"]["output"] is not collector.observers()["0"]["output"]
    collector.synchronize()
    collector.reset()
    assert collector.value() == {}


def test_observer_that_saw_nan_names_the_module():
    with pytest.raises(CalibrationError, match="input 0 of '0'"):
        collect_observed_ranges(nn.Sequential(nn.ReLU()), lambda model: model(torch.tensor([float("nan")])), "mse")


def test_histogram_for_searches():
    histogram = seen(HistogramObserver(bins=64), gauss()).histogram()
    assert float(histogram.counts.sum()) == 40000
    assert histogram.low == pytest.approx(float(gauss().min()), abs=2 * histogram.width)
