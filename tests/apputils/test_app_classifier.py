"""The application class: Distiller's attributes and methods, the run folder, metrics, exact continuation."""

import argparse
import csv
import json
import logging

import pytest
import torch

import distiller_ng.apputils.image_classifier as classifier
from distiller_ng.apputils import classifier_learner, close_pylogger
from distiller_ng.apputils.classifier_loops import OVERALL_LOSS
from distiller_ng.checkpoint import read_checkpoint
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import ArgumentError, DatasetError, DistillerError, ScheduleError
from distiller_ng.models import factory, register_user_model

SCHEDULE = """
version: 1
pruners:
  gradual:
    class: AutomatedGradualPruner
    initial_sparsity: 0.1
    final_sparsity: 0.8
    weights: [conv1.weight]
regularizers:
  l1: {class: L1Regularizer, reg_regims: {fc.weight: 0.001}}
policies:
  - pruner: {instance_name: gradual}
    starting_epoch: 1
    ending_epoch: 3
    frequency: 1
  - regularizer: {instance_name: l1}
    starting_epoch: 0
    ending_epoch: 3
    frequency: 1
"""


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, 4, 3)
        self.fc = torch.nn.Linear(4 * 36, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.conv1(x)).flatten(1))


@pytest.fixture(scope="module", autouse=True)
def _registered():
    """The model exists for these tests only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factory, "_USER_MODELS", dict(factory._USER_MODELS))
        register_user_model("tiny_for_app_tests", "digits", Tiny)
        yield


@pytest.fixture(autouse=True)
def quiet_after():
    package = logging.getLogger("distiller_ng")
    level = package.level
    yield
    close_pylogger()
    package.setLevel(level)


@pytest.fixture
def make(tmp_path):
    def make(*arguments):
        parser = classifier.init_classifier_compression_arg_parser()
        common = ["--arch", "tiny_for_app_tests", "--batch-size", "128", "--det", "--out-dir", str(tmp_path / "logs")]
        return classifier.ClassifierCompressor(parser.parse_args([*common, *arguments]), tmp_path)

    return make


@pytest.fixture
def schedule(tmp_path):
    (tmp_path / "agp.yaml").write_text(SCHEDULE)
    return str(tmp_path / "agp.yaml")


def test_attributes_are_distillers(make):
    app = make("--epochs", "3")
    assert (app.start_epoch, app.ending_epoch) == (0, 3)
    assert isinstance(app.criterion, torch.nn.CrossEntropyLoss)
    assert isinstance(app.compression_scheduler, CompressionScheduler)
    assert type(app.optimizer) is torch.optim.SGD
    assert app.args.dataset == "digits"
    assert app.data_loaders == (None, None, None)
    train, valid, test = app.load_datasets()
    assert (len(train.sampler), len(valid.sampler), len(test.sampler)) == (1294, 143, 360)
    assert app.load_datasets()[0] is train
    assert app.performance_tracker.max_len == 1
    assert app.pylogger is not None and app.tflogger is not None


def test_arguments_are_copied():
    args = argparse.Namespace(arch="digits_cnn")
    app = classifier.ClassifierCompressor(args, None)
    assert vars(args) == {"arch": "digits_cnn"}
    assert app.logdir is None and app.loggers == []


def test_mock_classifier_has_default_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert classifier.ClassifierCompressor.mock_args().arch == "resnet18"
    monkeypatch.setattr(classifier_learner, "infer_implicit_args_", lambda args, task=None: _tiny(args))
    app = classifier.ClassifierCompressor.mock_classifier()
    assert list(tmp_path.iterdir()) == []
    assert type(app.model) is Tiny


def _tiny(args):
    args.arch, args.dataset, args.num_classes = "tiny_for_app_tests", "digits", 10
    return args


def test_a_run_leaves_everything_in_its_folder(make, schedule, caplog):
    app = make("--epochs", "3", "--compress", schedule, "--name", "exp", "--masks-sparsity", "--confusion")
    with caplog.at_level(logging.INFO, logger="distiller_ng"):
        records = app.run_training_loop()
        top1, _, loss = app.test()
    folder = app.folder.path
    assert {path.name for path in folder.iterdir() if "tfevents" not in path.name} == {
        f"{folder.name}.log",
        "exp_checkpoint.pth.tar",
        "exp_best.pth.tar",
        "metrics.jsonl",
        "training.csv",
        "weights_sparsity.csv",
        "schedule.yaml",
        "environment.json",
        "plan.json",
        "histograms.json",
        "summary.json",
    }
    assert (folder / "schedule.yaml").read_text() == SCHEDULE
    assert [record.epoch for record in sorted(records, key=lambda r: r.epoch)] == [0, 1, 2]

    results = json.loads((folder / "summary.json").read_text())
    assert results["top1_after"] == top1
    assert results["before"]["epoch"] == 0
    (parameter,) = results["parameters"]
    assert (parameter["name"], parameter["planned"]) == ("conv1.weight", 0.8)
    assert parameter["achieved"] == 28 / 36
    assert isinstance(loss, float)

    log = (folder / f"{folder.name}.log").read_text()
    for wanted in (
        "Log file for this run: ",
        "==> Top1: ",
        "==> Best [Top1: ",
        " on epoch: 2]",
        "Total sparsity: ",
        "Masks:",
        "==> Confusion:",
        f"==> Top1: {top1:.3f}    Top5: ",
    ):
        assert wanted in log
    saved = read_checkpoint(folder / "exp_checkpoint.pth.tar")
    assert (saved.epoch, saved.arch, saved.dataset) == (2, "tiny_for_app_tests", "digits")
    assert saved.schedule_text == SCHEDULE
    assert saved.extras["best_epoch"] == 2


def test_metrics_are_files_for_programs(make, schedule):
    app = make("--epochs", "2", "--compress", schedule, "-p", "5")
    app.run_training_loop()
    app.test()
    lines = [json.loads(line) for line in (app.folder.path / "metrics.jsonl").read_text().splitlines()]
    steps = [line["completed"] for line in lines if line.get("group") == "Performance/Training"]
    assert steps == [5, 10, 11, 5, 10, 11]
    assert {"Objective Loss", OVERALL_LOSS, "L1Regularizer_loss", "Top1", "LR"} <= set(lines[0]["metrics"])
    assert [line["event"] for line in lines].count("test") == 1
    with open(app.folder.path / "training.csv", newline="") as file:
        groups = [row["group"] for row in csv.DictReader(file)]
    assert groups.count("Performance/Validation") == 2


def test_b24_train_returns_numbers(make, schedule):
    app = make("--compress", schedule)
    app.compression_scheduler.on_epoch_begin(0, app.optimizer)
    top1, top5, loss = app.train_one_epoch(0, verbose=False)
    assert all(type(value) is float for value in (top1, top5, loss))
    assert 0 <= top1 <= top5 <= 100
    assert 0 < loss < 10


def test_overall_loss_includes_the_regularizer(make, schedule):
    app = make("--compress", schedule)
    app.compression_scheduler.on_epoch_begin(0, app.optimizer)
    app.train_one_epoch(0)
    first = json.loads((app.folder.path / "metrics.jsonl").read_text().splitlines()[0])["metrics"]
    assert first[OVERALL_LOSS] == pytest.approx(first["Objective Loss"] + first["L1Regularizer_loss"], rel=1e-5)


@pytest.mark.parametrize("stop", [1, 2])
def test_continuation_is_exact(make, schedule, stop):
    whole = make("--epochs", "4", "--compress", schedule)
    whole.run_training_loop()
    first = make("--epochs", str(stop), "--compress", schedule)
    first.run_training_loop()
    torch.manual_seed(12345)
    rest = make("--epochs", "4", "--resume-from", str(first.folder.path / "checkpoint.pth.tar"))
    assert rest.start_epoch == stop
    assert (rest.folder.path / "schedule.yaml").read_text() == SCHEDULE
    rest.run_training_loop()
    for (name, mine), theirs in zip(rest.model.state_dict().items(), whole.model.state_dict().values()):
        assert torch.equal(mine, theirs), name
    assert rest.performance_tracker.perf_scores_history == whole.performance_tracker.perf_scores_history
    assert rest.results.before == whole.results.before
    assert rest.test() == whole.test()


def test_reset_optimizer_begins_again_with_the_masks(make, schedule):
    first = make("--epochs", "3", "--compress", schedule)
    first.run_training_loop()
    path = str(first.folder.path / "checkpoint.pth.tar")
    for arguments in (["--resume-from", path, "--reset-optimizer"], ["--resume", path]):
        app = make("--epochs", "1", "--opt", "adam", *arguments)
        assert (app.start_epoch, type(app.optimizer).__name__) == (0, "Adam")
        app.run_training_loop()
        assert int((app.model.conv1.weight == 0).sum()) == 28


def test_weights_alone(make, schedule):
    first = make("--epochs", "2", "--compress", schedule)
    first.run_training_loop()
    app = make("--exp-load-weights-from", str(first.folder.path / "checkpoint.pth.tar"), "--evaluate")
    assert torch.equal(app.model.fc.weight, first.model.fc.weight)
    assert (app.optimizer, app.start_epoch) == (None, 0)
    assert app.compression_scheduler.masks.masked() == {}
    assert app.test() == first.test()
    with pytest.raises(ArgumentError, match="--evaluate"):
        app.train_one_epoch(0)


def test_same_seed_same_run(make):
    runs = []
    for _ in range(2):
        app = make("--epochs", "1", "--seed", "7")
        app.run_training_loop()
        runs.append(app.model.fc.weight.detach().clone())
    other = make("--epochs", "1", "--seed", "8")
    other.run_training_loop()
    assert torch.equal(*runs)
    assert not torch.equal(runs[0], other.model.fc.weight)


def test_evaluation_does_not_disturb_training(make, schedule):
    """The accuracy before pruning is measured in between: weights must not depend on that."""
    app = make("--epochs", "2", "--compress", schedule)
    app.run_training_loop()
    blind = make("--epochs", "2", "--compress", schedule)
    blind._measure_before_pruning = lambda epoch: None
    blind.run_training_loop()
    assert app.results.before is not None and blind.results.before is None
    assert torch.equal(app.model.fc.weight, blind.model.fc.weight)


def test_schedule_that_outlasts_the_run_is_logged(make, schedule, caplog):
    app = make("--epochs", "2", "--compress", schedule)
    with caplog.at_level(logging.WARNING, logger="distiller_ng"):
        app.run_training_loop()
    assert "--epochs 2: pruner 'gradual' (AutomatedGradualPruner) is scheduled up to epoch 2" in caplog.text


def test_pending_end_actions_reach_the_final_checkpoint(make, tmp_path):
    (tmp_path / "dsd.yaml").write_text(
        "version: 1\npruners:\n  dsd:\n    class: SparsityLevelParameterPruner\n    levels: {conv1.weight: 0.5}\n"
        "policies:\n  - pruner: {instance_name: dsd, args: {mask_on_forward_only: true, keep_mask: true}}\n"
        "    starting_epoch: 0\n    ending_epoch: 5\n    frequency: 1\n"
    )
    app = make("--epochs", "1", "--compress", str(tmp_path / "dsd.yaml"))
    app.run_training_loop()
    names = {path.name for path in app.folder.path.glob("*.pth.tar")}
    assert names == {"checkpoint.pth.tar", "best.pth.tar", "final_checkpoint.pth.tar"}
    final = read_checkpoint(app.folder.path / "final_checkpoint.pth.tar").state_dict["conv1.weight"]
    last = read_checkpoint(app.folder.path / "checkpoint.pth.tar").state_dict["conv1.weight"]
    assert (int((final == 0).sum()), int((last == 0).sum())) == (18, 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--epochs", "0"], ArgumentError, "nothing to do"),
        (["--pretrained"], ArgumentError, "nothing is downloaded"),
        (["--dataset", "nope"], DatasetError, "unknown data set 'nope'"),
        (["--resume-from", "nowhere.pth.tar"], FileNotFoundError, "nowhere"),
        (["--compress", "nowhere.yaml"], ScheduleError, "nowhere.yaml"),
        (["--lr", "1e20", "--epochs", "2"], DistillerError, "training diverged"),
        (["--name", "a/b"], ArgumentError, "a/b"),
    ],
)
def test_mistakes_are_typed_errors(make, arguments, error, message):
    with pytest.raises(error, match=message):
        make(*arguments).run_training_loop()


def test_module_functions(make):
    app = make("--epochs", "1", "--etes", "0.1")
    assert len(classifier.load_data(app.args)) == 3
    test_loader = classifier.load_data(app.args, fixed_subset=True, load_train=False, load_val=False)
    assert len(test_loader.sampler) == 36
    scores = classifier.evaluate_model(
        test_loader, app.model, app.criterion, [app.pylogger], args=app.args, scheduler=app.compression_scheduler
    )
    assert all(type(value) is float for value in scores)
    assert classifier.test(test_loader, app.model, app.criterion)[0] == pytest.approx(scores[0])
    assert classifier.validate(test_loader, app.model, app.criterion, None, app.args, 3)[0] == pytest.approx(scores[0])
    assert app.model.training


def test_training_without_a_scheduler(make):
    app = make()
    app.load_datasets()
    before = app.model.fc.weight.detach().clone()
    classifier.train(app.train_loader, app.model, app.criterion, app.optimizer, 0, None, None, app.args)
    assert not torch.equal(app.model.fc.weight, before)
