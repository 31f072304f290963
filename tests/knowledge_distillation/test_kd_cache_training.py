"""Training with stored teacher logits: the same as with the teacher, in every way of training."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from distiller_ng.compat.neural_compressor import Distillation
from distiller_ng.config import dict_config
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import LifecycleError, ScheduleError
from distiller_ng.knowledge_distillation import DistillationLossWeights, WithSampleIds, cache_teacher
from distiller_ng.policies.knowledge_distillation import KnowledgeDistillationPolicy

WINDOW = {"starting_epoch": 0, "ending_epoch": 4, "frequency": 1}


def net(width, seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


@pytest.fixture
def parts(tmp_path):
    torch.manual_seed(0)
    data = WithSampleIds(TensorDataset(torch.randn(22, 4), torch.arange(22) % 3))
    teacher = net(16, 1)
    return teacher, data, cache_teacher(teacher, DataLoader(data, batch_size=8), tmp_path / "logits")


def loader(data, seed=5):
    return DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(seed))


def trained(teacher, batches, epochs=3, stop=None, state=None):
    student = net(5, 2)
    optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9)
    scheduler = CompressionScheduler(student, optimizer=optimizer)
    policy = KnowledgeDistillationPolicy(student, teacher, 2.0, DistillationLossWeights(0.7, 0.3))
    scheduler.add_policy(policy, **WINDOW)
    if state is not None:
        student.load_state_dict(state[0])
        optimizer.load_state_dict(state[1])
        scheduler.load_state_dict(state[2])
    for epoch in scheduler.epochs(epochs):
        for at, (x, y, *_) in enumerate(scheduler.minibatches(batches)):
            optimizer.zero_grad()
            scheduler.backward(cross_entropy(student(x), y))
            optimizer.step()
            if stop == (epoch, at):
                return tuple(copy.deepcopy(part.state_dict()) for part in (student, optimizer, scheduler))
    return student.state_dict()


def test_stored_logits_train_like_the_teacher(parts):
    teacher, data, cached = parts
    expected, found = trained(teacher, loader(data)), trained(cached, cached.batches(loader(data)))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3)


def test_the_ids_may_be_taken_off_outside_of_the_schedulers_loop(parts):
    _, data, cached = parts
    student = net(5, 2)
    scheduler = CompressionScheduler(student, optimizer=torch.optim.SGD(student.parameters(), 0.1))
    scheduler.add_policy(KnowledgeDistillationPolicy(student, cached), **WINDOW)
    steps = 0
    for _ in scheduler.epochs(2):
        for x, y in cached.batches(scheduler.minibatches(loader(data))):
            scheduler.backward(cross_entropy(student(x), y))
            scheduler.optimizer.step()
            steps += 1
    assert steps == 12


def test_resume_inside_an_epoch_is_exact(parts):
    _, data, cached = parts
    whole = trained(cached, cached.batches(loader(data)))
    state = trained(cached, cached.batches(loader(data)), stop=(1, 2))
    rest = trained(cached, cached.batches(loader(data, seed=99)), state=state)
    assert all(torch.equal(whole[name], rest[name]) for name in whole)


def test_a_loop_of_your_own_selects_ids(parts):
    teacher, data, cached = parts
    totals = {}
    for name, used in (("cached", cached), ("teacher", teacher)):
        student = net(5, 2)
        scheduler = CompressionScheduler(student)
        scheduler.add_policy(KnowledgeDistillationPolicy(student, used, 4.0), **WINDOW)
        scheduler.on_epoch_begin(0)
        scheduler.on_minibatch_begin(0, 0, 1)
        x, y, ids = next(iter(loader(data)))
        cached.select(ids)
        totals[name] = scheduler.before_backward_pass(0, 0, 1, cross_entropy(student(x), y)).item()
    assert totals["cached"] == pytest.approx(totals["teacher"], rel=1e-3)


def test_forgotten_ids_are_an_error_that_says_what_to_do(parts):
    _, data, cached = parts
    with pytest.raises(LifecycleError, match=r"cached\.batches\(loader\)"):
        trained(cached, loader(data))


def test_schedules_name_stored_logits_and_layers_need_a_real_teacher(parts):
    _, data, cached = parts
    student = net(5, 2)
    kd = {"class": "KnowledgeDistiller", "teacher": "stored", "temperature": 2.0}
    schedule = {"distillers": {"kd": kd}, "policies": [{"distiller": {"instance_name": "kd"}, "epochs": [0]}]}
    scheduler = dict_config(student, None, schedule, teachers={"stored": cached})
    scheduler.on_epoch_begin(0)
    for at, (x, y) in enumerate(cached.batches(loader(data))):
        scheduler.on_minibatch_begin(0, at, 6)
        assert scheduler.before_backward_pass(0, at, 6, cross_entropy(student(x), y)).isfinite()
        scheduler.on_minibatch_end(0, at, 6)
    kd["layers"] = {"0": "0"}
    with pytest.raises(ScheduleError, match="the teacher has no layer '0'"):
        dict_config(student, None, schedule, teachers={"stored": cached})


def test_the_facade_takes_stored_logits(parts):
    _, data, cached = parts
    distiller = Distillation({"distillation": {"train": {"epoch": 2}}})
    distiller.student_model, distiller.teacher_model = net(5, 2), cached
    distiller.train_dataloader = cached.batches(loader(data))
    distiller.optimizer = torch.optim.SGD(distiller.student_model.model.parameters(), 0.1)
    scores = iter([0.1, 0.2, 0.3])  # the student's, before training and after each epoch; the teacher cannot be scored
    distiller.eval_func = lambda model: next(scores)
    before = distiller.student_model.model[0].weight.detach().clone()
    assert not torch.equal(distiller.fit().model[0].weight, before)
    assert (distiller.teacher_score, distiller.best_score) == (None, 0.3)
