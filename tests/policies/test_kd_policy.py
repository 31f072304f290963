"""The distillation policy in training loops: the numbers, both ways of calling, time, memory."""

from __future__ import annotations

import copy
import gc
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

import distiller_ng as distiller
from distiller_ng.knowledge_distillation.distiller import KnowledgeDistiller

WINDOW = {"starting_epoch": 0, "ending_epoch": 4, "frequency": 1}


def net(width=4, classes=4, dropout=0.0):
    return nn.Sequential(
        nn.Conv2d(1, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(width * 16, classes),
    )


@pytest.fixture
def parts():
    torch.manual_seed(0)
    student, teacher = net(4), net(6, dropout=0.5)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    x, y = torch.randn(8, 1, 6, 6), torch.randint(0, 4, (8,))
    return student, teacher, optimizer, x, y


def reference(student_logits, teacher_logits, y, temperature, distill, student, teacher=0.0):
    """In float64."""
    s, t = student_logits.detach().double(), teacher_logits.detach().double()
    p, q = (s / temperature).softmax(1), (t / temperature).softmax(1)
    kl = (q * (q.log() - p.log())).sum(1).mean()
    total = student * functional.cross_entropy(s, y) + distill * temperature**2 * kl
    return float(total + teacher * functional.cross_entropy(t, y)), float(kl)


def step(scheduler, model, x, y, epoch=0, batch=0, batches=1):
    """One minibatch by hand; the loss and its components."""
    scheduler.on_minibatch_begin(epoch, batch, batches)
    loss = functional.cross_entropy(model(x), y)
    result = scheduler.before_backward_pass(epoch, batch, batches, loss, return_loss_components=True)
    result.overall_loss.backward()
    return result


@pytest.mark.parametrize("way", ["model", "forward"])
@pytest.mark.parametrize("weights", [(0.5, 0.5, 0), (0.7, 0.3, 0), (1.0, 0.0, 0), (0.6, 0.3, 0.1)])
def test_the_loss_is_distillers(parts, way, weights):
    student, teacher, _optimizer, x, y = parts
    scheduler = distiller.CompressionScheduler(student)
    policy = distiller.KnowledgeDistillationPolicy(student, teacher, 3.0, distiller.DistillationLossWeights(*weights))
    scheduler.add_policy(policy, **WINDOW)
    scheduler.on_epoch_begin(0)
    result = step(scheduler, policy.forward if way == "forward" else student, x, y)
    student_logits = copy.deepcopy(student).train()(x)
    expected, kl = reference(student_logits, teacher.eval()(x), y, 3.0, *weights)
    assert float(result.overall_loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert result.loss_components[0].name == "Distill Loss"
    assert float(result.loss_components[0].value) == pytest.approx(kl, rel=1e-4)
    assert [c.name for c in result.loss_components] == ["Distill Loss", *(["Teacher Loss"] if weights[2] else [])]


def test_forward_and_a_plain_call_train_alike(parts):
    student, teacher, _, x, y = parts
    results = []
    for way in ("model", "forward"):
        model = copy.deepcopy(student)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = distiller.CompressionScheduler(model, optimizer=optimizer)
        policy = distiller.KnowledgeDistillationPolicy(model, teacher, 2.0)
        scheduler.add_policy(policy, **WINDOW)
        for _ in scheduler.epochs(2):
            for batch in scheduler.minibatches([x, x]):
                optimizer.zero_grad()
                scheduler.backward(functional.cross_entropy((model if way == "model" else policy.forward)(batch), y))
                optimizer.step()
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_teacher_stays_as_it_is(parts):
    student, teacher, optimizer, x, y = parts
    teacher.train()
    before = copy.deepcopy(teacher.state_dict())
    scheduler = distiller.CompressionScheduler(student, optimizer=optimizer)
    scheduler.add_policy(distiller.KnowledgeDistillationPolicy(student, teacher), **WINDOW)
    for _ in scheduler.epochs(2):
        for batch in scheduler.minibatches([x, x]):
            scheduler.backward(functional.cross_entropy(student(batch), y))
            optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert not teacher._forward_hooks and not student._forward_hooks


def test_nothing_happens_outside_of_the_window(parts):
    student, teacher, optimizer, x, y = parts
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    scheduler = distiller.CompressionScheduler(student, optimizer=optimizer)
    policy = distiller.KnowledgeDistillationPolicy(student, teacher)
    scheduler.add_policy(policy, epochs=[1])
    losses = []
    for epoch in scheduler.epochs(3):
        for batch in scheduler.minibatches([x]):
            loss = functional.cross_entropy(policy.forward(batch), y)
            losses.append(float(scheduler.backward(loss)) == float(loss.detach()))
        student.eval()
        with torch.no_grad():
            policy.forward(x)
            student(x)
        student.train()
        assert len(calls) == int(epoch >= 1)
    assert losses == [True, False, True]


def test_a_fractional_window(parts):
    student, _teacher, optimizer, x, y = parts
    scheduler = distiller.CompressionScheduler(student, optimizer=optimizer)
    scheduler.add_policy(
        distiller.KnowledgeDistillationPolicy(student, "self"), starting_epoch=0.5, ending_epoch=1.5, frequency=0.5
    )
    changed = []
    for _ in scheduler.epochs(2):
        for batch in scheduler.minibatches([x] * 4):
            loss = functional.cross_entropy(student(batch), y)
            changed.append(float(scheduler.backward(loss)) != float(loss.detach()))
            optimizer.step()
    assert changed == [False, False, True, True, True, True, False, False]


def test_weights_over_the_epochs(parts):
    student, teacher, optimizer, x, y = parts
    scheduler = distiller.CompressionScheduler(student, optimizer=optimizer)
    weights = distiller.DistillationLossWeights({0: 1.0, 2: 0.0}, {0: 0.0, 2: 1.0}, 0)
    scheduler.add_policy(distiller.KnowledgeDistillationPolicy(student, teacher, 1.0, weights), **WINDOW)
    shares = []
    for epoch in scheduler.epochs(3):
        for at, batch in enumerate(scheduler.minibatches([x, x])):
            loss = functional.cross_entropy(student(batch), y)
            result = scheduler.before_backward_pass(epoch, at, 2, loss, return_loss_components=True)
            kl = sum(float(c.value) for c in result.loss_components)
            shares.append((float(result.overall_loss.detach()), float(loss.detach()), kl))
    for (total, loss, kl), weight in zip(shares, [1.0, 0.75, 0.5, 0.25, 0.0, 0.0], strict=True):
        assert total == pytest.approx((1 - weight) * loss + weight * kl, rel=1e-5)


def test_a_weight_of_zero_skips_the_teacher(parts):
    student, teacher, _optimizer, x, y = parts
    teacher.register_forward_hook(lambda *_: pytest.fail("the teacher ran"))
    scheduler = distiller.CompressionScheduler(student)
    weights = distiller.DistillationLossWeights(0.0, 1.0, 0)
    scheduler.add_policy(distiller.KnowledgeDistillationPolicy(student, teacher, 1.0, weights), **WINDOW)
    scheduler.on_epoch_begin(0)
    result = step(scheduler, student, x, y)
    assert result.loss_components == []


def live_tensors():
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sum(1 for found in gc.get_objects() if isinstance(found, torch.Tensor))


@pytest.mark.parametrize("way", ["model", "forward"])
def test_memory_after_200_steps_equals_memory_after_2(parts, way):
    student, teacher, optimizer, x, y = parts
    scheduler = distiller.CompressionScheduler(student, optimizer=optimizer, example_inputs=(x,))
    policy = distiller.KnowledgeDistillationPolicy(
        student, [teacher, {"ema": 0.9}], layers=[{"student": "0", "teacher": "0", "source": "teacher 0"}]
    )
    scheduler.add_policy(policy, **WINDOW)
    counts = {}
    scheduler.on_epoch_begin(0)
    for at in range(200):
        scheduler.on_minibatch_begin(0, at, 200, optimizer)
        output = (student if way == "model" else policy.forward)(x)
        loss = scheduler.before_backward_pass(0, at, 200, functional.cross_entropy(output, y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.on_minibatch_end(0, at, 200, optimizer)
        del output, loss
        if at in (1, 199):
            counts[at] = live_tensors()
    assert counts[199] <= counts[1]  # other tests' garbage may go meanwhile


def test_inputs_and_outputs_are_released_within_the_step(parts):
    import weakref

    student, teacher, optimizer, x, y = parts
    scheduler = distiller.CompressionScheduler(student, optimizer=optimizer)
    scheduler.add_policy(
        distiller.KnowledgeDistillationPolicy(student, teacher, layers={"2": "2"}, loss="AT"), **WINDOW
    )
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1, optimizer)
    batch = x.clone()
    seen = weakref.ref(batch)
    output = student(batch)
    loss = scheduler.before_backward_pass(0, 0, 1, functional.cross_entropy(output, y))
    loss.backward()
    del batch, output, loss
    assert seen() is None


def test_a_batch_without_labels_is_trained_on_the_teacher_alone(parts):
    student, teacher, optimizer, x, y = parts
    scheduler = distiller.CompressionScheduler(student, optimizer=optimizer)
    weights = distiller.DistillationLossWeights(0.7, 0.3, 0.2)
    scheduler.add_policy(distiller.KnowledgeDistillationPolicy(student, teacher, 2.0, weights), **WINDOW)
    _expected, kl = reference(copy.deepcopy(student)(x), copy.deepcopy(teacher).eval()(x), y, 2.0, 0.7, 0.0)
    totals = []
    for _ in scheduler.epochs(1):
        for labels in scheduler.minibatches([None, y]):
            optimizer.zero_grad()
            output = student(x)
            loss = None if labels is None else functional.cross_entropy(output, labels)
            totals.append(float(scheduler.backward(loss)))
            assert student[0].weight.grad is not None
    assert totals[0] == pytest.approx(0.7 * 4 * kl, rel=1e-5)
    assert totals[1] > totals[0]


def test_a_batch_without_labels_and_without_distillation(parts):
    student, teacher, optimizer, x, _y = parts
    scheduler = distiller.CompressionScheduler(student, optimizer=optimizer)
    scheduler.add_policy(distiller.KnowledgeDistillationPolicy(student, teacher), epochs=[1])
    with pytest.raises(distiller.LifecycleError, match="the loss is None"):
        for _ in scheduler.epochs(1):
            for batch in scheduler.minibatches([x]):
                student(batch)
                scheduler.backward(None)


def test_several_passes_in_one_step_count_by_their_samples(parts):
    student, teacher, _optimizer, x, _y = parts
    student.eval()
    scheduler = distiller.CompressionScheduler(student)
    weights = distiller.DistillationLossWeights(1.0, 0.0, 0)
    scheduler.add_policy(distiller.KnowledgeDistillationPolicy(student, teacher, 1.0, weights), **WINDOW)
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 2)
    one, two = student(x[:2]), student(x[2:])
    split = scheduler.before_backward_pass(0, 0, 2, (one.sum() + two.sum()) * 0)
    scheduler.on_minibatch_begin(0, 1, 2)
    whole = scheduler.before_backward_pass(0, 1, 2, student(x).sum() * 0)
    torch.testing.assert_close(split, whole)


def test_accumulation_divides_the_terms(parts):
    student, teacher, optimizer, x, y = parts
    student.eval()
    gradients = []
    for pieces in (1, 4):
        model = copy.deepcopy(student)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = distiller.CompressionScheduler(model, optimizer=optimizer)
        scheduler.add_policy(distiller.KnowledgeDistillationPolicy(model, teacher, 2.0), **WINDOW)
        for _ in scheduler.epochs(1):
            for bx, by in scheduler.minibatches(list(zip(x.chunk(pieces), y.chunk(pieces))), accumulate=pieces):
                scheduler.backward(functional.cross_entropy(model(bx), by))
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# -- teachers -------------------------------------------------------------------------------------------------------


def test_self_is_a_copy_taken_when_the_policy_begins(parts):
    student, _, optimizer, x, y = parts
    scheduler = distiller.CompressionScheduler(student, optimizer=optimizer)
    policy = distiller.KnowledgeDistillationPolicy(student, "self", 2.0)
    scheduler.add_policy(policy, starting_epoch=1, ending_epoch=3)
    assert policy.teacher is None
    frozen = None
    for epoch in scheduler.epochs(3):
        if epoch == 1:
            frozen = copy.deepcopy(student.state_dict())
        for batch in scheduler.minibatches([x, x]):
            optimizer.zero_grad()
            scheduler.backward(functional.cross_entropy(student(batch), y))
            optimizer.step()
    assert not any(p.requires_grad or p.grad is not None for p in policy.teacher.parameters())
    assert all(torch.equal(frozen[name], value) for name, value in policy.teacher.state_dict().items())
    assert not torch.equal(student[0].weight, policy.teacher[0].weight)


def test_a_moving_average_follows_real_steps(parts):
    student, _, optimizer, x, y = parts
    scheduler = distiller.CompressionScheduler(student, optimizer=optimizer)
    policy = distiller.KnowledgeDistillationPolicy(student, {"ema": 0.9}, 2.0)
    scheduler.add_policy(policy, **WINDOW)
    expected = student[0].weight.detach().clone()
    for _ in scheduler.epochs(1):
        for batch in scheduler.minibatches([x] * 4, accumulate=2):
            scheduler.backward(functional.cross_entropy(student(batch), y))
            if scheduler.should_step:
                optimizer.step()
                expected = 0.9 * expected + 0.1 * student[0].weight.detach()
                optimizer.zero_grad()
    torch.testing.assert_close(policy.teacher[0].weight.detach(), expected)
    assert torch.equal(policy.teacher[1].running_mean, student[1].running_mean)
    assert policy.teacher[1].num_batches_tracked == 4


def test_several_teachers_are_averaged_as_probabilities(parts):
    student, teacher, _optimizer, x, y = parts
    torch.manual_seed(5)
    other = net(3)
    scheduler = distiller.CompressionScheduler(student)
    policy = distiller.KnowledgeDistillationPolicy(
        student, [teacher, other], 2.0, distiller.DistillationLossWeights(1.0, 0.0, 0), teacher_weights=[3, 1]
    )
    scheduler.add_policy(policy, **WINDOW)
    scheduler.on_epoch_begin(0)
    logits = copy.deepcopy(student)(x).detach().double()
    result = step(scheduler, student, x, y)
    with torch.no_grad():
        first, second = (m.eval()(x).double() for m in (teacher, other))
    p = 0.75 * (first / 2).softmax(1) + 0.25 * (second / 2).softmax(1)
    kl = (p * (p.log() - (logits / 2).log_softmax(1))).sum(1).mean()
    assert float(result.overall_loss.detach()) == pytest.approx(4 * float(kl), rel=1e-4)


def test_a_teacher_far_larger_than_the_student_warns():
    small, large = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 100), nn.Linear(100, 4))
    with pytest.warns(distiller.ScheduleWarning, match=r"has 45 times.*teacher assistant"):
        distiller.KnowledgeDistillationPolicy(small, large)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distiller.KnowledgeDistillationPolicy(large, small)


def test_cached_logits_are_a_teacher_like_any_other(parts, tmp_path):
    from torch.utils.data import DataLoader, TensorDataset

    from distiller_ng.knowledge_distillation import WithSampleIds, cache_teacher

    student, teacher, _optimizer, x, y = parts
    data = WithSampleIds(TensorDataset(x, y))
    cached = cache_teacher(teacher, DataLoader(data, batch_size=4), tmp_path / "logits.bin")
    losses = {}
    for name, source in (("teacher", teacher), ("cached", cached)):
        model = copy.deepcopy(student)
        scheduler = distiller.CompressionScheduler(model)
        scheduler.add_policy(distiller.KnowledgeDistillationPolicy(model, source, 4.0), **WINDOW)
        loader = DataLoader(data, batch_size=4)
        losses[name] = []
        for _ in scheduler.epochs(1):
            for bx, by in scheduler.minibatches(cached.batches(loader), length=2):
                losses[name].append(float(scheduler.backward(functional.cross_entropy(model(bx), by))))
    assert losses["cached"] == pytest.approx(losses["teacher"], rel=1e-3)


# -- labels -----------------------------------------------------------------------------------------------------------


class Smoothed(nn.Module):
    def forward(self, logits, labels):
        return functional.cross_entropy(logits, labels, label_smoothing=0.1)


@pytest.mark.parametrize("how", ["watched", "given", "graph"])
def test_the_teachers_loss_against_the_labels(parts, how):
    student, teacher, _optimizer, x, y = parts
    criterion = {"watched": Smoothed(), "given": lambda o, t: Smoothed()(o, t), "graph": None}[how]
    used = functional.cross_entropy if criterion is None else criterion
    scheduler = distiller.CompressionScheduler(student)
    weights = distiller.DistillationLossWeights(0.5, 0.25, 0.25)
    policy = distiller.KnowledgeDistillationPolicy(student, teacher, 1.0, weights, criterion=criterion)
    scheduler.add_policy(policy, **WINDOW)
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    loss = used(student(x), y)
    if how == "given":
        policy.set_labels(y)
    result = scheduler.before_backward_pass(0, 0, 1, loss, return_loss_components=True)
    with torch.no_grad():
        own = float(used(teacher.eval()(x), y))
    kl, seen = (float(c.value) for c in result.loss_components)
    assert seen == pytest.approx(own, rel=1e-6)
    assert float(result.overall_loss.detach()) == pytest.approx(
        0.5 * kl + 0.25 * float(loss.detach()) + 0.25 * own, rel=1e-5
    )


def test_class_weights_and_ignored_labels_are_found_in_the_graph(parts):
    student, teacher, _optimizer, x, y = parts
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    y[0] = -100
    scheduler = distiller.CompressionScheduler(student)
    policy = distiller.KnowledgeDistillationPolicy(
        student, teacher, 1.0, distiller.DistillationLossWeights(0.5, 0.5, 0.5)
    )
    scheduler.add_policy(policy, **WINDOW)
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    loss = functional.cross_entropy(student(x), y, weight=weight)
    result = scheduler.before_backward_pass(0, 0, 1, loss, return_loss_components=True)
    with torch.no_grad():
        own = functional.cross_entropy(teacher.eval()(x), y, weight=weight)
    torch.testing.assert_close(result.loss_components[1].value, own)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("criterion", [None, nn.CrossEntropyLoss()])
def test_labels_of_one_of_two_passes(parts, criterion, order):
    student, teacher, _, x, y = parts
    weights = distiller.DistillationLossWeights(0.5, 0.4, 0.1)
    scheduler = distiller.CompressionScheduler(student)
    policy = distiller.KnowledgeDistillationPolicy(student, teacher, 1.0, weights, criterion=criterion)
    scheduler.add_policy(policy, starting_epoch=0, ending_epoch=1)
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    outputs = [student(part) for part in (x[:3], x[3:])[::order]]  # labels for the first three only
    loss = (criterion or functional.cross_entropy)(outputs[::order][0], y[:3])
    result = scheduler.before_backward_pass(0, 0, 1, loss, return_loss_components=True)
    values = {component.name: float(component.value) for component in result.loss_components}
    assert values["Teacher Loss"] == pytest.approx(float(functional.cross_entropy(teacher(x[:3]), y[:3]).detach()))


def test_labels_of_joined_passes_are_refused(parts):
    student, teacher, _, x, y = parts
    scheduler = distiller.CompressionScheduler(student)
    policy = distiller.KnowledgeDistillationPolicy(student, teacher, 1.0, (0.5, 0.4, 0.1))
    scheduler.add_policy(policy, starting_epoch=0, ending_epoch=1)
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    joined = torch.cat([student(x[:3]), student(x[3:])])
    with pytest.raises(distiller.LifecycleError, match="labels of each pass"):
        scheduler.before_backward_pass(0, 0, 1, functional.cross_entropy(joined, y))


def test_labels_that_cannot_be_found(parts):
    student, teacher, _optimizer, x, _y = parts
    scheduler = distiller.CompressionScheduler(student)
    weights = distiller.DistillationLossWeights(0.5, 0.5, 0.5)
    scheduler.add_policy(distiller.KnowledgeDistillationPolicy(student, teacher, 1.0, weights), **WINDOW)
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    with pytest.raises(distiller.LifecycleError, match=r"criterion=nn.CrossEntropyLoss.*set_labels"):
        scheduler.before_backward_pass(0, 0, 1, student(x).square().mean())


# -- Distiller's names --------------------------------------------------------------------------------------------------


def test_distillers_signature_and_attributes(parts):
    student, teacher, *_ = parts
    assert distiller.knowledge_distillation.KnowledgeDistillationPolicy is distiller.KnowledgeDistillationPolicy
    assert distiller.knowledge_distillation.DistillationLossWeights is distiller.DistillationLossWeights
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        distiller.knowledge_distillation.Nothing  # noqa: B018
    policy = distiller.KnowledgeDistillationPolicy(student, teacher)
    assert policy.student is student and policy.teacher is teacher and policy.temperature == 1.0
    assert policy.loss_wts == distiller.DistillationLossWeights(0.5, 0.5, 0)
    assert policy.loss_wts._fields == ("distill", "student", "teacher")
    named = distiller.KnowledgeDistillationPolicy(
        student_model=student,
        teacher_model=teacher,
        temperature=2.0,
        loss_weights=distiller.DistillationLossWeights(distill=0.7, student=0.3, teacher=0),
    )
    assert named.temperature == 2.0


def test_the_policy_of_a_distiller_defined_elsewhere(parts):
    student, teacher, _optimizer, x, _y = parts
    made = KnowledgeDistiller("kd", student, {"big": teacher}, teacher="big", temperature=2.0)
    policy = distiller.KnowledgeDistillationPolicy.of(made)
    with pytest.raises(distiller.LifecycleError, match="no schedule yet"):
        policy.forward(x)
    scheduler = distiller.CompressionScheduler(student)
    scheduler.add_policy(policy, **WINDOW)
    assert policy.student is student
    assert policy.describe() == "KnowledgeDistillationPolicy(kd: KnowledgeDistiller)"


def test_a_closure_runs_the_student_several_times_in_a_minibatch(parts):
    student, teacher, _, x, y = parts
    optimizer = torch.optim.LBFGS(student.parameters(), max_iter=4)
    scheduler = distiller.CompressionScheduler(student, optimizer=optimizer)
    scheduler.add_policy(distiller.KnowledgeDistillationPolicy(student, teacher, 2.0, layers={"0": "0"}), **WINDOW)
    losses = []

    def closure():
        optimizer.zero_grad()
        result = scheduler.before_backward_pass(0, 0, 1, functional.cross_entropy(student(x), y), None, True)
        result.overall_loss.backward()
        losses.append(float(result.overall_loss.detach()))
        assert len(result.loss_components) == 2
        return result.overall_loss

    for _ in scheduler.epochs(1):
        for _ in scheduler.minibatches([x]):
            optimizer.step(closure)
    assert len(losses) >= 4 and len(set(losses)) == len(losses)


def test_passes_of_a_checkpointed_student_in_the_backward_are_not_noted(parts):
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=False)

    student, teacher, _, x, y = parts
    model = Checkpointed(student)
    scheduler = distiller.CompressionScheduler(model)
    policy = distiller.KnowledgeDistillationPolicy(model, teacher, 2.0, layers={"body.0": "0"})
    scheduler.add_policy(policy, **WINDOW)
    scheduler.on_epoch_begin(0)
    for at in range(2):
        result = step(scheduler, model, x, y, batch=at, batches=2)
        assert len(result.loss_components) == 2
        assert not policy._step._recorder.features and not policy._step._recorder.is_open


def test_example_inputs_by_name():
    class Named(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.embed, self.head = nn.Embedding(10, width), nn.Linear(width, 3)

        def forward(self, *, ids):
            return {"logits": self.head(self.embed(ids)).mean(1)}

    student, teacher, ids = Named(4), Named(6), torch.ones(2, 5, dtype=torch.int64)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    scheduler = distiller.CompressionScheduler(student, optimizer=optimizer, example_inputs={"ids": ids})
    scheduler.add_policy(distiller.KnowledgeDistillationPolicy(student, teacher, layers=["embed"]), **WINDOW)
    assert [tuple(p.shape) for p in optimizer.param_groups[1]["params"]] == [(6, 4)]


@pytest.mark.parametrize("called", ["wrapper", "model"])
@pytest.mark.parametrize("given", ["wrapper", "model"])
def test_wrapper_or_model_may_be_given_and_called(parts, given, called):
    student, teacher, _, x, y = parts
    wrapper = nn.DataParallel(student)
    scheduler = distiller.CompressionScheduler(wrapper)
    policy = distiller.KnowledgeDistillationPolicy(wrapper if given == "wrapper" else student, teacher, 2.0)
    scheduler.add_policy(policy, **WINDOW)
    scheduler.on_epoch_begin(0)
    result = step(scheduler, wrapper if called == "wrapper" else student, x, y)
    assert len(result.loss_components) == 1
