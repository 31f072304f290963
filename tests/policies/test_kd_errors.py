"""What distillation refuses: each mistake of a user with a typed error that names the layer or key."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

import distiller_ng as distiller

WINDOW = {"starting_epoch": 0, "ending_epoch": 4, "frequency": 1}
Policy = distiller.KnowledgeDistillationPolicy


def net(width=4):
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 16, 4)
    )


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return net(4), net(6)


X, Y = torch.randn(8, 1, 6, 6), torch.tensor([0, 1, 2, 3] * 2)


def begin(student, policy, **options):
    scheduler = distiller.CompressionScheduler(student, **options)
    scheduler.add_policy(policy, **WINDOW)
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 2)
    return scheduler


def loss_of(scheduler, student):
    return scheduler.before_backward_pass(0, 0, 2, functional.cross_entropy(student(X), Y))


@pytest.mark.parametrize(
    ("options", "argument", "message"),
    [
        ({"temperature": 0}, ("temperature",), "above 0"),
        ({"temperature": "4"}, ("temperature",), "above 0"),
        ({"temperature": float("nan")}, ("temperature",), "above 0"),
        ({"loss_weights": (0.5, -1, 0)}, ("loss_weights", "student"), "student must be a finite number from 0"),
        ({"loss_weights": (0, 0, 0)}, ("loss_weights",), "nothing would be trained"),
        ({"loss_weights": 0.5}, ("loss_weights",), "DistillationLossWeights"),
        ({"loss_weights": {"distil": 1}}, ("loss_weights", "distil"), "Did you mean 'distill'"),
        ({"loss_weights": {"distill": 1}}, ("loss_weights",), "needs student"),
        ({"loss_weights": ({}, 1, 0)}, ("loss_weights", "distill"), "at least one epoch"),
        ({"logits": "KLD"}, ("logits",), "Did you mean 'KL'"),
        ({"logits": "FSP"}, ("logits",), "compares layers"),
        ({"logits": None}, ("logits",), "nothing to distill"),
        ({"class_dim": 0}, ("class_dim",), "class_dim"),
        ({"layers": {"1x": "1"}}, ("layers", "1x"), "the student has no layer '1x'. Did you mean '1'"),
        ({"layers": {"1": "layer1"}}, ("layers", "1"), "the teacher has no layer 'layer1'"),
        ({"layers": ["0", "fc"]}, ("layers", 1, "student"), "no layer 'fc'"),
        ({"layers": [{"student": "0", "teacher": "9"}]}, ("layers", 0, "teacher"), "teacher has no layer '9'"),
        ({"layers": [{"student": "0"}]}, ("layers", 0), "the teacher's side is missing"),
        ({"layers": "0"}, ("layers",), "or is a list"),
        ({"layers": {"0": {"teacher": "0", "wight": 1}}}, ("layers", "0", "wight"), "a pair has no 'wight'"),
        ({"layers": {"0": {"teacher": "0", "gain": -1}}}, ("layers", "0", "gain"), "gain must be"),
        ({"layers": {"0": {"teacher": "0", "loss": "FSP"}}}, ("layers", "0"), "compares 2 layers"),
        ({"layers": {"[": "0"}}, ("layers", "["), "names no layer"),
        ({"layers": {"0": None}}, ("layers", "0"), "expected a name"),
        ({"layers": {"0": "0"}, "loss": "nope"}, ("loss",), "unknown distillation loss"),
        ({"layers": {"0": "0"}, "loss": "AT", "normalize": True}, ("normalize",), "take MSE or L1"),
        ({"layers": {"0": "0"}, "loss": "AT", "spatial_weight": "attention"}, ("spatial_weight",), "take MSE, L1 or"),
        ({"layers": {"0": "0"}, "spatial_weight": "atention"}, ("spatial_weight",), "Did you mean 'attention'"),
        ({"layers": {"0": "0"}, "normalize": 1}, ("normalize",), "true or false"),
        ({"layers": {"0": "0"}, "epsilon": 0}, ("epsilon",), "above 0"),
        ({"autocast": "fp16"}, ("autocast",), "float16, bfloat16"),
        ({"output_keys": []}, ("output_keys",), "list of names"),
        ({"teacher_input_keys": "x"}, ("teacher_input_keys",), "list of names"),
        ({"teacher_weights": [1, 2]}, ("teacher_weights",), "one number for each of 1 teacher"),
        ({"teacher_weights": [0]}, ("teacher_weights",), "above 0"),
        ({"ema": 0.9}, ("ema",), "either teacher or ema"),
    ],
)
def test_arguments(pair, options, argument, message):
    named = {"temperature": 1.0, "loss_weights": distiller.DistillationLossWeights(0.5, 0.5, 0), **options}
    with pytest.raises(distiller.ArgumentError, match=message) as caught:
        Policy(*pair, **named)
    assert caught.value.argument == argument
    if "no layer '" in message:
        assert isinstance(caught.value, distiller.TargetError)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (None, "teacher is missing"),
        ("resnet", "'self' or"),
        ([], "empty list"),
        ({"ema": 1.0}, "from 0 and below 1"),
        ({"ema": 0.9, "x": 1}, "teacher is a name"),
        (3, "teacher is a name"),
        (["self", "self"], "stands twice"),
    ],
)
def test_teachers(pair, teacher, message):
    with pytest.raises(distiller.ArgumentError, match=message):
        Policy(pair[0], teacher)


def test_the_student_as_its_own_teacher(pair):
    for wrapped in (pair[0], nn.DataParallel(pair[0])):
        with pytest.raises(distiller.ArgumentError, match="the teacher is the student itself"):
            Policy(pair[0], wrapped)


def test_another_student_than_the_schedulers(pair):
    with pytest.raises(distiller.ArgumentError, match="not the scheduler's model"):
        distiller.CompressionScheduler(net()).add_policy(Policy(*pair), **WINDOW)
    whole = nn.ModuleDict({"backbone": pair[0]})
    distiller.CompressionScheduler(whole).add_policy(Policy(*pair), **WINDOW)


def test_the_student_did_not_run(pair):
    student, teacher = pair
    scheduler = begin(student, Policy(student, teacher))
    with pytest.raises(distiller.LifecycleError, match="the student was not run"):
        scheduler.before_backward_pass(0, 0, 2, teacher(X).sum())
    assert issubclass(distiller.LifecycleError, RuntimeError)


def test_a_pass_without_gradients_does_not_count(pair):
    student, teacher = pair
    scheduler = begin(student, Policy(student, teacher))
    with torch.no_grad():
        student(X)
    with pytest.raises(distiller.LifecycleError, match="with gradients enabled"):
        scheduler.before_backward_pass(0, 0, 2, torch.zeros((), requires_grad=True))


def test_batch_norm_of_the_teacher_in_training_mode(pair):
    student, teacher = pair
    scheduler = begin(student, Policy(student, teacher))
    before = teacher[1].running_mean.clone()
    teacher.train()
    with pytest.raises(distiller.LifecycleError, match="teacher 'teacher': batch norm '1' is in training mode"):
        loss_of(scheduler, student)
    assert torch.equal(before, teacher[1].running_mean)


def test_dropout_of_the_teacher_goes_back_to_eval(pair):
    student, _ = pair
    teacher = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 4))
    scheduler = begin(student, Policy(student, teacher))
    teacher.train()
    loss_of(scheduler, student)
    assert not teacher[1].training


def test_teacher_and_student_on_different_devices(pair):
    student, teacher = pair
    with pytest.raises(
        distiller.ArgumentError, match=r"teacher 'teacher' is on meta, the student on cpu: .*to\('cpu'\)"
    ):
        begin(student, Policy(student, teacher.to("meta")))


@pytest.mark.parametrize(
    ("where", "options", "message"),
    [
        ("4", {}, "teacher 'teacher': its output holds NaN"),
        ("0", {"layers": {"0": "0"}, "logits": None}, "teacher 'teacher': (its output|layer '0') holds NaN"),
    ],
)
def test_nan_in_the_teacher(pair, where, options, message):
    student, teacher = pair
    with torch.no_grad():
        teacher.get_submodule(where).weight[0] = float("nan")
    scheduler = begin(student, Policy(student, teacher, **options))
    with pytest.raises(distiller.ArgumentError, match=message):
        loss_of(scheduler, student)


def test_nan_in_one_of_several_outputs_and_layers_is_named():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            x = self.body(x)
            return {"logits": self.a(x), "extra": self.b(x)}

    x = torch.randn(2, 3)
    for broken, message in (("b", "its output 'extra' holds NaN"), ("body", "output 'logits'")):
        student, teacher = Two(), Two()
        with torch.no_grad():
            teacher.get_submodule(broken).bias.fill_(float("nan"))
        scheduler = begin(student, Policy(student, teacher, output_keys=["logits", "extra"]))
        output = student(x)
        with pytest.raises(distiller.ArgumentError, match=message):
            scheduler.before_backward_pass(0, 0, 2, output["logits"].sum())


def test_nan_in_the_student_is_not_the_teachers_fault(pair):
    student, teacher = pair
    with torch.no_grad():
        student[4].weight.fill_(float("inf"))
    scheduler = begin(student, Policy(student, teacher))
    assert not torch.isfinite(loss_of(scheduler, student))


def test_other_numbers_of_classes(pair):
    student, _ = pair
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(36, 5))
    scheduler = begin(student, Policy(student, teacher))
    with pytest.raises(distiller.ArgumentError, match=r"the logits: KLDivergence cannot compare .*\[8, 4\].*\[8, 5\]"):
        loss_of(scheduler, student)


def test_a_layer_that_did_not_run():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            return self.used(x)

    student = Unused()
    scheduler = begin(student, Policy(student, Unused(), layers={"spare": "used"}))
    with pytest.raises(distiller.LifecycleError, match="the student's layer 'spare' did not run"):
        scheduler.before_backward_pass(0, 0, 2, student(torch.randn(2, 3)).sum())


def test_a_layer_that_is_gone(pair):
    student, teacher = pair
    policy = Policy(student, teacher, layers={"2": "2"})
    scheduler = distiller.CompressionScheduler(student)
    scheduler.add_policy(policy, **WINDOW)
    del student[2]
    scheduler.on_epoch_begin(0)  # the layers behind it moved up to its place
    del student[2], student[2]
    with pytest.raises(distiller.LifecycleError, match="layer '2', whose output is distilled, is no longer"):
        scheduler.on_minibatch_begin(0, 0, 1)


def test_errors_leave_nothing_behind(pair):
    """After a failed step the next one works, and nothing of the failed one is held."""
    student, teacher = pair
    policy = Policy(student, teacher)
    scheduler = begin(student, policy)
    good = teacher[4].weight.detach().clone()
    with torch.no_grad():
        teacher[4].weight.fill_(float("nan"))
    with pytest.raises(distiller.ArgumentError):
        loss_of(scheduler, student)
    with torch.no_grad():
        teacher[4].weight.copy_(good)
    scheduler.on_minibatch_begin(0, 1, 2)
    loss = scheduler.before_backward_pass(0, 1, 2, functional.cross_entropy(student(X), Y))
    assert torch.isfinite(loss)


def test_wrong_types():
    with pytest.raises(distiller.ArgumentError, match=r"torch.nn.Module, got str"):
        Policy("model", net())
    with pytest.raises(distiller.ArgumentError, match="criterion is a loss function"):
        Policy(net(), net(), criterion="CE")
    with pytest.raises(distiller.ArgumentError, match="expected a distiller"):
        Policy.of(net())
    with pytest.raises(TypeError, match="nonsense"):
        Policy(net(), net(), nonsense=1)


def test_a_student_without_parameters_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Policy(nn.Flatten(), net())


def test_a_teacher_that_changes_its_inputs_in_place(pair):
    class Scales(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            x *= 2
            return self.inner(x)

    student, teacher = pair
    scheduler = begin(student, Policy(student, Scales(teacher)))
    with pytest.raises(distiller.ArgumentError, match="teacher 'teacher' changes its inputs in place"):
        student(X.clone())
    scheduler.finish()


def test_a_moving_average_without_its_decay(pair):
    student, teacher = pair
    definition = {
        "distillers": {"kd": {"class": "KnowledgeDistiller", "teacher": "ema"}},
        "policies": [{"distiller": {"instance_name": "kd"}, "starting_epoch": 0, "ending_epoch": 2}],
    }
    with pytest.raises(distiller.ScheduleError, match=r"needs its decay: teacher: \{ema: 0.999\}"):
        distiller.dict_config(student, None, definition, teachers={"big": teacher})
