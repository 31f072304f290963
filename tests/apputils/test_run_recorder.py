"""``record_run``: a run folder from a loop of one's own."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import distiller_ng as distiller
from distiller_ng.apputils.run_facts import first_inputs, model_facts, weight_histograms
from distiller_ng.apputils.run_measuring import EpochLosses
from distiller_ng.checkpoint import load_checkpoint, save_checkpoint
from distiller_ng.reports.html import read_run, write_html_report

SCHEDULE = {
    "pruners": {"p": {"class": "AutomatedGradualPruner", "initial_sparsity": 0.2, "final_sparsity": 0.8,
                      "weights": ["0.weight"]}},
    "lr_schedulers": {"lr": {"class": "StepLR", "step_size": 1, "gamma": 0.5}},
    "policies": [
        {"pruner": {"instance_name": "p"}, "starting_epoch": 1, "ending_epoch": 3},
        {"lr_scheduler": {"instance_name": "lr"}, "starting_epoch": 0, "ending_epoch": 4},
    ],
}  # fmt: skip


class Data:
    """A model, its optimizer and scheduler, and the same batches every time."""

    def __init__(self, schedule=SCHEDULE):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Dropout(0.1), nn.Linear(10, 3))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = distiller.dict_config(self.model, self.optimizer, schedule)
        x = torch.randn(40, 8)
        self.loader = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=8, shuffle=True)
        self.criterion = nn.CrossEntropyLoss()

    def step(self, x, y):
        self.optimizer.zero_grad()
        loss = self.scheduler.backward(self.criterion(self.model(x), y))
        self.optimizer.step()
        return loss


def train(data, run=None, *, epochs=4, stop=None, file=None):
    if run is not None:
        run.log(top1=10.0)
    for epoch in data.scheduler.epochs(epochs):
        for x, y in data.scheduler.minibatches(data.loader):
            data.step(x, y)
        if run is not None:
            run.log(top1=50.0 + epoch, loss=1.0)
        if file is not None:
            save_checkpoint(epoch, None, data.model, data.optimizer, data.scheduler, dir=file.parent)
        if epoch == stop:
            return


def events(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_the_report_needs(tmp_path):
    data = Data()
    run = distiller.record_run(tmp_path / "run", data.scheduler, schedule=SCHEDULE, facts={"dataset": "mine"})
    train(data, run)
    run.collect_activations(data.loader)
    found = read_run(tmp_path / "run")
    assert found.is_finished and found.summary["epochs_done"] == 4 and found.summary["dataset"] == "mine"
    assert (found.summary["top1_before"], found.summary["top1_after"]) == (50.0, 53.0)
    model = found.summary["model"]
    assert (model["before"]["parameters"], model["before"]["macs"], model["before"]["bytes"]) == (123, 110, 492)
    assert model["after"]["nonzero"] == 123 - 64
    (parameter,) = found.summary["parameters"]
    assert (parameter["planned"], parameter["achieved"]) == (0.8, 0.8)
    assert list(found.weights["after"]) == ["0.weight", "3.weight"]
    assert found.weights["after"]["0.weight"].zeros == 64 and found.weights["before"]["0.weight"].zeros == 0
    assert [rate for _, rate in found.curves["Training"]["LR"]][::5] == [0.1, 0.05, 0.025, 0.0125]
    assert [x for x, _ in found.curves["Training"]["Overall Loss"]][:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert found.curves["Validation"]["Top1"] == [(1.0, 50.0), (2.0, 51.0), (3.0, 52.0), (4.0, 53.0)]
    assert found.plan["timeline"]["policies"][0]["sparsity"][0] == [1.0, pytest.approx(0.2)]
    assert found.environment["PyTorch"] == torch.__version__ and found.activations
    assert "AutomatedGradualPruner" in found.schedule
    text = write_html_report([found], tmp_path / "report.html").read_text()
    assert "53.00 %" in text and "was 50.00 %" in text


def test_the_mean_loss_is_that_of_the_loop(tmp_path):
    data = Data({"version": 1})
    distiller.record_run(tmp_path, data.scheduler)
    losses = []
    for _ in data.scheduler.epochs(1):
        losses += [float(data.step(x, y)) for x, y in data.scheduler.minibatches(data.loader)]
    last = [event for event in events(tmp_path) if event["event"] == "training"][-1]
    assert last["metrics"]["Overall Loss"] == pytest.approx(sum(losses) / 5) and last["completed"] == 5
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_losses_are_undivided_when_gradients_accumulate(tmp_path, accumulate):
    data = Data({"version": 1})
    distiller.record_run(tmp_path, data.scheduler)
    whole = []
    for _ in data.scheduler.epochs(1):
        for x, y in data.scheduler.minibatches(data.loader, accumulate=accumulate):
            loss = data.criterion(data.model(x), y)
            whole.append(float(loss))
            data.scheduler.backward(loss)
    last = [event for event in events(tmp_path) if event["event"] == "training"][-1]
    assert last["metrics"]["Objective Loss"] == pytest.approx(sum(whole) / 5)
    assert last["metrics"]["Overall Loss"] == pytest.approx(sum(whole) / 5)


def test_training_is_the_same_with_and_without_it(tmp_path):
    plain, recorded = Data(), Data()
    train(plain)
    torch.manual_seed(0)
    recorded = Data()
    train(recorded, distiller.record_run(tmp_path, recorded.scheduler))
    for mine, theirs in zip(plain.model.parameters(), recorded.model.parameters()):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_a_resumed_recording_is_the_same_line_by_line(tmp_path, stop):
    whole = Data()
    train(whole, distiller.record_run(tmp_path / "whole", whole.scheduler))
    first = Data()
    train(first, distiller.record_run(tmp_path / "parts", first.scheduler), stop=stop, file=tmp_path / "x")
    (tmp_path / "parts" / "metrics.jsonl").open("a").write('{"event": "trai')  # cut off
    rest = Data()
    load_checkpoint(rest.model, tmp_path / "checkpoint.pth.tar", rest.optimizer, scheduler=rest.scheduler)
    train(rest, distiller.record_run(tmp_path / "parts", rest.scheduler))
    assert events(tmp_path / "parts") == events(tmp_path / "whole")
    for name in ("training.csv", "weights_sparsity.csv", "histograms.json", "plan.json"):
        assert (tmp_path / "parts" / name).read_text() == (tmp_path / "whole" / name).read_text(), name
    mine, theirs = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("parts", "whole"))
    assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}


def test_what_came_after_the_checkpoint_is_forgotten(tmp_path):
    first = Data()
    run = distiller.record_run(tmp_path / "run", first.scheduler)
    for epoch in first.scheduler.epochs(3):
        for x, y in first.scheduler.minibatches(first.loader):
            first.step(x, y)
        run.log(top1=90.0 + epoch)
        if epoch == 0:
            save_checkpoint(epoch, None, first.model, first.optimizer, first.scheduler, dir=tmp_path)
    rest = Data()
    load_checkpoint(rest.model, tmp_path / "checkpoint.pth.tar", rest.optimizer, scheduler=rest.scheduler)
    train(rest, distiller.record_run(tmp_path / "run", rest.scheduler), epochs=2)
    assert read_run(tmp_path / "run").curves["Validation"]["Top1"] == [(1.0, 90.0), (2.0, 51.0)]


def test_an_interrupted_run_can_be_read(tmp_path):
    data = Data()
    run = distiller.record_run(tmp_path, data.scheduler)
    with pytest.raises(KeyboardInterrupt), run:
        for epoch in data.scheduler.epochs(4):
            for x, y in data.scheduler.minibatches(data.loader):
                data.step(x, y)
                if epoch == 2:
                    raise KeyboardInterrupt
    found = read_run(tmp_path)
    assert found.summary["status"] == "stopped by KeyboardInterrupt" and found.summary["epochs_done"] == 2
    assert data.scheduler.observers == []


def test_a_folder_that_holds_a_run_is_not_overwritten_by_mistake(tmp_path):
    first, second = Data(), Data()
    train(first, distiller.record_run(tmp_path, first.scheduler), epochs=1)
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(distiller.ArgumentError, match="holds a run already"):
        train(second, distiller.record_run(tmp_path, second.scheduler))
    assert (tmp_path / "metrics.jsonl").read_text() == before
    third = Data()
    train(third, distiller.record_run(tmp_path, third.scheduler, overwrite=True), epochs=2)
    assert read_run(tmp_path).summary["epochs_done"] == 2


def test_a_loop_that_calls_the_hooks(tmp_path):
    data = Data()
    run = distiller.record_run(tmp_path, data.scheduler, example_inputs=torch.zeros(4, 8))
    scheduler, optimizer = data.scheduler, data.optimizer
    for epoch in range(4):
        scheduler.on_epoch_begin(epoch, optimizer)
        for step, (x, y) in enumerate(data.loader):
            scheduler.on_minibatch_begin(epoch, step, 5, optimizer)
            loss = scheduler.before_backward_pass(epoch, step, 5, data.criterion(data.model(x), y), optimizer)
            optimizer.zero_grad()
            loss.backward()
            scheduler.before_parameter_optimization(epoch, step, 5, optimizer)
            optimizer.step()
            scheduler.on_minibatch_end(epoch, step, 5, optimizer)
        scheduler.on_epoch_end(epoch, optimizer, metrics={"min": 0.5 + epoch, "max": 0.7})
        run.log(f1=0.25 * epoch)
    scheduler.finish()
    run.log(f1=0.9)  # after the end
    found = read_run(tmp_path)
    assert found.summary["metrics_after"] == {"Loss": 3.5, "Score": 0.7, "f1": 0.9}
    assert found.curves["Validation"]["Loss"][-1] == (4.0, 3.5) and found.curves["Validation"]["f1"][-1] == (4.0, 0.75)
    assert found.summary["model"]["before"]["macs"] == 110 and found.is_finished


def test_one_shot(tmp_path):
    data = Data()
    run = distiller.record_run(tmp_path, data.scheduler)
    run.log(top1=90.0)
    data.scheduler.run_once()
    run.log(top1=80.0)
    found = read_run(tmp_path)
    assert (found.summary["top1_before"], found.summary["top1_after"]) == (90.0, 80.0)
    assert found.summary["total_sparsity"] == pytest.approx(64 / 110)


def test_bits_of_layers_in_quantization_aware_training(tmp_path):
    schedule = {
        "quantizers": {"q": {"class": "QuantAwareTrainRangeLinearQuantizer", "bits_weights": 4, "bits_activations": 8}},
        "policies": [{"quantizer": {"instance_name": "q"}, "starting_epoch": 0, "ending_epoch": 2}],
    }
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = distiller.dict_config(model, optimizer, schedule)
    distiller.record_run(tmp_path, scheduler)
    for _ in scheduler.epochs(1):
        for x in scheduler.minibatches([torch.randn(4, 8)] * 2):
            scheduler.backward(model(x).square().mean())
            optimizer.step()
    rows = json.loads((tmp_path / "summary.json").read_text())["layers"]
    assert {row["bits"] for row in rows} == {4}


def test_a_loss_that_is_not_finite_and_a_fraction_for_percent_are_told(tmp_path):
    data = Data({"version": 1})
    run = distiller.record_run(tmp_path, data.scheduler)
    for _ in data.scheduler.epochs(1):
        for x, y in data.scheduler.minibatches(data.loader):
            data.scheduler.backward(data.criterion(data.model(x), y) * math.nan)
        run.log(top1=torch.tensor(0.5))
    warnings = json.loads((tmp_path / "summary.json").read_text())["warnings"]
    assert "not a finite number in epoch 0" in warnings[-2] and "percent" in warnings[-1]


@pytest.mark.parametrize("value", ["high", None, True, torch.zeros(2), [1.0]])
def test_results_are_numbers(tmp_path, value):
    run = distiller.record_run(tmp_path, Data().scheduler)
    with pytest.raises(distiller.ArgumentError, match=r"log\(top1=...\) takes a number"):
        run.log(top1=value)


def test_wrong_arguments(tmp_path):
    scheduler = Data().scheduler
    with pytest.raises(distiller.ArgumentError, match="expected a CompressionScheduler, got Linear"):
        distiller.record_run(tmp_path, nn.Linear(1, 1))
    with pytest.raises(distiller.ArgumentError, match="there is no schedule 'nowhere.yaml'"):
        distiller.record_run(tmp_path, scheduler, schedule="nowhere.yaml")
    (tmp_path / "file").write_text("")
    with pytest.raises(distiller.ArgumentError, match="is a file, not a folder"):
        distiller.record_run(tmp_path / "file", scheduler)
    with pytest.raises(distiller.CalibrationError, match="does not run on these batches"):
        distiller.record_run(tmp_path, scheduler).collect_activations([torch.zeros(2, 3)])
    assert scheduler.observers and not (tmp_path / "summary.json").exists()


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda *_: 1)
    data = Data({"version": 1})
    run = distiller.record_run(tmp_path / "run", data.scheduler)
    run.log(top1=1.0)
    run.close()
    assert data.scheduler.observers == [] and not (tmp_path / "run").exists()


def test_facts():
    model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        model[0].weight[0] = 0.0
    facts = model_facts(model)
    size = 4 * 14 + 4 * 4 + 8
    assert facts == {
        "parameters": 14,
        "nonzero": 10,
        "bytes": size,
        "bytes_at_bits": size,
        "sparsity": 0.5,
        "macs": None,
    }
    (bars,) = weight_histograms(model, bins=4).values()
    assert bars["zeros"] == 4 and sum(bars["counts"]) == 4
    assert weight_histograms(nn.Linear(2, 2).requires_grad_(False), bins=2)["weight"]["zeros"] == 0
    losses = EpochLosses()
    losses.add({"a": torch.tensor(1.0)})
    losses.add({"a": torch.tensor(2.0), "b": torch.tensor(4.0)})
    assert losses.means() == {"a": 1.5, "b": 2.0}


def test_first_inputs_leave_the_loader_alone():
    data = TensorDataset(torch.arange(6.0).reshape(3, 2), torch.arange(3))
    loader = DataLoader(data, batch_size=2, shuffle=True)
    before = torch.get_rng_state()
    assert first_inputs(loader).args[0].tolist() == [[0.0, 1.0]]
    assert torch.equal(torch.get_rng_state(), before)
    assert first_inputs([torch.ones(2, 3)]).args[0].shape == (2, 3)
    assert first_inputs(iter([1])) is None and first_inputs(None) is None and first_inputs([]) is None
