"""The Neural Compressor façade: its fragments, losses with literal numbers, hooks, and what is refused."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from distiller_ng.compat.neural_compressor import (
    Distillation,
    DistillationConf,
    Model,
    PyTorchIntermediateLayersKnowledgeDistillationLoss,
    PyTorchKnowledgeDistillationLoss,
)
from distiller_ng.errors import ArgumentError, CalibrationError, LifecycleError, ScheduleError, TargetError

USUAL_YAML = """
model:
  name: blendcnn
  framework: pytorch
tuning:
  accuracy_criterion: {relative: 0.01}
  exit_policy: {timeout: 0}
  random_seed: 9527
"""


def net(width=6, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def batches(count=3, size=5):
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(size, 4, generator=generator), torch.arange(size) % 3) for _ in range(count)]


def loop(distiller, optimizer_of=None, epochs=2, seen=None):
    """A user's train_func."""

    def train_func(model):
        optimizer = optimizer_of(model) if optimizer_of else torch.optim.SGD(model.parameters(), 0.1)
        distiller.on_train_begin()
        for _ in range(epochs):
            model.train()
            for step, (x, y) in enumerate(batches()):
                distiller.on_step_begin(step)
                output = model(x)
                loss = distiller.on_after_compute_loss(x, output, functional.cross_entropy(output, y))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if seen is not None:
                    seen.append(loss.item())
            distiller.on_epoch_end()

    return train_func


# -- the fragments of the user's guide -----------------------------------------------------------------------------------


class Texts(nn.Module):
    """Takes three inputs, as the guide's text classifier does."""

    def __init__(self, width):
        super().__init__()
        self.embed, self.segment, self.head = nn.Embedding(20, width), nn.Embedding(2, width), nn.Linear(width, 3)

    def forward(self, input_ids, segment_ids, input_mask):
        words = (self.embed(input_ids) + self.segment(segment_ids)) * input_mask.unsqueeze(-1)
        return self.head(words.mean(1))


def test_fragment_with_a_training_function_and_stored_teacher_logits(tmp_path):
    from distiller_ng.compat.neural_compressor.experimental import Distillation, common
    from distiller_ng.compat.neural_compressor.experimental.common.criterion import PyTorchKnowledgeDistillationLoss

    config = tmp_path / "blendcnn.yaml"
    config.write_text(USUAL_YAML)
    torch.manual_seed(0)
    model, teacher = Texts(4), Texts(16)
    ids, segments, mask = torch.randint(20, (8, 6)), torch.randint(2, (8, 6)), torch.ones(8, 6)
    teacher_logits = torch.randn(8, 3)
    train_dataloader = [(teacher_logits, ids, segments, mask, torch.arange(8) % 3)] * 5
    criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.5)
    epochs, iters, losses = 2, 3, []

    def train_func(model):
        distiller.on_train_begin()
        for _ in range(epochs):
            model.train()
            cnt = 0
            for batch in train_dataloader:
                teacher_logits, input_ids, segment_ids, input_mask, target = batch
                cnt = cnt + 1
                output = model(input_ids, segment_ids, input_mask)
                loss = criterion(output, target)
                loss = distiller.on_after_compute_loss(
                    {"input_ids": input_ids, "segment_ids": segment_ids, "input_mask": input_mask},
                    output,
                    loss,
                    teacher_logits,
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                if cnt >= iters:
                    break
            distiller.on_epoch_end()

    distiller = Distillation(str(config))
    distiller.student_model = model
    distiller.teacher_model = teacher
    distiller.criterion = PyTorchKnowledgeDistillationLoss()
    distiller.train_func = train_func
    best = distiller.fit()
    assert isinstance(best, common.Model)
    assert best.model is model
    assert len(losses) == 6
    assert losses[-1] < losses[0]


WHOLE_YAML = """
model: {name: digits, framework: pytorch}
distillation:
  train:
    start_epoch: 0
    end_epoch: 2
    iteration: 3
    frequency: 1
    dataloader:
      batch_size: 4
      shuffle: true
      last_batch: discard
      dataset: {ImageFolder: {root: ROOT}}
      transform:
        RandomResizedCrop: {size: 8}
        RandomHorizontalFlip: {}
        ToTensor: {}
        Normalize: {mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}
    optimizer: {SGD: {learning_rate: 0.01, momentum: 0.9, nesterov: true, weight_decay: 0.0005}}
    criterion:
      KnowledgeDistillationLoss: {temperature: 1.0, loss_types: [CE, KL], loss_weights: [0.5, 0.5]}
evaluation:
  accuracy:
    metric: {topk: 1}
    dataloader:
      batch_size: 4
      dataset: {ImageFolder: {root: ROOT}}
      transform: {Resize: {size: 10}, CenterCrop: {size: 8}, ToTensor: {}}
tuning:
  exit_policy: {timeout: 0}
  random_seed: 9527
"""


@pytest.fixture
def folder(tmp_path):
    from PIL import Image

    for name in ("cats", "dogs", "eels"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (12, 9), (60 * number, 10, 200)).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("is_object", [False, True])
def test_fragments_with_everything_in_the_configuration(tmp_path, folder, is_object):
    from distiller_ng.compat.neural_compressor.conf.config import DistillationConf
    from distiller_ng.compat.neural_compressor.experimental import Distillation

    path = tmp_path / "all.yaml"
    path.write_text(WHOLE_YAML.replace("ROOT", str(folder)))
    torch.manual_seed(0)
    student_model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    teacher_model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 3))
    before = copy.deepcopy(student_model.state_dict())
    distiller = Distillation(DistillationConf(path) if is_object else str(path))
    distiller.student_model = student_model
    distiller.teacher_model = teacher_model
    model = distiller.fit()
    assert model.model is student_model
    assert 0.0 <= distiller.best_score <= 1.0
    assert distiller.teacher_score is not None
    group = distiller.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.01, 0.9, True, 0.0005)
    assert distiller.criterion.loss_types == ["CE", "KL"]
    moved = distiller.optimizer.state[student_model[1].weight]["momentum_buffer"].abs().sum()
    assert moved > 0
    assert before.keys() == student_model.state_dict().keys()


# -- KnowledgeDistillationLoss -------------------------------------------------------------------------------------------

STUDENT, TEACHER = [[0.0, 0.0], [math.log(3), 0.0]], [[math.log(3), 0.0], [0.0, 0.0]]
KL1 = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
KL2 = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
SOFT1 = -math.log(0.5)
SOFT2 = -0.5 * math.log(0.75) - 0.5 * math.log(0.25)


@pytest.mark.parametrize(
    ("kind", "reduction", "value"),
    [
        ("CE", "batchmean", (SOFT1 + SOFT2) / 2),
        ("KL", "batchmean", (KL1 + KL2) / 2),
        ("KL", "mean", (KL1 + KL2) / 4),
        ("MSE", "batchmean", math.log(3) ** 2 / 2),
    ],
)
@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.0, 1.0], [0.25, 0.75]])
def test_numbers_at_temperature_one(kind, reduction, value, weights):
    criterion = PyTorchKnowledgeDistillationLoss(1.0, ["CE", kind], weights, reduction=reduction)
    loss = criterion.loss_cal_sloss(torch.tensor(STUDENT), torch.tensor(TEACHER), torch.tensor(2.0))
    assert loss.item() == pytest.approx(weights[0] * 2.0 + weights[1] * value, rel=1e-5)


@pytest.mark.parametrize("kind", ["CE", "KL", "MSE"])
def test_temperature_by_neural_compressors_formula(kind):
    temperature = 3.0
    s, t = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    soft_s, soft_t = torch.log_softmax(s / temperature, -1), torch.softmax(t / temperature, -1)
    distance = {
        "CE": -(soft_t * soft_s).sum(-1).mean(),
        "KL": functional.kl_div(soft_s, soft_t, reduction="none").mean(),
        "MSE": functional.mse_loss(s / temperature, t / temperature),
    }[kind]
    criterion = PyTorchKnowledgeDistillationLoss(temperature, ["CE", kind], [0.5, 0.5], reduction="mean")
    loss = criterion.loss_cal_sloss(s, t, torch.tensor(1.0, dtype=torch.float64))
    expected = 0.5 + 0.5 * temperature**2 * distance
    # The soft cross entropy of the reference has no reduction to choose.
    torch.testing.assert_close(loss, expected)


def test_defaults_and_attributes():
    criterion = PyTorchKnowledgeDistillationLoss()
    assert (criterion.temperature, criterion.loss_types, criterion.loss_weights) == (1.0, ["CE", "CE"], [0.5, 0.5])
    assert criterion.student_model is None


def test_student_against_labels():
    outputs, labels = torch.tensor([[2.0, 0.0]]), torch.tensor([1])
    ce = PyTorchKnowledgeDistillationLoss()
    assert ce.student_targets_loss_cal(outputs, labels).item() == pytest.approx(math.log(1 + math.e**2), rel=1e-6)
    mse = PyTorchKnowledgeDistillationLoss(loss_types=["MSE", "MSE"])
    assert mse.student_targets_loss_cal(outputs, torch.tensor([[0.0, 0.0]])).item() == 2.0
    with pytest.raises(ArgumentError, match="same shape"):
        mse.student_targets_loss_cal(outputs, labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, "temperature"),
        ({"temperature": "2"}, "temperature"),
        ({"loss_types": ["CE"]}, "list of 2 names"),
        ({"loss_types": "CE"}, "list of 2 names"),
        ({"loss_types": ["KL", "CE"]}, "unknown loss 'KL'"),
        ({"loss_types": ["CE", "KLD"]}, "Did you mean 'KL'"),
        ({"loss_weights": [0.5]}, "list of 2 numbers"),
        ({"loss_weights": [0.5, 0.6]}, "must sum to 1"),
        ({"loss_weights": [-0.5, 1.5]}, "from 0"),
        ({"loss_weights": [float("nan"), 1.0]}, "from 0"),
        ({"reduction": "sum"}, "unknown reduction"),
    ],
)
def test_wrong_arguments_of_the_criterion(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        PyTorchKnowledgeDistillationLoss(**arguments)


def test_a_weight_of_zero_leaves_the_term_and_the_teacher_out():
    class Never(nn.Module):
        def forward(self, x):
            raise AssertionError("the teacher ran")

    distiller = Distillation()
    distiller.student_model, distiller.teacher_model = net(), Never()
    distiller.criterion = PyTorchKnowledgeDistillationLoss(loss_weights=[1.0, 0.0])
    seen = []
    distiller.train_func = loop(distiller, seen=seen)
    distiller.fit()
    plain = net()
    x, y = batches()[0]
    assert seen[0] == pytest.approx(functional.cross_entropy(plain(x), y).item(), rel=1e-6)
    only = PyTorchKnowledgeDistillationLoss(loss_weights=[0.0, 1.0])
    assert torch.isfinite(only.loss_cal_sloss(torch.ones(2, 3), torch.ones(2, 3), torch.tensor(float("nan"))))


def test_batches_without_labels_learn_from_the_teacher_alone():
    criterion = PyTorchKnowledgeDistillationLoss(loss_types=["CE", "KL"])
    student, teacher = torch.tensor(STUDENT), torch.tensor(TEACHER)
    assert criterion.loss_cal_sloss(student, teacher, None).item() == pytest.approx((KL1 + KL2) / 4, rel=1e-5)
    with pytest.raises(ArgumentError, match="nothing to learn from"):
        PyTorchKnowledgeDistillationLoss(loss_weights=[1.0, 0.0]).loss_cal_sloss(student, teacher, None)


@pytest.mark.parametrize("wrap", [lambda z: (z, z + 1), lambda z: [z], lambda z: {"logits": z, "loss": z.sum()}])
def test_outputs_of_every_kind(wrap):
    criterion = PyTorchKnowledgeDistillationLoss(loss_types=["CE", "KL"])
    loss = criterion.loss_cal_sloss(wrap(torch.tensor(STUDENT)), wrap(torch.tensor(TEACHER)), torch.tensor(2.0))
    assert loss.item() == pytest.approx(1.0 + (KL1 + KL2) / 4, rel=1e-5)
    labels = criterion.student_targets_loss_cal(wrap(torch.zeros(1, 2)), torch.tensor([0]))
    assert labels.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("teacher", [torch.ones(2, 4), torch.ones(3, 3), torch.ones(2)])
def test_logits_of_other_shapes(teacher):
    with pytest.raises(ArgumentError, match="cannot compare"):
        PyTorchKnowledgeDistillationLoss().loss_cal_sloss(torch.ones(2, 3), teacher, torch.tensor(0.0))


def test_a_teacher_that_gives_nan():
    with pytest.raises(CalibrationError, match="NaN"):
        PyTorchKnowledgeDistillationLoss().loss_cal_sloss(
            torch.ones(1, 2), torch.tensor([[float("nan"), 0.0]]), torch.tensor(0.0)
        )


# -- hooks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "call"),
    [
        (lambda x: x, lambda model, x: model(x)),
        (lambda x: (x,), lambda model, x: model(x)),
        (lambda x: [x], lambda model, x: model(x)),
        (lambda x: {"input": x}, lambda model, x: model(input=x)),
    ],
)
def test_inputs_of_every_kind_reach_the_teacher_in_eval_mode(given, call):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.drop = net(9, seed=5), nn.Dropout(0.9)

        def forward(self, input):
            return self.drop(self.net(input))

    distiller = Distillation()
    student, teacher = net(), Noisy().train()
    distiller.student_model, distiller.teacher_model = Model(student), Model(teacher)
    distiller.on_train_begin()
    x, _ = batches()[0]
    loss = distiller.on_after_compute_loss(given(x), student(x), torch.tensor(1.0))
    target = torch.softmax(teacher.net(x), -1)
    expected = 0.5 - 0.5 * (target * torch.log_softmax(student(x), -1)).sum(-1).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student[0].weight.grad.abs().sum() > 0
    distiller.on_train_end()


def test_best_weights_come_back_into_the_same_module():
    scores = iter([0.1, 0.2, 0.9, 0.3])  # teacher, student before, after epochs 1 and 2
    kept = []

    def evaluate(model):
        kept.append(copy.deepcopy(model.state_dict()))
        return next(scores)

    distiller = Distillation()
    student = net()
    distiller.student_model, distiller.teacher_model = student, net(9, seed=5)
    distiller.eval_func = evaluate
    distiller.train_func = loop(distiller)
    assert distiller().model is student
    assert (distiller.teacher_score, distiller.best_score) == (0.1, 0.9)
    assert all(torch.equal(kept[2][name], value) for name, value in student.state_dict().items())


def test_scores_every_other_epoch_and_only_with_something_to_score_with():
    calls = []
    distiller = Distillation()
    distiller.student_model, distiller.teacher_model = net(), net(9, seed=5)
    distiller.eval_frequency = 2
    distiller.eval_func = lambda model: calls.append(model) or torch.tensor(0.5)
    distiller.train_func = loop(distiller, epochs=5)
    distiller.fit()
    assert len(calls) == 2 + 2
    distiller.eval_func = lambda model: "good"
    with pytest.raises(ArgumentError, match="eval_func returned a str"):
        distiller.fit()


def test_misuse_is_named():
    distiller = Distillation()
    with pytest.raises(LifecycleError, match="student_model"):
        distiller.fit()
    with pytest.raises(ArgumentError, match="student_model is a"):
        distiller.student_model = "resnet18"
    distiller.student_model = net()
    with pytest.raises(LifecycleError, match=r"train_dataloader.*distillation\.train\.dataloader"):
        distiller.fit()
    distiller.train_dataloader = batches()
    with pytest.raises(LifecycleError, match=r"distiller\.optimizer"):
        distiller.fit()
    with pytest.raises(LifecycleError, match="on_train_begin"):
        distiller.on_after_compute_loss(None, None, torch.tensor(0.0))
    with pytest.raises(LifecycleError, match="on_after_compute_loss"):
        distiller.on_post_forward(1)
    with pytest.raises(ArgumentError, match="criterion is a"):
        distiller.criterion = nn.CrossEntropyLoss()
    distiller.optimizer = torch.optim.SGD(distiller.student_model.model.parameters(), 0.1)
    with pytest.raises(LifecycleError, match="there is no teacher"):
        distiller.fit()


def test_loaders_and_optimizer_in_code_without_a_training_function():
    distiller = Distillation({"distillation": {"train": {"epoch": 3}}, "tuning": {"random_seed": 1}})
    distiller.student_model, distiller.teacher_model = net(), net(9, seed=5)
    distiller.train_dataloader, distiller.eval_dataloader = batches(), batches()
    distiller.optimizer = torch.optim.Adam(distiller.student_model.model.parameters(), 0.01)
    before = distiller.student_model.model[0].weight.detach().clone()
    best = distiller.fit()
    assert not torch.equal(before, best.model[0].weight)
    assert distiller.best_score is not None


# -- intermediate layers -------------------------------------------------------------------------------------------------


def feature_loss(mappings, student=None, teacher=None, optimizer=None, **arguments):
    criterion = PyTorchIntermediateLayersKnowledgeDistillationLoss(mappings, **arguments)
    distiller = Distillation()
    student, teacher = student or net(), teacher or net(seed=5)
    distiller.student_model, distiller.teacher_model, distiller.criterion = student, teacher, criterion
    distiller.optimizer = optimizer
    distiller.on_train_begin()
    x, y = batches()[0]
    output = student(x)
    loss = distiller.on_after_compute_loss(x, output, functional.cross_entropy(output, y))
    return loss, student, teacher, x, criterion, distiller


@pytest.mark.parametrize("kind", ["MSE", "L1", "KL"])
@pytest.mark.parametrize("mapping", [["0", "0"], ["0", "", "0", ""], ["0"]])
def test_features_of_the_same_shape(kind, mapping):
    loss, student, teacher, x, criterion, _ = feature_loss([mapping], loss_types=[kind])
    s, t = student[0](x), teacher[0](x)
    soft = torch.softmax(t, -1)
    expected = {
        "MSE": functional.mse_loss(s, t),
        "L1": functional.l1_loss(s, t),
        "KL": (soft * (soft.log() - torch.log_softmax(s, -1))).sum(-1).mean(),
    }[kind]
    torch.testing.assert_close(loss, expected)
    assert not criterion.projections.modules
    assert criterion.layer_mappings == [["0", "", "0", ""]]


def test_weights_default_to_one_over_n_and_the_origin_loss_is_added():
    loss, student, teacher, x, *_ = feature_loss([["0", "0"], ["2", "2"]], add_origin_loss=True)
    _, y = batches()[0]
    expected = (
        functional.mse_loss(student[0](x), teacher[0](x)) / 2
        + functional.mse_loss(student(x), teacher(x)) / 2
        + functional.cross_entropy(student(x), y)
    )
    torch.testing.assert_close(loss, expected)
    assert "0.5" in str(PyTorchIntermediateLayersKnowledgeDistillationLoss([["0"], ["2"]]).loss_weights)


def test_probabilities_are_recognised():
    soft = lambda seed: nn.Sequential(net(seed=seed), nn.Softmax(-1))  # noqa: E731
    loss, student, teacher, x, *_ = feature_loss([["1", "1"]], soft(0), soft(5), loss_types=["KL"])
    s, t = student(x), teacher(x)
    torch.testing.assert_close(loss, (t * (t.log() - s.log())).sum(-1).mean())


def test_a_projection_is_trained_by_the_users_optimizer_and_gone_from_the_model():
    student = net(6)
    names = list(student.state_dict())
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    loss, student, *_, criterion, distiller = feature_loss([["0", "0"]], student, net(9), optimizer)
    (projection,) = criterion.projections.modules.values()
    assert projection.weight.shape == (9, 6)
    assert any(parameter is projection.weight for group in optimizer.param_groups for parameter in group["params"])
    before = projection.weight.detach().clone()
    loss.backward()
    optimizer.step()
    assert not torch.equal(before, projection.weight)
    assert list(student.state_dict()) == names
    distiller.on_train_end()
    assert not student[0]._forward_hooks
    assert not student._forward_hooks


def test_a_projection_without_a_known_optimizer_trains_itself(caplog):
    distiller = Distillation()
    distiller.student_model, distiller.teacher_model = net(6), net(9, seed=5)
    distiller.criterion = PyTorchIntermediateLayersKnowledgeDistillationLoss([["0", "0"]])
    seen = []
    distiller.train_func = loop(distiller, seen=seen, epochs=20)
    distiller.fit()
    assert "set distiller.optimizer" in caplog.text
    (projection,) = distiller.criterion.projections.modules.values()
    fresh = PyTorchIntermediateLayersKnowledgeDistillationLoss([["0", "0"]])
    fresh.projections.fit(
        next(iter(distiller.criterion.projections.modules)), torch.ones(2, 6), torch.ones(2, 9), "shape"
    )
    (start,) = fresh.projections.modules.values()
    assert (projection.weight - start.weight).abs().max() > 1e-3
    assert seen[-1] < seen[0]


def test_convolutions_and_one_of_several_outputs():
    conv = lambda width: nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU())  # noqa: E731
    criterion = PyTorchIntermediateLayersKnowledgeDistillationLoss([["0", "0"]])
    distiller = Distillation()
    student = conv(2)
    distiller.student_model, distiller.teacher_model, distiller.criterion = student, conv(5), criterion
    distiller.on_train_begin()
    x = torch.randn(2, 1, 5, 5)
    distiller.on_after_compute_loss(x, student(x), torch.tensor(0.0)).backward()
    assert student[0].weight.grad.abs().sum() > 0

    class Recurrent(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.lstm = nn.LSTM(4, width, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0][:, -1]

    for places in (["lstm", "0", "lstm", "0"], ["lstm", 0, "lstm", 0], ["lstm", "1.0", "lstm", "1.0"]):
        loss, *_ = feature_loss_of(Recurrent, places)
        assert loss > 0
    with pytest.raises(ArgumentError, match="is a tuple"):
        feature_loss_of(Recurrent, ["lstm", "lstm"])
    with pytest.raises(ArgumentError, match="has no '7'"):
        feature_loss_of(Recurrent, ["lstm", "7", "lstm", "0"])


def feature_loss_of(kind, places):
    torch.manual_seed(0)
    student, teacher = kind(3), kind(3)
    distiller = Distillation()
    distiller.student_model, distiller.teacher_model = student, teacher
    distiller.criterion = PyTorchIntermediateLayersKnowledgeDistillationLoss([places])
    distiller.on_train_begin()
    x = torch.randn(2, 5, 4)
    return distiller.on_after_compute_loss(x, student(x), torch.tensor(0.0)), student, teacher


def test_layers_called_several_times_are_compared_call_by_call():
    class Twice(nn.Module):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(torch.relu(self.layer(x)))

    loss, student, teacher, x, *_ = feature_loss([["layer", "layer"]], Twice(0), Twice(1))
    s, t = student.layer(x), teacher.layer(x)
    expected = (functional.mse_loss(s, t) + functional.mse_loss(student(x), teacher(x))) / 2
    torch.testing.assert_close(loss, expected)
    with pytest.raises(ArgumentError, match="2 times in one pass.*1 times"):
        feature_loss([["layer", "0"]], Twice(0), nn.Sequential(nn.Linear(4, 4)))


def test_evaluations_between_steps_leave_nothing_behind():
    loss, student, _, x, criterion, distiller = feature_loss([["0", "0"]])
    first = loss.item()
    with torch.no_grad():
        student(torch.randn(50, 4))
    distiller.on_step_begin(1)
    student(x)
    assert distiller.on_after_compute_loss(x, None, torch.tensor(0.0)).item() == pytest.approx(first)
    assert not any(recorder.passes or recorder.features for recorder in criterion._recorders)
    with pytest.raises(LifecycleError, match="no forward pass"):
        distiller.on_after_compute_loss(x, None, torch.tensor(0.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer_mappings": None}, "list of pairs"),
        ({"layer_mappings": []}, "list of pairs"),
        ({"layer_mappings": "0"}, "list of pairs"),
        ({"layer_mappings": [["0", "0", "0"]]}, "a pair is"),
        ({"layer_mappings": [[None, "0"]]}, "a pair is"),
        ({"layer_mappings": [["0", "0"]], "loss_types": ["CE"]}, "unknown loss 'CE'"),
        ({"layer_mappings": [["0", "0"]], "loss_types": ["MSE", "MSE"]}, "list of 1 names"),
        ({"layer_mappings": [["0", "0"]], "loss_weights": [1, 2]}, "list of 1 numbers"),
        ({"layer_mappings": [["0", "0"]], "add_origin_loss": 1}, "true or false"),
    ],
)
def test_wrong_arguments_of_the_layers_criterion(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        PyTorchIntermediateLayersKnowledgeDistillationLoss(**arguments)


def test_layers_that_are_not_there_and_features_that_do_not_fit():
    with pytest.raises(TargetError, match=r"teacher has no layer 'layer9'"):
        feature_loss([["0", "layer9"]])
    with pytest.raises(ArgumentError, match="0 -> 0: no projection from 2 to 4 dimensions"):
        feature_loss([["0", "0"]], teacher=nn.Sequential(nn.Unflatten(1, (1, 2, 2))))
    same = net()
    with pytest.raises(ArgumentError, match="same module"):
        feature_loss([["0", "0"]], same, same)
    broken = net(seed=5)
    nn.init.constant_(broken[0].bias, float("nan"))
    with pytest.raises(CalibrationError, match="layer 0 gives NaN"):
        feature_loss([["0", "0"]], teacher=broken)


# -- configurations ------------------------------------------------------------------------------------------------------


def test_paths_objects_dictionaries_and_nothing(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(USUAL_YAML)
    for source in (path, str(path), DistillationConf(path), {"tuning": {"random_seed": 9527}}):
        assert Distillation(source).settings.random_seed == 9527
    assert DistillationConf(path).usr_cfg["model"] == {"name": "blendcnn", "framework": "pytorch"}
    assert Distillation().settings.train.end_epoch == 1
    holder = type("Config", (), {"usr_cfg": {"tuning": {"random_seed": 3}}})()
    assert Distillation(holder).settings.random_seed == 3
    with pytest.raises(ArgumentError, match="got a int"):
        Distillation(3)
    with pytest.raises(FileNotFoundError):
        Distillation(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("end_epoch: 2", "end_epoch: 0", r"all\.yaml:5:16: distillation\.train\.end_epoch: .*there is none"),
        ("end_epoch: 2", "epochs: 2", r"unknown key 'epochs'. Did you mean 'epoch'"),
        ("end_epoch: 2", "end_epoch: 2\n    epoch: 3", r"either end_epoch or epoch"),
        ("iteration: 3", "iteration: 0", "whole number from 1"),
        ("learning_rate: 0.01, ", "", "required: the optimizer's learning rate"),
        ("SGD:", "Lion:", r"'Lion' is not built here: SGD, Adam, AdamW"),
        ("nesterov: true", "nesterov: yes please", "true or false"),
        ("momentum: 0.9, nesterov", "nesterov", "needs a momentum"),
        ("momentum: 0.9", "beta_1: 0.9", "unknown key 'beta_1'"),
        ("[CE, KL]", "[CE, XY]", r"all\.yaml:\d+:\d+: .*loss_types\[1\]: unknown loss 'XY'"),
        ("[0.5, 0.5]}", "[0.5, 0.6]}", "must sum to 1"),
        (
            "KnowledgeDistillationLoss:",
            "SelfKnowledgeDistillationLoss:",
            "is not built here: KnowledgeDistillationLoss",
        ),
        ("{ImageFolder: {root: ROOT}}", "{COCO: {root: x}}", "'COCO' is not built here: ImageFolder, CIFAR10, MNIST"),
        ("RandomResizedCrop: {size: 8}", "ColorJitter: {}", "unknown key 'ColorJitter'.*RandomResizedCrop"),
        ("last_batch: discard", "last_batch: drop", "'drop' is not known here"),
        ("{size: 8}", "{size: -8}", "whole number from 1"),
        ("framework: pytorch", "framework: tensorflow", "'tensorflow' is not known here"),
        ("topk: 1", "topk: top", "whole number from 1"),
        ("topk: 1", "MSE: {}", "unknown key 'MSE'"),
        ("Resize: {size: 10}, ", "", "Resize with CenterCrop"),
        ("random_seed: 9527", "random_seed: -1", "whole number from 0"),
        ("tuning:", "tunning:", "unknown key 'tunning'. Did you mean 'tuning'"),
        ("std: [0.5, 0.5, 0.5]", "std: [0.5]", "same length"),
    ],
)
def test_mistakes_in_a_configuration_are_located(tmp_path, folder, old, new, message):
    path = tmp_path / "all.yaml"
    assert old in WHOLE_YAML
    path.write_text(WHOLE_YAML.replace(old, new, 1).replace("ROOT", str(folder)).lstrip("\n"))
    with pytest.raises(ScheduleError, match=message):
        DistillationConf(path)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ScheduleError) as caught:
        DistillationConf({"model": 3, "distillation": {"train": {"frequency": 0, "optimizer": {}}}})
    assert len(caught.value.problems) == 3
    with pytest.raises(ScheduleError, match="a list"):
        DistillationConf({"distillation": {"train": [1]}})


def test_sections_for_other_jobs_are_warned_about():
    with pytest.warns(UserWarning, match="'quantization' plays no part"):
        DistillationConf({"quantization": {"approach": "qat"}})
