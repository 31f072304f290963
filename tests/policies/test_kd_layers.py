"""Distillation between layers and parts of outputs: values, projections, options, structures."""

from __future__ import annotations

import copy
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional

import distiller_ng as distiller
from distiller_ng.knowledge_distillation.capture import Listener, Recorder
from distiller_ng.knowledge_distillation.pairs import attention_weights

WINDOW = {"starting_epoch": 0, "ending_epoch": 4, "frequency": 1}
NOTHING = distiller.DistillationLossWeights(0, 1, 0)


def net(width):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 16, 8), nn.Linear(8, 4))


@pytest.fixture
def parts():
    torch.manual_seed(0)
    return net(4), net(6), torch.randn(8, 1, 6, 6), torch.randint(0, 4, (8,))


def first_loss(student, policy, *inputs, example=None, optimizer=None, **named):
    """The first step's terms of a policy, with a loop's loss of 0."""
    scheduler = distiller.CompressionScheduler(student, example_inputs=example, optimizer=optimizer)
    scheduler.add_policy(policy, **WINDOW)
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    output = student(*inputs, **named)
    first = output if isinstance(output, torch.Tensor) else None
    loss = torch.zeros(()) if first is None else first.sum() * 0
    result = scheduler.before_backward_pass(0, 0, 1, loss, return_loss_components=True)
    return result, scheduler


def features(model, x, layer):
    return model[: layer + 1](x).detach()


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("MSE", lambda s, t: (s - t).square().mean()),
        ("L1", lambda s, t: (s - t).abs().mean()),
        ("cosine", lambda s, t: 1 - functional.cosine_similarity(s, t).mean()),
        (
            "AT",
            lambda s, t: (
                (
                    functional.normalize(s.square().mean(1).flatten(1))
                    - functional.normalize(t.square().mean(1).flatten(1))
                )
                .square()
                .mean()
            ),
        ),
        ("PKD", lambda s, t: 2 * (1 - functional.cosine_similarity(s, t).mean())),
        ("Euclidean", lambda s, t: (s - t).flatten(1).norm(dim=1).mean()),
    ],
)
def test_layers_of_equal_shape(parts, loss, expected):
    student, _, x, _y = parts
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        teacher[0].weight.mul_(-0.5)
    policy = distiller.KnowledgeDistillationPolicy(
        student, teacher, 1.0, NOTHING, logits=None, layers={"0": "0"}, loss=loss, gain=3.0
    )
    result, _ = first_loss(student, policy, x)
    want = expected(features(student, x, 0), features(teacher, x, 0))
    torch.testing.assert_close(result.overall_loss.detach(), 3 * want)
    (component,) = result.loss_components
    assert component.name == "0 Loss"
    torch.testing.assert_close(component.value, want)
    result.overall_loss.backward()
    assert student[0].weight.grad.abs().sum() > 0 and student[4].weight.grad.abs().sum() == 0


def test_pairs_add_to_the_logits_with_gains_of_their_own(parts):
    student, teacher, x, _y = parts
    weights = distiller.DistillationLossWeights(0.7, 0.3, 0)
    policy = distiller.KnowledgeDistillationPolicy(
        student,
        teacher,
        2.0,
        weights,
        layers={"3": {"teacher": "3", "gain": 0.5}, "1": {"teacher": "1", "loss": "AT"}},
        loss="L1",
    )
    result, _ = first_loss(student, policy, x)
    values = {c.name: float(c.value) for c in result.loss_components}
    assert list(values) == ["Distill Loss", "3 Loss", "1 Loss"]
    total = 0.7 * 4 * values["Distill Loss"] + 0.5 * values["3 Loss"] + values["1 Loss"]
    assert float(result.overall_loss.detach()) == pytest.approx(total, rel=1e-5)
    s, t = features(student, x, 3), features(teacher, x, 3)
    assert values["3 Loss"] == pytest.approx(float((s - t).abs().mean()), rel=1e-5)


def test_sparsemls_normalized_error(parts):
    """``gain * mse / (mean(t^2) + epsilon)``, as its per-layer modifier has it."""
    student, teacher, x, _y = parts
    policy = distiller.KnowledgeDistillationPolicy(
        student, teacher, 1.0, NOTHING, logits=None, layers=["3"], gain=1.5, normalize=True, epsilon=1e-6
    )
    result, _ = first_loss(student, policy, x)
    s, t = features(student, x, 3), features(teacher, x, 3)
    want = 1.5 * (s - t).square().mean() / (t.square().mean() + 1e-6)
    torch.testing.assert_close(result.overall_loss.detach(), want)


def test_spatial_weights(parts):
    student, _, x, _y = parts
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        teacher[0].weight.mul_(1.5)
    s, t = features(student, x, 0), features(teacher, x, 0)
    attention = t.square().mean(1, keepdim=True)
    attention = attention / attention.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(attention_weights(s, t), attention)
    centre = torch.zeros(1, 1, 4, 4)
    centre[..., 1:3, 1:3] = 1.0
    wanted = {
        "none": (s - t).square().mean(),
        "attention": (attention * (s - t).square()).mean(),
        "centre": (centre * (s - t).square()).mean(),
    }
    for name, want in wanted.items():
        weight = (lambda _, target: centre.expand_as(target)) if name == "centre" else name
        policy = distiller.KnowledgeDistillationPolicy(
            student, teacher, 1.0, NOTHING, logits=None, layers={"0": "0"}, spatial_weight=weight
        )
        result, _ = first_loss(student, policy, x)
        torch.testing.assert_close(result.overall_loss.detach(), want)


def test_a_gain_over_the_epochs(parts):
    student, teacher, x, _y = parts
    policy = distiller.KnowledgeDistillationPolicy(
        student, teacher, 1.0, NOTHING, logits=None, layers={"3": "3"}, gain={0: 2.0, 2: 0.0}
    )
    scheduler = distiller.CompressionScheduler(student)
    scheduler.add_policy(policy, **WINDOW)
    for epoch, gain in ((0, 2.0), (1, 1.0), (2, 0.0)):
        scheduler.on_epoch_begin(epoch)
        scheduler.on_minibatch_begin(epoch, 0, 1)
        result = scheduler.before_backward_pass(epoch, 0, 1, student(x).sum() * 0, return_loss_components=True)
        want = gain * (features(student, x, 3) - features(teacher, x, 3)).square().mean()
        torch.testing.assert_close(result.overall_loss.detach(), want)
        scheduler.on_minibatch_end(epoch, 0, 1)
        scheduler.on_epoch_end(epoch)


# -- projections ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_load", [True, False])
def test_a_convolution_matches_channels_and_is_trained(parts, at_load):
    student, teacher, x, _y = parts
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    before = torch.get_rng_state()
    scheduler = distiller.CompressionScheduler(
        student, optimizer=optimizer, example_inputs=(x[:1],) if at_load else None
    )
    policy = distiller.KnowledgeDistillationPolicy(student, teacher, 1.0, NOTHING, logits=None, layers={"0": "0"})
    scheduler.add_policy(policy, **WINDOW)
    assert torch.equal(before, torch.get_rng_state())
    assert len(optimizer.param_groups) == (2 if at_load else 1)
    losses, weights = [], []
    for _ in scheduler.epochs(3):
        for batch in scheduler.minibatches([x] * 5):
            optimizer.zero_grad()
            losses.append(float(scheduler.backward(student(batch).sum() * 0)))
            optimizer.step()
            weights.append(optimizer.param_groups[1]["params"][0].detach().clone())
    (projection,) = optimizer.param_groups[1]["params"]
    assert projection.shape == (6, 4, 1, 1) and optimizer.param_groups[1]["lr"] == 0.1
    assert losses[-1] < 0.5 * losses[0] and not torch.equal(weights[0], weights[-1])
    assert not any(projection is p for p in student.parameters())
    assert len(scheduler.parameters) == 6 and "projection" not in " ".join(scheduler.parameters)
    scheduler_state = scheduler.state_dict()["policies"][0]["state"]["projections"]
    assert torch.equal(scheduler_state["0"]["weight"], projection.detach())


def test_the_value_with_a_projection(parts):
    student, teacher, x, _y = parts
    policy = distiller.KnowledgeDistillationPolicy(student, teacher, 1.0, NOTHING, logits=None, layers={"1": "1"})
    result, _ = first_loss(student, policy, x, example=(x,))
    weight = policy.distiller.projections.modules["1"].weight.detach()
    s, t = features(student, x, 1), features(teacher, x, 1)
    want = (torch.einsum("nchw,dc->ndhw", s, weight[:, :, 0, 0]) - t).square().mean()
    torch.testing.assert_close(result.overall_loss.detach(), want)


class Tokens(nn.Module):
    def __init__(self, width, layers=2):
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.head = nn.Linear(width, 3)

    def states(self, ids):
        states = [self.embed(ids)]
        for layer in self.layers:
            states.append(torch.tanh(layer(states[-1])))
        return states

    def forward(self, ids):
        return self.head(self.states(ids)[-1])


def test_a_linear_layer_matches_hidden_sizes():
    torch.manual_seed(0)
    student, teacher = Tokens(4), Tokens(6)
    ids = torch.randint(0, 11, (2, 5))
    policy = distiller.KnowledgeDistillationPolicy(
        student, teacher, 1.0, NOTHING, logits=None, layers={"layers.1": "layers.1"}
    )
    result, _ = first_loss(student, policy, ids)
    module = policy.distiller.projections.modules["layers.1"]
    assert isinstance(module, nn.Linear) and module.bias is None and module.weight.shape == (6, 4)
    want = (
        (student.layers[1](student.states(ids)[1]) @ module.weight.T - teacher.layers[1](teacher.states(ids)[1]))
        .square()
        .mean()
    )
    torch.testing.assert_close(result.overall_loss, want)


def test_project_false_refuses_other_channels(parts):
    student, teacher, x, _y = parts
    policy = distiller.KnowledgeDistillationPolicy(student, teacher, layers={"0": "0"}, project=False)
    with pytest.raises(distiller.ArgumentError, match=r"0: MeanSquaredError cannot compare .*4 and 6 channels"):
        first_loss(student, policy, x)


def test_shapes_that_no_projection_brings_together(parts):
    student, teacher, x, _y = parts
    policy = distiller.KnowledgeDistillationPolicy(student, teacher, layers={"0": "3"})
    with pytest.raises(distiller.ArgumentError, match=r"0 -> 3: no projection from 4 to 2 dimensions"):
        first_loss(student, policy, x)
    strided = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), *list(net(4))[1:3], nn.Linear(16, 8), nn.Linear(8, 4))
    policy = distiller.KnowledgeDistillationPolicy(strided, teacher, layers={"0": "0"})
    with pytest.raises(distiller.ArgumentError, match="differ in more than their channels"):
        first_loss(strided, policy, x)


def test_named_parameters_of_an_optimizer_and_initial_lr(parts):
    student, teacher, x, _y = parts
    optimizer = torch.optim.AdamW(list(student.named_parameters()), lr=0.01)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    policy = distiller.KnowledgeDistillationPolicy(student, teacher, layers={"0": "0"})
    first_loss(student, policy, x, example=(x,), optimizer=optimizer)
    group = optimizer.param_groups[1]
    assert group["param_names"] == ["distillation.0.weight"] and group["initial_lr"] == 0.01


def test_zero_grad_of_the_model_alone_does_not_pile_up_gradients(parts):
    student, teacher, x, y = parts
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
    scheduler = distiller.CompressionScheduler(student, optimizer=optimizer, example_inputs=(x,))
    scheduler.add_policy(distiller.KnowledgeDistillationPolicy(student, teacher, layers={"0": "0"}), **WINDOW)
    seen = []
    for _ in scheduler.epochs(1):
        for batch in scheduler.minibatches([x] * 3):
            student.zero_grad()
            scheduler.backward(functional.cross_entropy(student(batch), y))
            seen.append(optimizer.param_groups[1]["params"][0].grad.clone())
            optimizer.step()
    torch.testing.assert_close(seen[0], seen[2])


def test_a_thinned_student_gets_a_new_projection(parts, caplog):
    student, teacher, x, _y = parts
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    scheduler = distiller.CompressionScheduler(student, optimizer=optimizer, example_inputs=(x,))
    policy = distiller.KnowledgeDistillationPolicy(student, teacher, 1.0, NOTHING, logits=None, layers={"0": "0"})
    scheduler.add_policy(policy, **WINDOW)
    for epoch in scheduler.epochs(2):
        if epoch == 1:  # two filters less
            student[0].weight.data = student[0].weight.data[:2].clone()
            student[0].bias.data = student[0].bias.data[:2].clone()
            student[3].weight.data = student[3].weight.data[:, :32].clone()
            optimizer.state.clear()
        for batch in scheduler.minibatches([x] * 2):
            optimizer.zero_grad()
            scheduler.backward(student(batch).sum() * 0)
            optimizer.step()
    sizes = [tuple(p.shape) for group in optimizer.param_groups[1:] for p in group["params"]]
    assert sizes == [(6, 2, 1, 1)]
    assert "begins anew" in caplog.text


# -- flow, relations, shared layers --------------------------------------------------------------------------------------


def test_flow_between_two_layers(parts):
    student, teacher, x, _y = parts
    pair = {"student": ["0", "1"], "teacher": ["0", "1"], "loss": "FSP"}
    policy = distiller.KnowledgeDistillationPolicy(student, teacher, 1.0, NOTHING, logits=None, layers=[pair])
    result, _ = first_loss(student, policy, x)
    modules = policy.distiller.projections.modules
    assert set(modules) == {"0 + 1 #0", "0 + 1 #1"}
    one, two = (modules[f"0 + 1 #{i}"](features(student, x, i)) for i in (0, 1))

    def flow(a, b):
        return torch.einsum("nchw,ndhw->ncd", a, b) / 16

    want = (flow(one, two) - flow(features(teacher, x, 0), features(teacher, x, 1))).square().mean()
    torch.testing.assert_close(result.overall_loss.detach(), want.detach())


def test_relations_need_no_projection(parts):
    student, teacher, x, _y = parts
    policy = distiller.KnowledgeDistillationPolicy(
        student, teacher, 1.0, NOTHING, logits=None, layers={"0": "3"}, loss="RKD"
    )
    result, _ = first_loss(student, policy, x)
    assert float(result.overall_loss.detach()) > 0 and not policy.distiller.projections.modules


class Shared(nn.Module):
    def __init__(self, times):
        super().__init__()
        self.layer, self.times = nn.Linear(3, 3), times

    def forward(self, x):
        for _ in range(self.times):
            x = self.layer(x)
        return x


def test_a_layer_that_runs_twice_is_compared_twice():
    torch.manual_seed(0)
    student, teacher, x = Shared(2), Shared(2), torch.randn(4, 3)
    policy = distiller.KnowledgeDistillationPolicy(student, teacher, 1.0, NOTHING, logits=None, layers=["layer"])
    result, _ = first_loss(student, policy, x)
    s1, t1 = student.layer(x), teacher.layer(x)
    want = ((s1 - t1).square().mean() + (student.layer(s1) - teacher.layer(t1)).square().mean()) / 2
    torch.testing.assert_close(result.overall_loss, want)
    policy = distiller.KnowledgeDistillationPolicy(student, Shared(3), layers=["layer"])
    with pytest.raises(distiller.ArgumentError, match=r"ran 2 times in one pass, the teacher's 3 times"):
        first_loss(student, policy, x)


def test_a_layer_of_one_of_several_teachers(parts):
    student, teacher, x, _y = parts
    other = net(4)
    layers = [{"student": "0", "teacher": "0", "source": "teacher 1"}]
    policy = distiller.KnowledgeDistillationPolicy(student, [teacher, other], 1.0, NOTHING, logits=None, layers=layers)
    result, _ = first_loss(student, policy, x)
    torch.testing.assert_close(
        result.overall_loss.detach(), (features(student, x, 0) - features(other, x, 0)).square().mean()
    )
    with pytest.raises(distiller.ArgumentError, match="which of the teachers"):
        distiller.KnowledgeDistillationPolicy(student, [teacher, other], layers={"0": "0"})
    with pytest.raises(distiller.ArgumentError, match="Did you mean 'teacher 0'"):
        distiller.KnowledgeDistillationPolicy(
            student, [teacher, other], layers={"0": {"teacher": "0", "source": "teacher0"}}
        )


def test_layers_of_a_copy_of_itself(parts):
    student, _, x, y = parts
    policy = distiller.KnowledgeDistillationPolicy(
        student, "self", 1.0, NOTHING, logits=None, layers={"0": "0", "1": "0"}
    )
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    scheduler = distiller.CompressionScheduler(student, optimizer=optimizer, example_inputs=(x,))
    scheduler.add_policy(policy, **WINDOW)
    losses = []
    for _ in scheduler.epochs(1):
        for batch in scheduler.minibatches([x] * 2):
            optimizer.zero_grad()
            losses.append(float(scheduler.backward(functional.cross_entropy(student(batch), y))))
            optimizer.step()
    initial = policy.teacher[0](x).detach()
    first = functional.cross_entropy(policy.teacher(x), y) + (initial.relu() - initial).square().mean()
    assert losses[0] == pytest.approx(float(first.detach()), rel=1e-5)
    assert not policy.distiller.projections.modules


@pytest.mark.parametrize("backend", [None, "aot_eager"])
@pytest.mark.parametrize("follows", [nn.ReLU(inplace=True), nn.ReLU()])
def test_what_follows_a_layer_in_place_does_not_change_what_is_compared(parts, follows, backend):
    _, _, x, y = parts
    student, teacher = (nn.Sequential(nn.Conv2d(1, 4, 3), follows, nn.Flatten(), nn.Linear(64, 4)) for _ in range(2))
    expected = float((features(student, x, 0) - features(teacher, x, 0)).square().mean())
    called = student if backend is None else torch.compile(student, backend=backend)
    policy = distiller.KnowledgeDistillationPolicy(called, teacher, 1.0, NOTHING, logits=None, layers=["0"])
    scheduler = distiller.CompressionScheduler(called)
    scheduler.add_policy(policy, **WINDOW)
    scheduler.on_epoch_begin(0)
    for step in range(3):
        scheduler.on_minibatch_begin(0, step, 3)
        loss = functional.cross_entropy(called(x), y)
        result = scheduler.before_backward_pass(0, step, 3, loss, return_loss_components=True)
        assert float(result.loss_components[0].value) == pytest.approx(expected, rel=1e-6)
        result.overall_loss.backward()
        scheduler.on_minibatch_end(0, step, 3)


def test_a_layer_whose_output_is_changed_in_place_only_now_and_then_is_told(caplog):
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.is_active = nn.Linear(2, 2), False

        def forward(self, x):
            out = self.first(x)
            return out.mul_(0) if self.is_active else out * 0

    model, recorder = Sometimes(), Recorder()
    Listener(model, recorder, ["first"]).install()
    recorder.open()
    for is_active in (False, True, True):
        model.is_active = is_active
        model(torch.ones(1, 2))
    noted = [float(call.features["first"][0].detach().abs().sum()) for call in recorder.calls()]
    assert noted[0] > 0 and noted[1] == 0 and noted[2] == noted[0]
    assert "in place for the first time" in caplog.text


def test_a_layer_that_is_replaced_is_followed(parts):
    student, teacher, x, _y = parts
    scheduler = distiller.CompressionScheduler(student)
    policy = distiller.KnowledgeDistillationPolicy(student, teacher, 1.0, NOTHING, logits=None, layers={"3": "3"})
    scheduler.add_policy(policy, **WINDOW)
    student[3] = nn.Sequential(student[3], nn.Hardtanh(-0.1, 0.1))  # as a quantizer wraps it
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    loss = scheduler.before_backward_pass(0, 0, 1, student(x).sum() * 0)
    want = (features(student, x, 3) - features(teacher, x, 3)).square().mean()
    torch.testing.assert_close(loss.detach(), want)


# -- outputs that are no tensors -----------------------------------------------------------------------------------------


@dataclass
class Output:
    logits: torch.Tensor
    hidden_states: tuple | None = None


Named = namedtuple("Named", ["logits", "hidden_states"])


class Bert(Tokens):
    kind = "dict"

    def forward(self, input_ids, labels=None):
        states = self.states(input_ids)
        logits = self.head(states[-1])
        return {
            "dict": lambda: {"logits": logits, "hidden_states": tuple(states)},
            "dataclass": lambda: Output(logits, tuple(states)),
            "named": lambda: Named(logits, tuple(states)),
            "tuple": lambda: (logits, tuple(states)),
            "tensor": lambda: logits,
        }[self.kind]()


@pytest.mark.parametrize("kind", ["dict", "dataclass", "named", "tuple"])
def test_hidden_states_and_logits_of_structures(kind):
    torch.manual_seed(0)
    student, teacher = Bert(4), Bert(6, layers=4)
    student.kind = teacher.kind = kind
    ids = torch.randint(0, 11, (2, 5))
    states, logits = ("1", ["0"]) if kind == "tuple" else ("hidden_states", None)
    weights = distiller.DistillationLossWeights(1.0, 0.0, 0)
    policy = distiller.KnowledgeDistillationPolicy(
        student,
        teacher,
        2.0,
        weights,
        outputs={f"{states}.1": f"{states}.2", f"{states}.2": f"{states}.4"},
        loss="cosine",
        output_keys=logits,
    )
    result, _ = first_loss(student, policy, input_ids=ids)
    mine, theirs = student.states(ids), [s.detach() for s in teacher.states(ids)]
    total = 0
    for (a, b), name in zip(((1, 2), (2, 4)), policy.distiller.projections.modules, strict=True):
        projected = policy.distiller.projections.modules[name](mine[a])
        total = total + 1 - functional.cosine_similarity(projected, theirs[b], dim=-1).mean()
    p, q = (teacher.head(theirs[-1]) / 2).softmax(-1), (student.head(mine[-1]) / 2).log_softmax(-1)
    kl = (p * (p.log() - q)).sum(-1).mean()
    torch.testing.assert_close(result.overall_loss, total + 4 * kl, rtol=1e-4, atol=1e-5)


def test_part_of_a_layers_output():
    class Recurrent(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, size, batch_first=True), nn.Linear(size, 2)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    torch.manual_seed(0)
    student, teacher, x = Recurrent(4), Recurrent(4), torch.randn(2, 5, 3)
    policy = distiller.KnowledgeDistillationPolicy(
        student, teacher, 1.0, NOTHING, logits=None, layers={"lstm[0]": "lstm[0]"}
    )
    result, _ = first_loss(student, policy, x)
    torch.testing.assert_close(result.overall_loss, (student.lstm(x)[0] - teacher.lstm(x)[0]).square().mean())
    policy = distiller.KnowledgeDistillationPolicy(student, teacher, layers=["lstm"])
    with pytest.raises(distiller.ArgumentError, match=r"gives a tuple, not a tensor.*lstm\[0\]"):
        first_loss(student, policy, x)


def test_logits_under_different_names():
    torch.manual_seed(0)
    student, teacher = Bert(4), Bert(6)
    student.kind, teacher.kind = "dict", "tuple"
    policy = distiller.KnowledgeDistillationPolicy(student, teacher, 1.0, output_keys={"logits": 0})
    result, _ = first_loss(student, policy, input_ids=torch.randint(0, 11, (2, 5)))
    assert float(result.overall_loss.detach()) > 0


def test_several_outputs_are_averaged():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 4)

        def forward(self, x):
            return [self.a(x), self.b(x)]

    torch.manual_seed(0)
    student, teacher, x = Two(), Two(), torch.randn(5, 3)
    parts = []
    for keys in ([0], [1], [0, 1]):
        weights = distiller.DistillationLossWeights(1.0, 0.0, 0)
        policy = distiller.KnowledgeDistillationPolicy(student, teacher, 1.0, weights, output_keys=keys)
        parts.append(float(first_loss(student, policy, x)[0].overall_loss.detach()))
    assert parts[2] == pytest.approx((parts[0] + parts[1]) / 2, rel=1e-5)
    with pytest.raises(distiller.ArgumentError, match=r"list of \['0', '1'\]: say what to compare"):
        first_loss(student, distiller.KnowledgeDistillationPolicy(student, teacher), x)


@pytest.mark.parametrize(
    ("kinds", "options", "message"),
    [
        (("dict", "dict"), {"output_keys": ["logit"]}, "student's output has no 'logit'.*Did you mean 'logits'"),
        (
            ("dict", "tuple"),
            {"outputs": {"hidden_states.1": "hidden_states.1"}, "logits": None},
            "teacher's output has no 'hidden_states'",
        ),
        (
            ("dict", "dict"),
            {"outputs": {"hidden_states.9": "hidden_states.1"}, "logits": None},
            "no '9' .of 'hidden_states.9'",
        ),
        (("dict", "dict"), {"output_keys": ["hidden_states"]}, "no floating-point tensor but a tuple"),
        (("tensor", "tuple"), {}, "teacher .teacher.'s output is a tuple"),
    ],
)
def test_structures_that_differ(kinds, options, message):
    student, teacher = Bert(4), Bert(4)
    student.kind, teacher.kind = kinds
    policy = distiller.KnowledgeDistillationPolicy(student, teacher, **options)
    with pytest.raises(distiller.ArgumentError, match=message):
        first_loss(student, policy, input_ids=torch.randint(0, 11, (2, 5)))


def test_an_output_that_was_not_asked_for():
    class Quiet(Tokens):
        def forward(self, ids):
            return Output(self.head(self.states(ids)[-1]))

    policy = distiller.KnowledgeDistillationPolicy(student := Quiet(4), Quiet(4), outputs=["hidden_states"])
    with pytest.raises(distiller.ArgumentError, match="output_hidden_states=True"):
        first_loss(student, policy, torch.randint(0, 11, (2, 5)))


def test_named_inputs_the_teacher_is_given():
    student, ids = Bert(4), torch.randint(0, 11, (2, 5))
    teacher = Tokens(4)
    named = {"input_ids": ids, "labels": torch.zeros(2)}
    with pytest.raises(distiller.ArgumentError, match=r"cannot be given the student's inputs.*teacher_input_keys"):
        first_loss(student, distiller.KnowledgeDistillationPolicy(student, teacher), **named)

    class Picky(Bert):
        def forward(self, input_ids):
            return super().forward(input_ids)

    policy = distiller.KnowledgeDistillationPolicy(student, Picky(4), teacher_input_keys=["input_ids"])
    assert first_loss(student, policy, **named)[0].loss_components
