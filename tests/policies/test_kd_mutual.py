"""Two models that are trained together: values, both directions, the peer's optimizer group, refusals."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

import distiller_ng as distiller
from distiller_ng.knowledge_distillation import MutualDistiller
from distiller_ng.policies import MutualDistillationPolicy

X, Y = torch.randn(8, 5, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 1, 2, 3] * 2)
WINDOW = {"starting_epoch": 0, "ending_epoch": 3}


def net(width):
    return nn.Sequential(nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 4))


@pytest.fixture
def models():
    torch.manual_seed(0)
    return net(6), net(7)


def kl(p, q, temperature):
    p, q = (p / temperature).softmax(1), (q / temperature).log_softmax(1)
    return (p * (p.log() - q)).sum(1).mean()


def expected(model, peer, temperature, distill, student, own):
    """The loss by hand, with gradients."""
    a, b = model(X), peer(X)
    total = student * functional.cross_entropy(a, Y) + own * functional.cross_entropy(b, Y)
    return total + distill * temperature**2 * (kl(b.detach(), a, temperature) + kl(a.detach(), b, temperature))


@pytest.mark.parametrize(
    ("weights", "numbers"), [(None, (1, 1, 1)), ({"distill": 0.5, "student": 0.3, "teacher": 0.2}, (0.5, 0.3, 0.2))]
)
def test_loss_and_gradients_of_both(models, weights, numbers):
    model, peer = models
    twins = copy.deepcopy(models)
    made = MutualDistiller("together", model, {"other": peer}, peer="other", temperature=2.0, loss_weights=weights)
    scheduler = distiller.CompressionScheduler(model)
    scheduler.add_policy(MutualDistillationPolicy(made), **WINDOW)
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    loss = functional.cross_entropy(model(X), Y)
    result = scheduler.before_backward_pass(0, 0, 1, loss, return_loss_components=True)
    result.overall_loss.backward()
    want = expected(*twins, 2.0, *numbers)
    want.backward()
    torch.testing.assert_close(result.overall_loss, want)
    assert [c.name for c in result.loss_components] == ["Distill Loss", "Peer Loss"]
    for module, twin in zip((model, peer), twins, strict=True):
        for p, q in zip(module.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)
    assert torch.equal(peer[1].running_mean, twins[1][1].running_mean)


def test_both_learn_and_the_peer_joins_the_optimizer(models):
    model, peer = models
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    plan = {
        "distillers": {"together": {"class": "MutualDistiller", "peer": "other"}},
        "policies": [{"distiller": {"instance_name": "together"}, "starting_epoch": 0, "ending_epoch": 20}],
    }
    scheduler = distiller.dict_config(model, optimizer, plan, teachers={"other": peer})
    assert [len(group["params"]) for group in optimizer.param_groups] == [6, 6]
    first = [float(functional.cross_entropy(m(X), Y).detach()) for m in models]
    for _ in scheduler.epochs(20):
        for batch in scheduler.minibatches([X]):
            optimizer.zero_grad()
            scheduler.backward(functional.cross_entropy(model(batch), Y))
            optimizer.step()
    last = [float(functional.cross_entropy(m(X), Y).detach()) for m in models]
    assert all(after < 0.7 * before for before, after in zip(first, last, strict=True))
    assert not model._forward_hooks and not peer._forward_hooks


def test_a_loop_that_runs_the_peer_itself_gets_the_distances(models):
    model, peer = models
    twins = copy.deepcopy(models)
    optimizer = torch.optim.SGD([*model.parameters(), *peer.parameters()], lr=0.1)
    made = MutualDistiller("together", model, {"other": peer}, peer="other")
    scheduler = distiller.CompressionScheduler(model, optimizer=optimizer)
    scheduler.add_policy(MutualDistillationPolicy(made), **WINDOW)
    assert len(optimizer.param_groups) == 1
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    loss = functional.cross_entropy(model(X), Y) + functional.cross_entropy(peer(X), Y)
    total = scheduler.before_backward_pass(0, 0, 1, loss)
    torch.testing.assert_close(total, expected(*twins, 1.0, 1, 1, 1))


@pytest.mark.parametrize("criterion", [None, nn.CrossEntropyLoss()])
def test_labels_belong_to_their_pass(models, criterion):
    model, peer = (each.eval() for each in models)
    scheduler = distiller.CompressionScheduler(model)
    weights = {"distill": 0.0, "student": 1.0, "teacher": 1.0}
    made = MutualDistiller("together", model, {"other": peer}, peer="other", loss_weights=weights)
    scheduler.add_policy(MutualDistillationPolicy(made, criterion=criterion), **WINDOW)
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    model(X[3:])  # without labels
    loss = (criterion or functional.cross_entropy)(model(X[:3]), Y[:3])
    result = scheduler.before_backward_pass(0, 0, 1, loss, return_loss_components=True)
    components = {component.name: float(component.value) for component in result.loss_components}
    assert components["Peer Loss"] == pytest.approx(float(functional.cross_entropy(peer(X[:3]), Y[:3]).detach()))


def test_unlabelled_batches_pull_the_two_together(models):
    model, peer = models
    twins = copy.deepcopy(models)
    scheduler = distiller.CompressionScheduler(model)
    made = MutualDistiller("together", model, {"other": peer}, peer="other")
    scheduler.add_policy(MutualDistillationPolicy(made), **WINDOW)
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    model(X)
    total = scheduler.before_backward_pass(0, 0, 1, None)
    torch.testing.assert_close(total, expected(*twins, 1.0, 1, 0, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peer": "othr"}, "no model is called 'othr'. Did you mean 'other'"),
        ({"peer": "other", "logits": "none"}, "nothing to distill"),
        ({"peer": "other", "temperature": 0}, "above 0"),
        ({"peer": "itself"}, "shares parameters"),
        ({"peer": "tied"}, "shares parameters"),
    ],
)
def test_refusals(models, options, message):
    model, peer = models
    known = {"other": peer, "itself": model, "tied": nn.Sequential(model[0])}
    with pytest.raises(distiller.ArgumentError, match=message):
        MutualDistiller("together", model, known, **options)


def test_a_frozen_peer_warns(models):
    model, peer = models
    peer.requires_grad_(False)
    with pytest.warns(distiller.ScheduleWarning, match="a teacher rather than a peer"):
        MutualDistiller("together", model, {"other": peer}, peer="other")


def test_a_peer_inside_the_model_and_a_missing_pass(models):
    model, peer = models
    policy = MutualDistillationPolicy(MutualDistiller("together", model, {"other": peer}, peer="other"))
    with pytest.raises(distiller.ArgumentError, match="the scheduler's own model, or in it"):
        distiller.CompressionScheduler(nn.ModuleList([model, peer])).add_policy(policy, **WINDOW)
    scheduler = distiller.CompressionScheduler(model)
    scheduler.add_policy(policy, **WINDOW)
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    with pytest.raises(distiller.LifecycleError, match="was not run"):
        scheduler.before_backward_pass(0, 0, 1, functional.cross_entropy(peer(X), Y))


def test_state_of_another_peer_is_refused(models):
    model, peer = models
    first = MutualDistillationPolicy(MutualDistiller("t", model, {"other": peer}, peer="other"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = MutualDistillationPolicy(MutualDistiller("t", model, {"other": net(9)}, peer="other"))
    with pytest.raises(distiller.CheckpointError, match="another model: '0.weight'"):
        second.load_state_dict(first.state_dict())
