"""A loop with accelerate against the same training without it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

accelerate = pytest.importorskip("accelerate")  # an optional test group

import torch  # noqa: E402
from integration_runs import SCHEDULE, by_hand, loader, network  # noqa: E402
from torch import nn  # noqa: E402

from distiller_ng import dict_config  # noqa: E402
from distiller_ng.errors import LifecycleError  # noqa: E402
from distiller_ng.integrations.accelerate import AcceleratedLoop  # noqa: E402


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_same_weights_as_without_accelerate(steps):
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=steps)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4, momentum=0.9)
    scheduler = dict_config(model, optimizer, SCHEDULE)
    prepared, wrapped, batches = accelerator.prepare(model, optimizer, loader())
    loop = AcceleratedLoop(accelerator, scheduler, prepared)
    for _ in scheduler.epochs(4):
        for inputs, labels in loop.minibatches(batches):
            loop.backward(nn.functional.cross_entropy(prepared(inputs), labels))
            wrapped.step()
            wrapped.zero_grad()
    expected = by_hand(accumulate=steps).state_dict()
    for name, value in model.state_dict().items():
        assert torch.allclose(value, expected[name], atol=1e-6), name
    assert (model[0].weight == 0).sum() == 36


def prepared_run():
    accelerator = accelerate.Accelerator(cpu=True)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4, momentum=0.9)
    scheduler = dict_config(model, optimizer, SCHEDULE)
    prepared, wrapped, batches = accelerator.prepare(model, optimizer, loader())
    accelerator.register_for_checkpointing(scheduler)
    return accelerator, scheduler, prepared, wrapped, batches


def train(accelerator, scheduler, prepared, wrapped, batches, epochs):
    loop = AcceleratedLoop(accelerator, scheduler, prepared)
    for _ in scheduler.epochs(epochs):
        for inputs, labels in loop.minibatches(batches):
            loop.backward(nn.functional.cross_entropy(prepared(inputs), labels))
            wrapped.step()
            wrapped.zero_grad()


def test_accelerates_own_checkpoints_hold_the_schedule(tmp_path):
    whole = by_hand().state_dict()
    first = prepared_run()
    train(*first, epochs=2)
    first[0].save_state(tmp_path / "state")
    second = prepared_run()
    second[0].load_state(tmp_path / "state")
    train(*second, epochs=4)
    for name, value in second[2].state_dict().items():
        assert torch.allclose(value, whole[name], atol=1e-6), name


@pytest.mark.parametrize("engine", ["DEEPSPEED", "FSDP", "MEGATRON_LM"])
def test_engines_that_own_the_step_are_refused_by_name(engine):
    kind = accelerate.utils.DistributedType[engine]
    model = network()
    scheduler = dict_config(model, torch.optim.SGD(model.parameters(), lr=0.1), SCHEDULE)
    with pytest.raises(LifecycleError, match=engine):
        AcceleratedLoop(SimpleNamespace(distributed_type=kind), scheduler, model)
