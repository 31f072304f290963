"""--act-stats and --act-hist."""

import pytest
import torch

import distiller_ng.apputils.image_classifier as classifier
from distiller_ng.apputils import close_pylogger
from distiller_ng.data_loggers import load_quant_stats
from distiller_ng.models import factory, register_user_model


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 4, 3)
        self.relu1 = torch.nn.ReLU()
        self.fc = torch.nn.Linear(4 * 36, 10)

    def forward(self, x):
        return self.fc(self.relu1(self.conv1(x)).flatten(1))


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr(factory, "_USER_MODELS", dict(factory._USER_MODELS))
    register_user_model("tiny_for_activation_tests", "digits", Tiny)

    def build(*arguments):
        parser = classifier.init_classifier_compression_arg_parser()
        common = ["--arch", "tiny_for_activation_tests", "--epochs", "1", "-o", str(tmp_path), "--etrs", "0.1", "--det"]
        return classifier.ClassifierCompressor(parser.parse_args([*common, *arguments]), tmp_path)

    yield build
    close_pylogger()


FILES = ["apoz_channels.csv", "l1_channels.csv", "mean_channels.csv", "records.csv", "sparsity_ofm.csv"]


def test_statistics_of_the_phases_asked_for(make):
    app = make("--act-stats", "valid", "test")
    app.run_training_loop()
    app.test()
    folder = app.folder.path / "activations"
    assert sorted(path.name for path in folder.iterdir()) == ["test", "valid"]
    for phase in ("valid", "test"):
        assert sorted(path.name for path in (folder / phase).iterdir()) == FILES
    layer, _, sparsity = (folder / "test" / "sparsity_ofm.csv").read_text().splitlines()[1].split(",")
    assert layer == "relu1" and 0 < float(sparsity) < 100
    assert app.activations_collectors["test"]["sparsity_ofm"].value() == {}
    assert not app.model.relu1._forward_hooks


def test_nothing_is_watched_without_the_flag(make):
    app = make()
    app.run_training_loop()
    assert not (app.folder.path / "activations").exists()


def test_histograms(make, tmp_path):
    app = make("--act-hist", "0.2")
    found = classifier.acts_histogram_collection(app.model, app.criterion, app.loggers, app.args, app.logdir)
    assert list(found) == ["conv1", "relu1", "fc"]
    assert (app.folder.path / "acts_histograms.pt").is_file()
    stats = load_quant_stats(app.folder.path / "acts_quantization_stats.yaml", app.model)
    assert found["fc"]["output"]["hist"].sum() == stats["fc"]["output"]["total_numel"]


def test_calibration_on_a_loader_or_a_part_of_the_test_set(make, tmp_path):
    app = make()
    app.load_datasets()
    whole = classifier.acts_quant_stats_collection(app.model, app.criterion, [], app.args, app.test_loader)
    app.args.qe_calibration = 0.5
    half = classifier.acts_quant_stats_collection(
        app.model, app.criterion, [], app.args, save_to_file=True, logdir=tmp_path / "stats"
    )
    assert half["fc"]["output"]["total_numel"] == pytest.approx(whole["fc"]["output"]["total_numel"] / 2, rel=0.05)
    assert load_quant_stats(tmp_path / "stats" / "acts_quantization_stats.yaml", app.model) == half


def test_distillers_test_function_takes_collectors(make):
    app = make()
    app.load_datasets()
    collectors = classifier.create_activation_stats_collectors(app.model, "test")
    classifier.evaluate_model(app.test_loader, app.model, app.criterion, [], collectors, app.args)
    assert list(collectors["test"]["sparsity_ofm"].value()) == ["relu1"]
