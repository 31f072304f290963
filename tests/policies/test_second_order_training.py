"""Second-order pruners in training: where gradients come from, exact resume, accumulation, mixed precision, replicas."""

from __future__ import annotations

import io

import pytest
import torch
from replicas import in_two_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import distiller_ng as distiller
from distiller_ng.core.samples import GradientSampler
from distiller_ng.policies import PruningPolicy
from distiller_ng.pruning import MFACPruner, OBSPruner

PRUNERS = {
    "obs": lambda: OBSPruner("p", init_sparsity=0.2, final_sparsity=0.75, num_grads=12, fisher_block_size=6),
    "mfac": lambda: MFACPruner("p", init_sparsity=0.2, final_sparsity=0.75, num_grads=4),
    "mfac buffered": lambda: MFACPruner(
        "p", init_sparsity=0.2, final_sparsity=0.75, num_grads=4, use_gradient_buffering=True
    ),
}
WINDOWS = {"whole": (0, 3, 1), "fractional": (0.25, 2.5, 0.5)}


def made():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 3))


def loader():
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(40, 6, generator=generator), torch.randint(0, 3, (40,), generator=generator))
    return DataLoader(data, 4, shuffle=True, generator=torch.Generator().manual_seed(2))


def scheduled(model, pruner, window, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = distiller.CompressionScheduler(model, optimizer=optimizer)
    start, end, frequency = window
    scheduler.add_policy(PruningPolicy(pruner), starting_epoch=start, ending_epoch=end, frequency=frequency, **options)
    return scheduler, optimizer


def trained(model, scheduler, optimizer, data, epochs, *, accumulate=1, stop_at=None):
    """Trains by the short form; returns the state saved at minibatch ``stop_at`` = (epoch, minibatch)."""
    for epoch in scheduler.epochs(epochs):
        for i, (x, y) in enumerate(scheduler.minibatches(data, accumulate=accumulate)):
            if i % accumulate == 0:
                optimizer.zero_grad()
            scheduler.backward(nn.functional.cross_entropy(model(x), y))
            if scheduler.should_step:
                optimizer.step()
            if stop_at == (epoch, i):
                buffer = io.BytesIO()
                state = {"m": model.state_dict(), "o": optimizer.state_dict(), "s": scheduler.state_dict()}
                torch.save(state, buffer)
                buffer.seek(0)
                return torch.load(buffer, weights_only=True)
    return None


def sparsity(model):
    weights = [model[0].weight, model[3].weight]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", PRUNERS)
def test_the_level_is_reached_and_held_with_gradients_from_the_loops_own_loader(name, window):
    model = made()
    scheduler, optimizer = scheduled(model, PRUNERS[name](), WINDOWS[window])
    trained(model, scheduler, optimizer, loader(), 4)
    assert sparsity(model) == pytest.approx(0.75, abs=0.01)
    assert model.training and all(torch.isfinite(p).all() for p in model.parameters())


def test_right_before_optimizer_steps_as_recipes_do():
    model = made()
    scheduler, optimizer = scheduled(model, PRUNERS["obs"](), (0.0, 2.0, 0.5), trigger="step")
    trained(model, scheduler, optimizer, loader(), 3)
    assert sparsity(model) == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", PRUNERS)
def test_a_resumed_run_is_the_same_to_the_bit(name, window):
    model = made()
    scheduler, optimizer = scheduled(model, PRUNERS[name](), WINDOWS[window])
    trained(model, scheduler, optimizer, loader(), 4)
    other = made()
    scheduler, optimizer = scheduled(other, PRUNERS[name](), WINDOWS[window])
    state = trained(other, scheduler, optimizer, loader(), 4, stop_at=(1, 3))
    resumed = made()
    scheduler, optimizer = scheduled(resumed, PRUNERS[name](), WINDOWS[window])
    resumed.load_state_dict(state["m"])
    optimizer.load_state_dict(state["o"])
    scheduler.load_state_dict(state["s"])
    trained(resumed, scheduler, optimizer, loader(), 4)
    for one, two in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_loop_of_hooks_without_loader_uses_the_gradients_of_its_steps(caplog):
    model = made()
    scheduler, optimizer = scheduled(model, PRUNERS["obs"](), (0, 3, 1))
    for epoch in range(3):
        scheduler.on_epoch_begin(epoch, optimizer)
        for i, (x, y) in enumerate(loader()):
            scheduler.on_minibatch_begin(epoch, i, 10, optimizer)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            scheduler.before_parameter_optimization(epoch, i, 10, optimizer)
            optimizer.step()
            scheduler.on_minibatch_end(epoch, i, 10, optimizer)
        scheduler.on_epoch_end(epoch, optimizer)
    scheduler.finish()
    assert sparsity(model) == pytest.approx(0.75, abs=0.01)
    assert "decides on 1 gradients of training steps; it asks for 12" in caplog.text


def test_the_users_own_sampler_comes_first():
    model, calls = made(), []

    def builder(kwargs):
        for x, y in loader():
            calls.append(kwargs)
            yield [x], {}, y

    pruner = OBSPruner("p", sparsity=0.5, num_grads=3, grad_sampler_kwargs={"a": 1})
    scheduler, optimizer = scheduled(model, pruner, (0, 1, 1))
    scheduler.grad_sampler = {"data_loader_builder": builder, "loss_function": nn.CrossEntropyLoss()}
    trained(model, scheduler, optimizer, loader(), 1)
    assert calls == [{"a": 1}] * 3 and sparsity(model) == 0.5


def test_with_accumulation_and_gradient_scaling_and_bfloat16():
    model = made().bfloat16()
    scheduler, optimizer = scheduled(model, PRUNERS["obs"](), (0, 3, 1))
    data = [(x.bfloat16(), y) for x, y in loader()]
    trained(model, scheduler, optimizer, data, 3, accumulate=2)
    assert sparsity(model) == pytest.approx(0.75, abs=0.01)

    model = made()
    scheduler, optimizer = scheduled(model, PRUNERS["mfac buffered"](), (0, 3, 1))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in scheduler.epochs(3):
        for x, y in scheduler.minibatches(loader()):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(x).float(), y)
            scheduler.backward(loss, scaler=scaler)
            scaler.step(optimizer)
            scaler.update()
        kept = scheduler.schedule[0][0].pruner.buffer
        largest = max(float(g.abs().max()) for step in kept.last(4) for g in step.values())
    assert sparsity(model) == pytest.approx(0.75, abs=0.01)
    assert kept.count == 4 and largest < 10  # not scaled
    assert scheduler.schedule[0][0].pruner.buffer is None  # freed at the end


def test_adam_and_weights_that_are_masked_by_another_pruner_too():
    model = made()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = distiller.CompressionScheduler(model, optimizer=optimizer)
    scheduler.masks.set("0.weight", torch.eye(8)[:, :6], owner="user's")
    scheduler.add_policy(PruningPolicy(PRUNERS["obs"]()), starting_epoch=0, ending_epoch=2, frequency=1)
    trained(model, scheduler, optimizer, loader(), 3)
    assert not model[0].weight[~torch.eye(8)[:, :6].bool()].any()
    assert sparsity(model) >= 0.74


@pytest.mark.slow
def test_gradients_of_replicas_are_averaged_and_weights_stay_equal(tmp_path):
    in_two_processes(_replica, tmp_path)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    # Both halves of each batch together give what one process computes on the whole batches.
    whole = made()
    sampler = GradientSampler(whole_batches())
    scheduler, _ = scheduled(whole, OBSPruner("p", sparsity=0.5, num_grads=6, fisher_block_size=6), (0, 1, 1))
    scheduler.masks.detach()
    scheduler.grad_sampler = sampler
    scheduler.on_epoch_begin(0)
    scheduler.masks.apply_changes_()
    for key, value in whole.state_dict().items():
        assert torch.allclose(found[0][f"module.{key}"], value, atol=1e-4)


def whole_batches():
    generator = torch.Generator().manual_seed(7)
    return [(torch.randn(8, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)) for _ in range(6)]


def _replica(rank, folder):
    model = DistributedDataParallel(made())
    scheduler = distiller.CompressionScheduler(model)
    pruner = OBSPruner("p", sparsity=0.5, num_grads=6, fisher_block_size=6)
    scheduler.add_policy(PruningPolicy(pruner), epochs=[0])
    scheduler.grad_sampler = [(x[rank::2], y[rank::2]) for x, y in whole_batches()]
    scheduler.on_epoch_begin(0)
    scheduler.masks.apply_changes_()
    torch.save(model.state_dict(), folder / f"{rank}.pt")
