"""Distillation from the command line: Distiller's flags, what they build, exact continuation, and agreement with the
schedule, the Python API and the façade."""

import argparse
import logging

import pytest
import torch
from torch.nn import functional

import distiller_ng.apputils.image_classifier as classifier
from distiller_ng.apputils import close_pylogger, save_checkpoint
from distiller_ng.apputils.classifier_setup import infer_implicit_args_, init_learner, set_up_device_
from distiller_ng.checkpoint import read_checkpoint
from distiller_ng.compat.neural_compressor import Distillation, PyTorchKnowledgeDistillationLoss
from distiller_ng.config import dict_config
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import ArgumentError, CheckpointError, ScheduleError
from distiller_ng.knowledge_distillation import DistillationLossWeights, add_distillation_args
from distiller_ng.models import create_model, factory, register_user_model
from distiller_ng.policies.knowledge_distillation import KnowledgeDistillationPolicy

STUDENT, TEACHER = "kd_flags_student", "kd_flags_teacher"


class Net(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(1, width, 3)
        self.norm = torch.nn.BatchNorm2d(width)
        self.fc = torch.nn.Linear(width * 36, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv1(x))).flatten(1))


@pytest.fixture(scope="module", autouse=True)
def _registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factory, "_USER_MODELS", dict(factory._USER_MODELS))
        register_user_model(STUDENT, "digits", lambda: Net(2))
        register_user_model(TEACHER, "digits", lambda: Net(6))
        yield


@pytest.fixture(autouse=True)
def quiet_after():
    package = logging.getLogger("distiller_ng")
    level = package.level
    yield
    close_pylogger()
    package.setLevel(level)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(7)
    teacher = create_model(False, "digits", TEACHER)
    save_checkpoint(0, TEACHER, teacher, dir=tmp_path, name="teacher")
    return teacher, str(tmp_path / "teacher_checkpoint.pth.tar")


def parse(*arguments):
    parser = classifier.init_classifier_compression_arg_parser()
    add_distillation_args(parser, [STUDENT, TEACHER], enable_pretrained=True)
    common = ["--arch", STUDENT, "--batch-size", "128", "--det", "--lr", "0.05", "--vs", "0"]
    return parser.parse_args([*common, *arguments])


def learner(*arguments):
    args = infer_implicit_args_(parse(*arguments))
    set_up_device_(args)
    return args, init_learner(args)


# -- what the flags say --------------------------------------------------------------------------------------------------


def test_defaults_are_distillers():
    parser = argparse.ArgumentParser()
    add_distillation_args(parser)
    assert vars(parser.parse_args([])) == {
        "kd_teacher": None,
        "kd_resume": "",
        "kd_temp": 1.0,
        "kd_distill_wt": 0.5,
        "kd_student_wt": 0.5,
        "kd_teacher_wt": 0.0,
        "kd_start_epoch": 0,
    }


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--kd-temp", "4"], "kd_temp", 4.0),
        (["--kd-temperature=4"], "kd_temp", 4.0),
        (["--kd-dw", "0.7"], "kd_distill_wt", 0.7),
        (["--kd-distill-wt", "0.7"], "kd_distill_wt", 0.7),
        (["--kd-sw", "0.3"], "kd_student_wt", 0.3),
        (["--kd-tw", "0.1"], "kd_teacher_wt", 0.1),
        (["--kd-start-epoch", "3"], "kd_start_epoch", 3),
        (["--kd-pretrained"], "kd_pretrained", True),
        (["--kd-teacher", TEACHER], "kd_teacher", TEACHER),
    ],
)
def test_spellings(arguments, name, value):
    assert getattr(parse(*arguments), name) == value


@pytest.mark.parametrize(
    "arguments",
    [
        ["--kd-teacher", "resnet18"],
        ["--kd-temp", "0"],
        ["--kd-temp", "inf"],
        ["--kd-dw", "-1"],
        ["--kd-sw", "nan"],
        ["--kd-start-epoch", "1.5"],
    ],
)
def test_values_out_of_range_exit(arguments):
    with pytest.raises(SystemExit) as stopped:
        parse(*arguments)
    assert stopped.value.code == 2


# -- what they build -----------------------------------------------------------------------------------------------------


def test_flags_build_the_policy(weights):
    teacher, path = weights
    args, built = learner(
        *("--kd-teacher", TEACHER, "--kd-resume", path, "--kd-temp", "4", "--kd-dw", "0.7", "--kd-sw", "0.3"),
        *("--kd-start-epoch", "2", "--epochs", "5"),
    )
    ((policy, window),) = built.scheduler.schedule
    assert policy is args.kd_policy
    assert (policy.temperature, tuple(policy.loss_wts)) == (4.0, (0.7, 0.3, 0.0))
    assert list(window.active_epochs()) == [2, 3, 4]
    assert policy.student is built.model
    assert all(torch.equal(a, b) for a, b in zip(policy.teacher.parameters(), teacher.parameters(), strict=True))


def test_without_a_teacher_nothing_is_added():
    args, built = learner()
    assert built.scheduler.schedule == [] or not list(built.scheduler.schedule)
    assert args.kd_policy is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kd-teacher", TEACHER, "--kd-pretrained"], "nothing is downloaded"),
        (["--kd-resume", "x"], "--kd-teacher ARCH"),
        (["--kd-teacher", TEACHER, "--epochs", "2", "--kd-start-epoch", "2"], "not before the last"),
    ],
)
def test_flags_that_do_not_go_together(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        learner(*arguments)


def test_teachers_weights_must_fit(weights, tmp_path):
    _, path = weights
    with pytest.raises(CheckpointError, match=f"is of a '{TEACHER}'"):
        learner("--kd-teacher", STUDENT, "--kd-resume", path)
    with pytest.raises(FileNotFoundError):
        learner("--kd-teacher", TEACHER, "--kd-resume", str(tmp_path / "nothing"))


def test_random_teachers_are_warned_about_and_evaluation_needs_none(caplog):
    learner("--kd-teacher", TEACHER)
    assert "random weights" in caplog.text
    args, built = learner("--kd-teacher", TEACHER, "--evaluate")
    assert args.kd_policy is None and built.optimizer is None


SCHEDULE = f"""
version: 1
distillers:
  kd: {{class: KnowledgeDistiller, teacher: {TEACHER}, temperature: 4.0, loss_weights: {{distill: 0.7, student: 0.3}}}}
policies:
  - distiller: {{instance_name: kd}}
    starting_epoch: 0
    ending_epoch: 3
    frequency: 1
"""


def test_a_schedule_that_distills_gets_the_teacher_by_name(weights, tmp_path):
    _, path = weights
    (tmp_path / "kd.yaml").write_text(SCHEDULE)
    args, built = learner("--kd-teacher", TEACHER, "--kd-resume", path, "--compress", str(tmp_path / "kd.yaml"))
    ((policy, _),) = built.scheduler.schedule
    assert (policy.temperature, args.kd_policy) == (4.0, None)
    with pytest.raises(ScheduleError, match="No teachers were given"):
        learner("--compress", str(tmp_path / "kd.yaml"))


# -- training ------------------------------------------------------------------------------------------------------------


def run(folder, *arguments):
    args = parse("--out-dir", str(folder), "--etes", "0.1", "--etrs", "0.3", *arguments)
    app = classifier.ClassifierCompressor(args, folder)
    app.run_training_loop()
    return app


def test_training_logs_the_loss_and_continues_exactly(weights, tmp_path):
    _, path = weights
    flags = ["--kd-teacher", TEACHER, "--kd-resume", path, "--kd-temp", "4", "--kd-dw", "0.7", "--kd-sw", "0.3"]
    whole = run(tmp_path / "whole", *flags, "--epochs", "3")
    assert "Distill Loss" in (whole.folder.path / "training.csv").read_text().splitlines()[0]
    close_pylogger()

    first = run(tmp_path / "part", *flags, "--epochs", "2")
    saved = str(first.folder.path / "checkpoint.pth.tar")
    close_pylogger()
    second = run(tmp_path / "rest", *flags, "--epochs", "3", "--resume-from", saved)
    expected, found = whole.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert read_checkpoint(second.folder.path / "checkpoint.pth.tar").start_epoch == 3


def test_resuming_without_the_flags_keeps_the_weights_and_says_so(weights, tmp_path, caplog):
    _, path = weights
    first = run(tmp_path / "part", "--kd-teacher", TEACHER, "--kd-resume", path, "--epochs", "1")
    saved = str(first.folder.path / "checkpoint.pth.tar")
    close_pylogger()
    run(tmp_path / "rest", "--epochs", "2", "--resume-from", saved)
    assert "KnowledgeDistillationPolicy" in caplog.text


# -- agreement -----------------------------------------------------------------------------------------------------------


def step(scheduler, model, images, labels):
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    loss = functional.cross_entropy(model(images), labels)
    total = scheduler.before_backward_pass(0, 0, 1, loss)
    total.backward()
    return total.item(), model.fc.weight.grad.clone()


def test_flags_python_schedule_and_facade_agree(weights, tmp_path):
    teacher, path = weights
    torch.manual_seed(3)
    state = create_model(False, "digits", STUDENT).state_dict()
    images, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 10

    def student():
        model = create_model(False, "digits", STUDENT)
        model.load_state_dict(state)
        return model.train()

    found = {}
    _, built = learner(
        "--kd-teacher", TEACHER, "--kd-resume", path, "--kd-temp", "4", "--kd-dw", "0.7", "--kd-sw", "0.3"
    )
    built.model.load_state_dict(state)
    found["flags"] = step(built.scheduler, built.model.train(), images, labels)

    model = student()
    scheduler = CompressionScheduler(model)
    policy = KnowledgeDistillationPolicy(model, teacher, 4.0, DistillationLossWeights(0.7, 0.3, 0))
    scheduler.add_policy(policy, starting_epoch=0, ending_epoch=3, frequency=1)
    found["python"] = step(scheduler, model, images, labels)

    model = student()
    definition = {"class": "KnowledgeDistiller", "teacher": "big", "temperature": 4.0}
    definition["loss_weights"] = {"distill": 0.7, "student": 0.3}
    schedule = {
        "distillers": {"kd": definition},
        "policies": [{"distiller": {"instance_name": "kd"}, "epochs": [0]}],
    }
    scheduler = dict_config(model, None, schedule, teachers={"big": teacher})
    found["schedule"] = step(scheduler, model, images, labels)

    model = student()
    facade = Distillation()
    facade.student_model, facade.teacher_model = model, teacher
    facade.criterion = PyTorchKnowledgeDistillationLoss(4.0, ["CE", "KL"], [0.3, 0.7])
    facade.on_train_begin()
    output = model(images)
    total = facade.on_after_compute_loss(images, output, functional.cross_entropy(output, labels))
    total.backward()
    found["facade"] = total.item(), model.fc.weight.grad.clone()

    expected, gradient = found["python"]
    for name, (value, grad) in found.items():
        assert value == expected, name
        assert torch.equal(grad, gradient), name
