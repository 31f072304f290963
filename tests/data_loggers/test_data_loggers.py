"""Console, CSV, JSON-lines and TensorBoard loggers."""

import csv
import json
import logging
import sys

import numpy as np
import pytest
import torch
from torch import nn

from distiller_ng.data_loggers import (
    CsvLogger,
    DataLogger,
    JsonLinesLogger,
    NullLogger,
    PythonLogger,
    TensorBoardLogger,
    log_activation_statistics,
    log_model_buffers,
    log_training_progress,
    log_weights_sparsity,
)
from distiller_ng.errors import ArgumentError

STATS = ("Performance/Training/", {"Loss": torch.tensor(0.301), "Steps": 12345, "LR": 0.1})


def model() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 0, 0, 2], [0, 0, 0, 0]]))
    return net


class Recorder(DataLogger):
    def __init__(self):
        self.calls = []

    def log_training_progress(self, stats_dict, epoch, completed, total, freq):
        self.calls.append((stats_dict[0], epoch, completed, total, freq))

    def log_weights_distribution(self, named_params, steps_completed):
        self.calls.append(([] if named_params is None else [n for n, _ in named_params], steps_completed))

    def log_activation_statistic(self, phase, stat_name, activation_stats, epoch):
        self.calls.append((phase, stat_name, dict(activation_stats), epoch))

    def log_model_buffers(self, model, buffer_names, tag_prefix, epoch, completed, total, freq):
        self.calls.append((buffer_names, tag_prefix, epoch, completed, total, freq))


@pytest.fixture
def console(caplog):
    logger = logging.getLogger("test_data_loggers")
    caplog.set_level(logging.INFO, logger=logger.name)
    return PythonLogger(logger), lambda: [record.getMessage() for record in caplog.records]


def test_console_progress_has_distillers_look(console):
    logger, lines = console
    logger.log_training_progress(STATS, 3, 40, 200.0, 10)
    logger.log_training_progress(("x", {"Top1": 91.25}), -1, 5, 10, 1)
    assert lines() == [
        "Epoch: [3][   40/  200]    Loss 0.301000    Steps 12,345    LR 0.100000",
        "Test: [    5/   10]    Top1 91.250000",
    ]


def test_console_sparsity(console):
    logger, lines = console
    logger.log_weights_sparsity(model(), 0)
    table, total = lines()
    assert table.startswith("\nParameters:\nName") and "0.weight" in table
    assert total == "Total sparsity: 75.00\n"


def test_console_activations_and_buffers(console):
    logger, lines = console
    logger.log_activation_statistic("train", "sparsity", {"relu1": 0.5, "relu2": np.float64(0.25)}, 0)
    logger.log_model_buffers(model(), ["running_mean", "absent"], "Stats/", 1, 2, 10, 1)
    activations, buffers = lines()
    assert activations.splitlines() == [
        "Activations (train):",
        "Layer  sparsity",
        "-----  --------",
        "relu1      0.50",
        "relu2      0.25",
    ]
    assert buffers.splitlines()[-1].split() == ["1", "0,", "0"]


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_csv_sparsity(tmp_path):
    CsvLogger("run", tmp_path).log_weights_sparsity(model(), 0)
    assert read_csv(tmp_path / "run_weights_sparsity.csv") == [
        ["parameter", "shape", "volume", "sparse volume", "sparsity level"],
        ["0.weight", "(2, 4)", "8", "2", "75.0"],
    ]


def test_csv_progress_grows_by_rows_and_columns_and_is_continued(tmp_path):
    logger = CsvLogger(logdir=tmp_path)
    logger.log_training_progress(("Training/", {"Loss": 0.5}), 0, 1, 2, 1)
    logger.log_training_progress(("Validation/", {"Loss": 0.25, "Top1": torch.tensor(90.0)}), 0, 2, 2, 1)
    CsvLogger(logdir=str(tmp_path)).log_training_progress(("Training/", {"Top1": 91}), 1, 1, 2, 1)
    assert read_csv(tmp_path / "training.csv") == [
        ["group", "epoch", "completed", "total", "Loss", "Top1"],
        ["Training", "0", "1", "2", "0.5", ""],
        ["Validation", "0", "2", "2", "0.25", "90.0"],
        ["Training", "1", "1", "2", "", "91"],
    ]


def test_json_lines(tmp_path):
    logger = JsonLinesLogger(tmp_path / "run" / "metrics.jsonl")
    logger.log_training_progress(("Training/", {"Loss": float("nan"), "LR": np.float64(0.5), "n": 3}), 2, 1, 4, 1)
    logger.log_training_progress(("Test/", {"Top1": torch.tensor(90.0)}), -1, 4, 4, 1)
    logger.log_weights_sparsity(model(), 2)
    logger.log_activation_statistic("valid", "apoz", {"relu": torch.tensor([1.0, 2.0])}, 0)
    logger.log_model_buffers(model(), ["running_var"], "p/", 0, 1, 4, 1)
    logger.log("note", {"path": tmp_path.parent.__class__, "ok": True, "nothing": None})
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    where = {"epoch": 2, "completed": 1, "total": 4}
    assert lines[0] == {
        "event": "training", "group": "Training", **where, "metrics": {"Loss": None, "LR": 0.5, "n": 3}
    }  # fmt: skip
    assert lines[1]["event"] == "test" and lines[1]["metrics"] == {"Top1": 90.0}
    assert lines[2] == {
        "event": "weights_sparsity", "epoch": 2, "total_sparsity": 0.75, "parameters": {"0.weight": 0.75}
    }  # fmt: skip
    assert lines[3]["layers"] == {"relu": [1.0, 2.0]}
    assert lines[4]["values"] == {"1.running_var": [1.0, 1.0]}
    assert lines[5]["ok"] is True and lines[5]["nothing"] is None


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def test_tensorboard(tmp_path):
    net = model()
    net[0].weight.grad = torch.full((2, 4), float("nan"))
    logger = TensorBoardLogger(tmp_path, log_gradients=True)
    logger.log_training_progress(("Training/", {"Loss": torch.tensor(0.5), "text": "x"}), 2, 5, 10, 1)
    logger.log_weights_sparsity(net, 3)
    logger.log_activation_statistic("train", "apoz", {"relu": torch.tensor([1.0, 3.0]), "fc": 4.0}, 1)
    logger.log_weights_distribution(net.named_parameters(), 7)
    logger.log_weights_distribution(None, 7)
    logger.log_model_buffers(net, ["running_var", "num_batches_tracked"], "stats/", 0, 1, 10, 1)
    logger.log_weights_filter_magnitude(nn.Sequential(nn.Conv2d(1, 2, 1)), 0)
    logger.log_weights_filter_magnitude(nn.Sequential(nn.Conv2d(1, 2, 1)), 0, multi_graphs=True)
    logger.close()
    log = events(tmp_path)

    def scalar(tag):
        (event,) = log.Scalars(tag)
        return event.step, event.value

    assert scalar("Training/Loss") == (25, 0.5)
    assert "Training/text" not in log.Tags()["scalars"]
    assert scalar("sparsity/weights/0.weight") == scalar("sparsity/weights/total") == (3, 75.0)
    assert scalar("sparsity-2D/weights/0.weight") == (3, 50.0)
    assert scalar("apoz/activations/train/relu") == (1, 2.0) and scalar("apoz/activations/train/fc") == (1, 4.0)
    assert scalar("stats/running_var/1/1") == (1, 1.0) and scalar("stats/num_batches_tracked/1") == (1, 0.0)
    assert set(log.Tags()["histograms"]) == {"0/weight", "1/weight", "magnitude/filters/0.weight"}
    assert {f"magnitude/filters/0.weight/{i}" for i in (0, 1)} <= set(log.Tags()["scalars"])


def test_tensorboard_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ArgumentError, match=r"pip install 'distiller_ng\[tensorboard\]'"):
        TensorBoardLogger(tmp_path)


def test_frontends_reach_every_logger():
    first, second, net = Recorder(), Recorder(), model()

    class Collector:
        stat_name = "sparsity"

        @staticmethod
        def value():
            return {"relu": 0.5}

    loggers = [first, NullLogger(), second]
    log_training_progress(STATS, net.named_parameters(), 1, 20, 100, 10, loggers)
    log_training_progress(STATS, None, 1, 20, 100, 10, loggers)
    log_activation_statistics(4, "valid", loggers, Collector())
    log_activation_statistics(4, "valid", loggers, None)
    log_weights_sparsity(net, 1, loggers)
    log_model_buffers(net, ["running_var"], "p", 1, 2, 3, 4, loggers)
    names = ["0.weight", "0.bias", "1.weight", "1.bias"]
    progress = ("Performance/Training/", 1, 20, 100, 10)
    assert first.calls == second.calls == [
        progress, (names, 20), progress, ([], 20), ("valid", "sparsity", {"relu": 0.5}, 4),
        (["running_var"], "p", 1, 2, 3, 4),
    ]  # fmt: skip
