"""Summaries, records, raw outputs, histograms, and the sets of collectors."""

import logging
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

import distiller_ng as distiller
from distiller_ng.data_loggers import (
    ActivationHistogramsCollector,
    ActivationStatsCollector,
    CollectorDirection,
    DataLogger,
    RawActivationsCollector,
    RecordsActivationStatsCollector,
    SummaryActivationStatsCollector,
    TensorBoardLogger,
    collect_histograms,
    collect_quant_stats,
    collect_raw_outputs,
    collector_context,
    collectors_context,
    create_activation_stats_collectors,
    log_activation_statistics,
    save_collectors_data,
)
from distiller_ng.errors import ArgumentError, CalibrationError, LifecycleError


def relus():
    return nn.Sequential(nn.ReLU(), nn.Sequential(nn.Hardtanh(), nn.ReLU6())).eval()


def run(model, *batches):
    for batch in batches:
        model(batch)


# -- summaries ---------------------------------------------------------------------------------------------------------


def test_summaries_weigh_by_elements():
    model = relus()
    collector = SummaryActivationStatsCollector(model, "mean", lambda t: t.mean())
    with collector_context(collector) as same:
        run(model, torch.full((1, 2), 1.0), torch.full((3, 2), 5.0))
    assert same is collector
    assert collector.value() == {"0": 4.0, "1.1": 1.0}  # 2 elements of 1, 6 of 5; Hardtanh cuts at 1


def test_summaries_per_channel_and_of_inputs():
    model = relus()
    channels = SummaryActivationStatsCollector(model, "l1", distiller.activation_channels_l1)
    inputs = SummaryActivationStatsCollector(
        model, "in", lambda t: float(t.min()), classes=[nn.ReLU], collector_direction=CollectorDirection.IN
    )
    with collectors_context({"a": channels, "b": inputs, "none": None}) as collectors:
        run(model, torch.tensor([[[1.0, -2.0], [3.0, 4.0]]]))
    assert collectors["a"].value()["0"] == [1.0, 7.0]
    assert inputs.value() == {"0": -2.0}
    assert not channels.is_collecting and not inputs.is_collecting


def test_several_inputs_are_joined():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.add = distiller.modules.EltwiseAdd()

        def forward(self, x):
            return self.add(x, 2 * x)

    for function, wanted in ((torch.cat, 4), (lambda tensors: tensors[1], 2)):
        collector = SummaryActivationStatsCollector(
            Sum(), "numel", lambda t: t.numel(), [distiller.modules.EltwiseAdd], CollectorDirection.IFM, function
        )
        with collector_context(collector):
            collector.model(torch.ones(2, 1))
        assert collector.value() == {"add": wanted}


def test_distillers_name_for_directions():
    assert CollectorDirection.OFM is CollectorDirection.OUT and CollectorDirection.OUT == 0
    assert CollectorDirection.IFM is CollectorDirection.IFMS is CollectorDirection.IN and CollectorDirection.IN == 1


def test_summary_files_and_reset(tmp_path):
    model = relus()
    collector = SummaryActivationStatsCollector(model, "apoz", distiller.activation_channels_apoz)
    with collector_context(collector):
        run(model, torch.tensor([[1.0, -1.0]]))
    assert collector.save(tmp_path / "apoz") == str(tmp_path / "apoz.csv")
    lines = (tmp_path / "apoz.csv").read_text().splitlines()
    assert lines == ["Layer,Channel,apoz", "0,0,0.0", "0,1,100.0", "1.1,0,0.0", "1.1,1,100.0"]
    collector.reset()
    assert collector.value() == {}


def test_wrong_summaries():
    with pytest.raises(ArgumentError, match="summary_fn must be a function"):
        SummaryActivationStatsCollector(relus(), "x", 3)
    collector = SummaryActivationStatsCollector(relus(), "x", lambda t: t.sum(1))
    with collector_context(collector):
        collector.model(torch.ones(2, 2))
        with pytest.raises(ArgumentError, match="must not depend on the size of a batch"):
            collector.model(torch.ones(3, 2))
    with pytest.raises(ValueError):
        SummaryActivationStatsCollector(relus(), "x", torch.mean, collector_direction=7)


def test_a_collector_of_ones_own_gets_gradientless_values():
    class Largest(ActivationStatsCollector):
        def __init__(self, model):
            super().__init__(model, "largest", [nn.ReLU])
            self.found = {}

        def after(self, name, module, args, kwargs, output):
            assert not torch.is_grad_enabled()
            self.found[name] = max(self.found.get(name, 0.0), float(output.max()))

        def value(self):
            return dict(self.found)

        def reset(self):
            self.found.clear()

    collector = Largest(relus())
    with collector_context(collector, ["0"]):
        collector.model(torch.tensor([3.5, -1.0], requires_grad=True))
    assert collector.value() == {"0": 3.5}
    with pytest.raises(LifecycleError, match="no file format"):
        collector.save("x")


# -- records and raw outputs -------------------------------------------------------------------------------------------


def test_records_sample_by_sample(tmp_path):
    model = relus()
    collector = RecordsActivationStatsCollector(model, [nn.ReLU])
    with collector_context(collector):
        run(model, torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
    record = collector.value()["0"]
    assert record["shape"] == "(2, 2)"
    assert record["min"] == [3, 0, 1] and record["max"] == [4, 0, 1] and record["mean"] == [3.5, 0, 1]
    assert record["std"] == pytest.approx([0.5**0.5, 0, 0])
    assert record["l2"] == pytest.approx([5, 0, 2**0.5])
    collector.save(tmp_path / "records.csv")
    lines = (tmp_path / "records.csv").read_text().splitlines()
    assert lines[0] == "Layer,Sample,min,max,mean,std,l2" and len(lines) == 4
    collector.reset()
    assert collector.value() == {}


def test_raw_outputs(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True)).eval()
    batches = torch.randn(2, 2), torch.randn(1, 2)
    outputs = collect_raw_outputs(model, lambda model: run(model, *batches), save_dir=tmp_path)
    wanted = model[0](torch.cat(batches)).detach()
    assert torch.equal(outputs["0"], wanted) and torch.equal(outputs["1"], wanted.relu())
    saved = torch.load(tmp_path / "layer_raw_outputs" / "0.pt", weights_only=True)
    assert torch.equal(saved, wanted)
    varying = collect_raw_outputs(
        relus(), lambda model: run(model, torch.ones(1, 2), torch.ones(1, 3)), classes=[nn.ReLU]
    )
    assert [tuple(one.shape) for one in varying["0"]] == [(1, 2), (1, 3)]
    with pytest.raises(ValueError, match="DataParallel"):
        RawActivationsCollector(nn.DataParallel(relus()))


# -- histograms --------------------------------------------------------------------------------------------------------


def test_histograms_count_between_the_calibrated_ends():
    model = nn.Sequential(nn.ReLU()).eval()
    stats = {"0": {"output": {"min": 0.0, "max": 4.0}}}
    collector = ActivationHistogramsCollector(model, stats, nbins=2)
    with collector_context(collector):
        run(model, torch.tensor([[0.0, 1.0, 4.0]]), torch.tensor([[9.0, -9.0]]))
    found = collector.value()["0"]
    assert list(found) == ["output"]
    assert found["output"]["hist"].tolist() == [3.0, 2.0]
    assert found["output"]["bin_centroids"].tolist() == [1.0, 3.0]


def test_histograms_collect_their_own_ranges_and_files(tmp_path):
    model = relus()
    calls = []

    def test_fn(model):
        calls.append(1)
        model(torch.linspace(-3, 3, 100).reshape(2, 50))

    found = collect_histograms(model, test_fn, save_dir=tmp_path, nbins=10)
    assert len(calls) == 2
    assert (tmp_path / "acts_quantization_stats.yaml").is_file()
    saved = torch.load(tmp_path / "acts_histograms.pt", weights_only=True)
    assert torch.equal(saved["0"]["inputs"][0]["hist"], found["0"]["inputs"][0]["hist"])
    assert found["0"]["inputs"][0]["hist"].tolist() == [10.0] * 10
    expected, edges = np.histogram(np.linspace(-3, 3, 100).clip(0), bins=10, range=(0, 3))
    assert np.abs(found["0"]["output"]["hist"].numpy() - expected).max() <= 1
    assert found["0"]["output"]["bin_centroids"].tolist() == pytest.approx(list((edges[1:] + edges[:-1]) / 2))
    again = collect_histograms(model, test_fn, activation_stats=tmp_path / "acts_quantization_stats.yaml", nbins=10)
    assert len(calls) == 3 and torch.equal(again["0"]["output"]["hist"], found["0"]["output"]["hist"])


def test_constant_activations_have_a_histogram_too():
    found = collect_histograms(nn.Sequential(nn.ReLU()), lambda model: model(torch.zeros(1, 5)), nbins=4)
    assert found["0"]["output"]["hist"].sum() == 5


@pytest.mark.parametrize("extension", [".svg", "png"])
def test_pictures(tmp_path, extension):
    pytest.importorskip("matplotlib")
    model = relus()
    collect_histograms(
        model, lambda model: model(torch.randn(2, 50)), tmp_path, save_hist_imgs=True, hist_imgs_ext=extension
    )
    ending = extension.lstrip(".")
    names = sorted(path.name for path in (tmp_path / "histogram_imgs").iterdir())
    assert names == [f"{layer}_{what}.{ending}" for layer in ("0", "1.0", "1.1") for what in ("input_0", "output")]
    assert all(path.stat().st_size > 500 for path in (tmp_path / "histogram_imgs").iterdir())


def test_pictures_without_matplotlib_or_in_an_unknown_format(tmp_path, monkeypatch):
    stats = {"0": {"output": {"min": 0.0, "max": 4.0}}}
    model = nn.Sequential(nn.ReLU())
    collector = ActivationHistogramsCollector(model, stats, save_hist_imgs=True, hist_imgs_ext=".docx")
    with collector_context(collector):
        model(torch.ones(1, 2))
    with pytest.raises(ArgumentError, match=r"'.docx'.*\.svg"):
        collector.save(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ArgumentError, match="plots"):
        collector.save(tmp_path / "a")


def test_wrong_histogram_arguments():
    stats = {"0": {"output": {"min": 0.0, "max": 4.0}}}
    with pytest.raises(ArgumentError, match="nbins"):
        ActivationHistogramsCollector(nn.Sequential(nn.ReLU()), stats, nbins=0)
    with pytest.raises(CalibrationError, match="another model"):
        ActivationHistogramsCollector(nn.ModuleDict({"relu": nn.ReLU()}), stats)
    with pytest.raises(ValueError, match="calibration file"):
        ActivationHistogramsCollector(nn.ReLU(), None)
    with pytest.raises(ValueError, match="DataParallel"):
        ActivationHistogramsCollector(nn.DataParallel(nn.ReLU()), stats)


# -- sets --------------------------------------------------------------------------------------------------------------


def test_sets_by_phase(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()).eval()
    collectors = create_activation_stats_collectors(model, "valid", "test")
    assert list(collectors) == ["train", "valid", "test"]
    assert collectors["train"] == {} and collectors["train"]["sparsity_ofm"] is None
    assert list(collectors["valid"]) == ["sparsity_ofm", "l1_channels", "apoz_channels", "mean_channels", "records"]
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.copy_(torch.tensor([0.0, -5.0]))
    with collectors_context(collectors["valid"]):
        model(torch.ones(2, 1, 3, 3))
    assert collectors["valid"]["sparsity_ofm"].value() == {"1": 50.0}
    assert collectors["valid"]["apoz_channels"].value() == {"1": [0.0, 100.0]}
    assert collectors["valid"]["l1_channels"].value() == {"1": [9.0, 0.0]}
    assert collectors["valid"]["mean_channels"].value() == {"1": [1.0, 0.0]}
    assert list(collectors["valid"]["records"].value()) == ["0"]
    assert collectors["test"]["sparsity_ofm"].value() == {}
    written = save_collectors_data(collectors["valid"], tmp_path)
    assert len(written) == 5 and len(list(tmp_path.iterdir())) == 5
    assert collectors["valid"]["sparsity_ofm"].value() == {}
    with pytest.raises(ArgumentError, match="unknown phase 'validation'"):
        create_activation_stats_collectors(model, "validation")


def test_loggers_get_the_statistic(tmp_path):
    class Recorder(DataLogger):
        def log_activation_statistic(self, phase, stat_name, activation_stats, epoch):
            self.heard = (phase, stat_name, activation_stats, epoch)

    model = relus()
    collector = SummaryActivationStatsCollector(model, "l1", distiller.activation_channels_l1)
    with collector_context(collector):
        model(torch.ones(1, 2))
    recorder = Recorder()
    loggers = [recorder, distiller.data_loggers.PythonLogger(logging.getLogger("x"))]
    if find_spec("tensorboard"):
        loggers.append(TensorBoardLogger(tmp_path))
    log_activation_statistics(3, "valid", loggers, collector)
    assert recorder.heard == ("valid", "l1", {"0": [1.0, 1.0], "1.1": [1.0, 1.0]}, 3)
    records = RecordsActivationStatsCollector(model)
    with collector_context(records):
        model(torch.ones(1, 2))
    log_activation_statistics(3, "valid", loggers, records)
    log_activation_statistics(3, "valid", loggers, create_activation_stats_collectors(model)["train"]["l1_channels"])


@pytest.mark.slow
def test_compiled_models_are_watched():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).eval()
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(4, 2)
    compiled(x)
    plain = collect_quant_stats(model, lambda model: model(x))
    assert collect_quant_stats(compiled, lambda model: model(x)) == plain
