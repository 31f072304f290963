"""What a run leaves when it ends before it trained, what it knows in between, and what it expects of its schedule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import distiller_ng as distiller
from distiller_ng.apputils.classifier_task import Loaders, Task
from distiller_ng.apputils.image_classifier import ClassifierCompressor, init_classifier_compression_arg_parser
from distiller_ng.apputils.log_setup import close_pylogger
from distiller_ng.apputils.run_folder import NO_SIZES, predicted_sizes
from distiller_ng.apputils.run_measuring import doubts

FILTERS = {
    "version": 1,
    "pruners": {"p": {"class": "L1RankedStructureParameterPruner", "group_type": "Filters", "desired_sparsity": 0.5,
                      "weights": ["0.weight"]}},
    "extensions": {"t": {"class": "FilterRemover", "thinning_func_str": "remove_filters"}},
    "policies": [{"pruner": {"instance_name": "p"}, "epochs": [0]}, {"extension": {"instance_name": "t"}, "epochs": [1]}],
}  # fmt: skip


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(16, 1, 8, 8, generator=generator), torch.arange(16) % 3)
    return DataLoader(data, batch_size=8)


def application(folder, *arguments: str, **changes) -> ClassifierCompressor:
    args = init_classifier_compression_arg_parser().parse_args(
        ["--out-dir", str(folder / "logs"), "--epochs", "2", "--lr", "0.01", *arguments]
    )
    task = {"model": net(), "loaders": Loaders(loader(), loader(), loader()), **changes}
    return ClassifierCompressor(args, folder, task=Task(**task))


@pytest.fixture(autouse=True)
def _no_log_afterwards():
    yield
    close_pylogger()


@pytest.mark.parametrize("arguments", [["--compress", "bad.yaml"], ["--resume-from", "nowhere.tar"]])
def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text("version: 1\npruners: {p: {class: Nope}}\n")
    with pytest.raises((distiller.DistillerError, OSError)):
        application(tmp_path, *arguments)
    assert list((tmp_path / "logs").iterdir()) == []


def test_nor_does_one_whose_data_do_not_fit(tmp_path):
    app = application(tmp_path, model=nn.Linear(3, 3))
    with pytest.raises(distiller.DistillerError):
        app.run_training_loop()
    assert list((tmp_path / "logs").iterdir()) == []


def test_an_application_that_is_stopped_leaves_its_state(tmp_path, monkeypatch):
    (tmp_path / "s.yaml").write_text(json.dumps(FILTERS))
    app = application(tmp_path, "--compress", str(tmp_path / "s.yaml"))
    whole = app.train_validate_with_scheduling

    def stopped(epoch: int):
        if epoch == 1:
            raise KeyboardInterrupt
        return whole(epoch)

    monkeypatch.setattr(app, "train_validate_with_scheduling", stopped)
    with pytest.raises(KeyboardInterrupt):
        app.run_training_loop()
    summary = json.loads((Path(app.logdir) / "summary.json").read_text())
    assert (summary["status"], summary["epochs_done"]) == ("running", 1)
    assert summary["layers"][0]["sparsity"] == 0.5 and summary["model"]["before"]["macs"] == 36 * 36 + 432


def test_a_dense_run_of_the_application_knows_its_macs(tmp_path):
    app = application(tmp_path)
    app.run_training_loop()
    app.test()
    summary = json.loads((Path(app.logdir) / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["model"]["before"]["macs"] == summary["model"]["after"]["macs"] == 36 * 36 + 432


@pytest.mark.parametrize("inputs", [torch.zeros(1, 1, 8, 8), None], ids=["given", "the loader's"])
def test_sizes_are_predicted_before_anything_is_removed(tmp_path, inputs):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    schedule = {**FILTERS, "policies": FILTERS["policies"][:1]} if inputs is None else FILTERS
    scheduler = distiller.dict_config(model, optimizer, schedule)
    distiller.record_run(tmp_path, scheduler, example_inputs=inputs)
    for _ in scheduler.epochs(2):
        for x, y in scheduler.minibatches(loader()):
            scheduler.backward(nn.functional.cross_entropy(model(x), y))
            optimizer.step()
    plan = json.loads((tmp_path / "plan.json").read_text())
    first, *_, last = plan["plan"]["sizes"]
    assert (first["parameters"], first["nonzero"], first["macs"], first["size_bytes"]) == (475, 475, 1728, 1900)
    after = json.loads((tmp_path / "summary.json").read_text())["model"]["after"]
    removed = inputs is not None
    assert last["nonzero"] == after["nonzero"] == 239
    assert (last["parameters"], last["macs"]) == (after["parameters"], after["macs"])
    assert after["parameters"] == (239 if removed else 475)
    assert not set(plan["size_notes"]) & set(plan["plan"]["notes"])


def test_models_that_are_too_large_to_copy_are_not_tried(monkeypatch):
    monkeypatch.setattr("distiller_ng.apputils.run_folder._MOST_TO_COPY", 400)
    model = net()
    scheduler = distiller.dict_config(model, torch.optim.SGD(model.parameters(), lr=0.1), FILTERS)
    assert predicted_sizes(scheduler, 10, None, None) is NO_SIZES


def test_bits_count_in_what_a_model_weighs(tmp_path):
    schedule = {
        "quantizers": {"q": {"class": "QuantAwareTrainRangeLinearQuantizer", "bits_weights": 4, "bits_activations": None}},
        "policies": [{"quantizer": {"instance_name": "q"}, "starting_epoch": 0, "ending_epoch": 1}],
    }  # fmt: skip
    model = nn.Sequential(nn.Linear(10, 4, bias=False))
    scheduler = distiller.dict_config(model, torch.optim.SGD(model.parameters(), lr=0.1), schedule)
    distiller.record_run(tmp_path, scheduler, example_inputs=torch.zeros(1, 10))
    for _ in scheduler.epochs(1):
        for x in scheduler.minibatches([torch.ones(2, 10)]):
            scheduler.backward(model(x).sum())
    found = json.loads((tmp_path / "summary.json").read_text())["model"]["after"]
    assert found["bytes"] - found["bytes_at_bits"] == 160 - 20
    plan = json.loads((tmp_path / "plan.json").read_text())["plan"]
    assert plan["sizes"][-1]["size_bytes"] == found["bytes_at_bits"]


def test_many_epochs_without_a_finite_loss_are_one_warning():
    assert doubts(range(4, 9), None) == ["the loss was not a finite number in epochs 4, 5, 6 and 2 more"]
    assert doubts([7], None) == ["the loss was not a finite number in epoch 7"]
    assert doubts([], 99.0) == []
