"""``epochs``, ``minibatches``, ``backward`` and ``report``: they call exactly the hooks, and they resume exactly."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from distiller_ng.core.policy import LossComponent, Policy, PolicyLoss
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import ArgumentError, CheckpointError, LifecycleError


class Calls(Policy):
    def __init__(self):
        self.log = []

    def on_epoch_begin(self, ctx):
        self.log.append(("on_epoch_begin", ctx.epoch))

    def on_minibatch_begin(self, ctx):
        self.log.append(("on_minibatch_begin", ctx.position.minibatch_id))

    def before_backward_pass(self, ctx):
        self.log.append("before_backward_pass")

    def before_parameter_optimization(self, ctx):
        self.log.append("before_parameter_optimization")

    def on_minibatch_end(self, ctx):
        self.log.append(("on_minibatch_end", ctx.is_step, ctx.is_last_minibatch))

    def on_epoch_end(self, ctx):
        self.log.append(("on_epoch_end", dict(ctx.metrics)))


def small_training(order_seed=7, **loader_arguments):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.3), nn.Linear(5, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = TensorDataset(torch.randn(12, 6), torch.randint(0, 2, (12,)))
    torch.manual_seed(order_seed)
    return model, optimizer, DataLoader(data, batch_size=4, shuffle=True, **loader_arguments)


def test_the_short_form_calls_exactly_the_hooks():
    model, optimizer, loader = small_training()
    scheduler, calls = CompressionScheduler(model, optimizer=optimizer), Calls()
    scheduler.add_policy(calls, epochs=[1])
    seen = []
    for epoch in scheduler.epochs(3):
        seen.append(epoch)
        for x, y in scheduler.minibatches(loader):
            optimizer.zero_grad()
            scheduler.backward(nn.functional.cross_entropy(model(x), y))
            optimizer.step()
        scheduler.report(min=0.5, max=90.0)
    assert seen == [0, 1, 2]
    step = ["before_backward_pass", "before_parameter_optimization"]
    assert calls.log == [
        ("on_epoch_begin", 1),
        *(("on_minibatch_begin", 0), *step, ("on_minibatch_end", True, False)),
        *(("on_minibatch_begin", 1), *step, ("on_minibatch_end", True, False)),
        *(("on_minibatch_begin", 2), *step, ("on_minibatch_end", True, True)),
        ("on_epoch_end", {"min": 0.5, "max": 90.0}),
    ]


def test_accumulating_four_minibatches_equals_one_large_batch():
    class Shrink(Policy):
        def before_backward_pass(self, ctx):
            extra = 0.05 * sum(p.pow(2).sum() for p in ctx.parameters.values())
            return PolicyLoss(ctx.loss + extra, LossComponent("shrink", extra))

    def train(accumulate):
        torch.manual_seed(3)
        model = nn.Linear(6, 2).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        x, y = torch.randn(32, 6).double(), torch.randint(0, 2, (32,))
        loader = DataLoader(TensorDataset(x, y), batch_size=16 // accumulate)
        scheduler = CompressionScheduler(model, optimizer=optimizer)
        scheduler.add_policy(Shrink(), starting_epoch=0, ending_epoch=2)
        positions = Positions()
        scheduler.add_policy(positions, starting_epoch=0.0, ending_epoch=1.5, frequency=0.5)
        for _ in scheduler.epochs(2):
            optimizer.zero_grad()
            for x, y in scheduler.minibatches(loader, accumulate=accumulate):
                scheduler.backward(nn.functional.cross_entropy(model(x), y))
                if scheduler.should_step:
                    optimizer.step()
                    optimizer.zero_grad()
        return model.weight, positions.log

    class Positions(Policy):
        def __init__(self):
            self.log = []

        def on_update(self, ctx):
            self.log.append((ctx.epoch, ctx.position.minibatch_id, ctx.position.minibatches_per_epoch))

    one, one_log = train(1)
    four, four_log = train(4)
    torch.testing.assert_close(four, one, rtol=1e-12, atol=1e-12)
    assert one_log == four_log == [(0, 0, 2), (0, 1, 2), (1, 0, 2)]


def test_hooks_with_declared_accumulation_scale_added_losses():
    class Extra(Policy):
        def before_backward_pass(self, ctx):
            return PolicyLoss(ctx.loss * 2 + 8, LossComponent("extra", torch.tensor(8.0)))

    scheduler = CompressionScheduler(nn.Linear(1, 1), accumulation_steps=4)
    scheduler.add_policy(Extra(), epochs=[0])
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 8)
    result = scheduler.before_backward_pass(0, 0, 8, torch.tensor(3.0) / 4, return_loss_components=True)
    assert result.overall_loss.item() == (2 * 3.0 + 8) / 4
    assert result.loss_components[0].value.item() == 2.0


def test_undeclared_accumulation_is_seen_through_the_optimizer():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler, calls = CompressionScheduler(model, optimizer=optimizer), Calls()
    scheduler.add_policy(calls, epochs=[0])
    scheduler.on_epoch_begin(0)
    for i in range(4):
        scheduler.on_minibatch_begin(0, i, 4)
        model(torch.ones(1, 2)).sum().backward()
        if i % 2:
            optimizer.step()
        scheduler.on_minibatch_end(0, i, 4)
    assert [entry[1] for entry in calls.log if entry[0] == "on_minibatch_end"] == [False, True, False, True]


class Growing(Policy):
    """Masks more of every weight each epoch, by magnitude: masks depend on the whole history."""

    def on_epoch_begin(self, ctx):
        for name in ctx.parameters.prunable():
            weight = ctx.parameters[name].detach().abs()
            threshold = weight.flatten().sort().values[int(weight.numel() * ctx.progress * 0.8)]
            ctx.masks.set(name, (weight >= threshold).float(), owner="growing")


def run_until(killed_after, *, start_from=None, workers=0, own_generator=False):
    generator = torch.Generator().manual_seed(11) if own_generator else None
    model, optimizer, loader = small_training(num_workers=workers, generator=generator)
    scheduler = CompressionScheduler(model, optimizer=optimizer)
    scheduler.add_policy(Growing(), starting_epoch=0, ending_epoch=4)
    if start_from is not None:
        torch.manual_seed(1234)  # whatever happened before must not matter
        torch.rand(5)
        saved = torch.load(io.BytesIO(start_from), weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
    done = 0
    for epoch in scheduler.epochs(4):
        for x, y in scheduler.minibatches(loader):
            optimizer.zero_grad()
            scheduler.backward(nn.functional.cross_entropy(model(x), y))
            optimizer.step()
            done += 1
            if done == killed_after:
                return _saved(model, optimizer, scheduler)
        torch.rand(1)  # a validation that uses random numbers
        if killed_after == f"epoch {epoch}":
            return _saved(model, optimizer, scheduler)
    return [p.detach().clone() for p in model.parameters()]


def _saved(model, optimizer, scheduler):
    buffer = io.BytesIO()
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    torch.save(states, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("killed_after", [1, 2, 3, 4, 8, 11, 12, "epoch 0", "epoch 2", "epoch 3"])
@pytest.mark.parametrize("own_generator", [False, True])
def test_a_run_killed_anywhere_resumes_bit_for_bit(killed_after, own_generator):
    whole = run_until(None, own_generator=own_generator)
    saved = run_until(killed_after, own_generator=own_generator)
    resumed = run_until(None, start_from=saved, own_generator=own_generator)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


@pytest.mark.slow
def test_resume_is_exact_with_worker_processes():
    whole = run_until(None, workers=1)
    resumed = run_until(None, start_from=run_until(5, workers=1), workers=1)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


class TestRestoredPositions:
    def saved_in_the_middle(self):
        model = nn.Linear(2, 1)
        scheduler = CompressionScheduler(model)
        scheduler.on_epoch_begin(3)
        for i in range(2):
            scheduler.on_minibatch_begin(3, i, 5)
            scheduler.on_minibatch_end(3, i, 5)
        fresh = CompressionScheduler(nn.Linear(2, 1))
        fresh.load_state_dict(scheduler.state_dict())
        return fresh

    def test_a_loop_of_hooks_continues_with_the_next_minibatch(self):
        scheduler = self.saved_in_the_middle()
        assert str(scheduler.resume_point) == "epoch 3, minibatch 2 of 5"
        scheduler.on_epoch_begin(3)  # announcing the epoch again is fine
        scheduler.on_minibatch_begin(3, 2, 5)
        scheduler.on_minibatch_end(3, 2, 5)

    @pytest.mark.parametrize("position", [(3, 0, 5), (3, 3, 5), (3, 2, 6)])
    def test_any_other_position_is_an_error(self, position):
        with pytest.raises(LifecycleError, match="continue with minibatch 2 of 5"):
            self.saved_in_the_middle().on_minibatch_begin(*position)

    def test_another_epoch_is_an_error(self):
        scheduler = CompressionScheduler(nn.Linear(2, 1))
        scheduler.on_epoch_begin(3)
        scheduler.on_epoch_end(3)
        fresh = CompressionScheduler(nn.Linear(2, 1))
        fresh.load_state_dict(scheduler.state_dict())
        with pytest.raises(LifecycleError, match="continue with epoch 4"):
            fresh.on_epoch_begin(0)
        restarted = CompressionScheduler(nn.Linear(2, 1))
        restarted.load_state_dict(scheduler.state_dict(), restore_position=False)
        restarted.on_epoch_begin(0)

    def test_another_loader_is_an_error(self):
        model, optimizer, loader = small_training()
        saved = torch.load(io.BytesIO(run_until(2)), weights_only=True)
        scheduler = CompressionScheduler(model, optimizer=optimizer)
        scheduler.add_policy(Growing(), starting_epoch=0, ending_epoch=4)
        scheduler.load_state_dict(saved["scheduler"])
        with pytest.raises(LifecycleError, match="had 3 minibatches, this loader has 12"):
            for _ in scheduler.epochs(4):
                for _ in scheduler.minibatches(DataLoader(loader.dataset, batch_size=1)):
                    pass

    def test_saving_before_the_step_warns(self, caplog):
        model, optimizer, loader = small_training()
        scheduler = CompressionScheduler(model, optimizer=optimizer)
        for _ in scheduler.epochs(1):
            for x, y in scheduler.minibatches(loader):
                scheduler.backward(nn.functional.cross_entropy(model(x), y))
                scheduler.state_dict()
                break
            break
        assert "gradients are not saved" in caplog.text


def test_state_of_another_schedule_is_refused_and_changes_nothing():
    source = CompressionScheduler(nn.Linear(2, 1))
    source.add_policy(Growing(), epochs=[0])
    source.zeros_mask_dict["weight"].mask = torch.tensor([[0.0, 1.0]])
    target = CompressionScheduler(nn.Linear(2, 1))
    target.add_policy(Calls(), epochs=[0])
    with pytest.raises(CheckpointError, match=r"another schedule.*Growing.*Calls"):
        target.load_state_dict(source.state_dict())
    assert target.zeros_mask_dict["weight"].mask is None


def test_distillers_masks_dict_loads_and_missing_names_mean_no_mask():
    scheduler = CompressionScheduler(nn.Linear(2, 1))
    scheduler.load_state_dict({"masks_dict": {"module.weight": torch.tensor([[0.0, 1.0]]), "bias": None}})
    assert scheduler.zeros_mask_dict["weight"].mask.tolist() == [[0, 1]]
    with pytest.raises(CheckpointError, match="no 'masks_dict'"):
        scheduler.load_state_dict({"model": 1})
    with pytest.raises(CheckpointError, match="unknown parameter 'fc.weight'"):
        scheduler.init_from_masks_dict({"fc.weight": None})
    with pytest.raises(CheckpointError, match="shape"):
        scheduler.init_from_masks_dict({"weight": torch.ones(3)})
    assert scheduler.zeros_mask_dict["weight"].mask.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: next(s.epochs(-1)), "whole number"),
        (lambda s: next(s.epochs(1.5)), "whole number"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ArgumentError, match=message):
        call(CompressionScheduler(nn.Linear(1, 1)))


def test_loaders_without_a_length_need_one():
    scheduler = CompressionScheduler(nn.Linear(1, 1))
    for _ in scheduler.epochs(1):
        with pytest.raises(ArgumentError, match="length="):
            next(scheduler.minibatches(iter([1, 2])))
        assert list(scheduler.minibatches(iter([1, 2]), length=2)) == [1, 2]


def test_loaders_shorter_than_they_say_are_an_error():
    scheduler = CompressionScheduler(nn.Linear(1, 1))
    for _ in scheduler.epochs(1):
        with pytest.raises(LifecycleError, match="ended after 1 of 3"):
            list(scheduler.minibatches([1], length=3))
        break
