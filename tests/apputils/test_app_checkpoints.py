"""Checkpoints of applications: models from the zoo, schedules read again, exact and inexact continuation."""

import logging

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import distiller_ng as distiller
from distiller_ng import apputils
from distiller_ng.errors import CheckpointError

SCHEDULE = """
version: 1
pruners:
  gradual:
    class: AutomatedGradualPruner
    initial_sparsity: 0.1
    final_sparsity: 0.8
    weights: [conv2.weight]
lr_schedulers:
  decay: {class: ExponentialLR, gamma: 0.5}
policies:
  - pruner: {instance_name: gradual}
    starting_epoch: 0
    ending_epoch: 4
    frequency: 1
  - lr_scheduler: {instance_name: decay}
    starting_epoch: 0
    ending_epoch: 6
    frequency: 1
"""
OTHER = """
version: 1
pruners:
  level: {class: SparsityLevelParameterPruner, levels: {fc.weight: 0.5}}
policies:
  - pruner: {instance_name: level}
    epochs: [3, 4]
"""


@pytest.fixture
def schedule(tmp_path):
    path = tmp_path / "agp.yaml"
    path.write_text(SCHEDULE)
    return path


def new_model(seed=0):
    torch.manual_seed(seed)
    return distiller.models.create_model(False, "digits", "digits_cnn")


def loader():
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(48, 1, 8, 8, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(48) % 10), batch_size=16, shuffle=True)


def train(model, optimizer, scheduler, epochs, folder=None, text=None):
    data = loader()
    for epoch in scheduler.epochs(epochs):
        for images, labels in scheduler.minibatches(data):
            optimizer.zero_grad()
            scheduler.backward(nn.functional.cross_entropy(model(images), labels))
            optimizer.step()
        if folder is not None:
            apputils.save_checkpoint(
                epoch, "digits_cnn", model, optimizer, scheduler, dir=folder, name=str(epoch), schedule_text=text
            )


def start(schedule):
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, distiller.file_config(model, optimizer, schedule)


def assert_same_weights(model, other):
    for (name, mine), theirs in zip(model.state_dict().items(), other.state_dict().values()):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("stop", [0, 2, 3, 4])
def test_a_run_continues_from_its_file_alone(tmp_path, schedule, stop):
    model, optimizer, scheduler = start(schedule)
    train(model, optimizer, scheduler, 6, tmp_path, SCHEDULE)
    schedule.unlink()

    torch.manual_seed(99)  # another process has other generators
    path = tmp_path / f"{stop}_checkpoint.pth.tar"
    again, its_scheduler, its_optimizer, first = apputils.resume_checkpoint(None, path)
    assert first == stop + 1
    train(again, its_optimizer, its_scheduler, 6)
    assert_same_weights(again, model)
    assert its_optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_a_given_scheduler_is_restored_exactly(tmp_path, schedule):
    model, optimizer, scheduler = start(schedule)
    train(model, optimizer, scheduler, 6, tmp_path)
    torch.manual_seed(99)
    again, its_optimizer, its_scheduler = start(schedule)
    path = tmp_path / "2_checkpoint.pth.tar"
    result = apputils.load_checkpoint(again, path, its_optimizer, scheduler=its_scheduler)
    assert result == (again, its_scheduler, its_optimizer, 3)
    train(again, its_optimizer, its_scheduler, 6)
    assert_same_weights(again, model)


def test_plain_load_gives_masks_without_policies(tmp_path, schedule):
    model, optimizer, scheduler = start(schedule)
    train(model, optimizer, scheduler, 4, tmp_path, SCHEDULE)
    _, its_scheduler, _, first = apputils.load_checkpoint(None, tmp_path / "3_checkpoint.pth.tar")
    assert first == 4
    assert its_scheduler.schedule == ()
    assert torch.equal(its_scheduler.zeros_mask_dict["conv2.weight"].mask, scheduler.masks["conv2.weight"].mask)


def test_distillers_way_of_adding_a_schedule_to_a_loaded_scheduler(tmp_path, schedule):
    model, optimizer, scheduler = start(schedule)
    train(model, optimizer, scheduler, 2, tmp_path, SCHEDULE)
    (tmp_path / "other.yaml").write_text(OTHER)
    again, loaded, its_optimizer, first = apputils.load_checkpoint(new_model(3), tmp_path / "1_checkpoint.pth.tar")
    result = distiller.file_config(again, its_optimizer, tmp_path / "other.yaml", loaded, first - 1)
    assert result is loaded
    assert len(loaded.schedule) == 1
    loaded.on_epoch_begin(3, its_optimizer)
    assert set(loaded.masks.masked()) == {"conv2.weight", "fc.weight"}


def test_another_schedule_keeps_masks_and_epoch(tmp_path, schedule, caplog):
    model, optimizer, scheduler = start(schedule)
    train(model, optimizer, scheduler, 3, tmp_path, SCHEDULE)
    (tmp_path / "other.yaml").write_text(OTHER)
    with caplog.at_level(logging.WARNING):
        _, its_scheduler, _, first = apputils.resume_checkpoint(
            None, tmp_path / "2_checkpoint.pth.tar", schedule_file=tmp_path / "other.yaml"
        )
    assert "masks and epoch are kept, the schedule's policies begin afresh" in caplog.text
    assert first == 3
    assert set(its_scheduler.masks.masked()) == {"conv2.weight"}
    its_scheduler.on_epoch_begin(first)
    assert set(its_scheduler.masks.masked()) == {"conv2.weight", "fc.weight"}


def test_reset_keeps_weights_and_masks_only(tmp_path, schedule):
    model, optimizer, scheduler = start(schedule)
    train(model, optimizer, scheduler, 3, tmp_path, SCHEDULE)
    again, its_scheduler, its_optimizer, first = apputils.resume_checkpoint(
        None,
        tmp_path / "2_checkpoint.pth.tar",
        make_optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=0.3),
        reset=True,
    )
    assert (first, type(its_optimizer).__name__, its_scheduler.schedule) == (0, "AdamW", ())
    assert_same_weights(again, model)
    assert set(its_scheduler.masks.masked()) == {"conv2.weight"}


def test_weights_alone_with_a_fresh_optimizer(tmp_path, schedule):
    torch.save({"state_dict": new_model(4).state_dict()}, tmp_path / "w.pth")
    model, scheduler, optimizer, first = apputils.resume_checkpoint(
        new_model(),
        tmp_path / "w.pth",
        schedule_file=schedule,
        make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.3),
    )
    assert first == 0
    assert len(scheduler.schedule) == 2
    assert scheduler.optimizer is optimizer
    assert torch.equal(model.fc.bias, new_model(4).fc.bias)


def test_model_none_without_arch_is_an_error(tmp_path):
    path = apputils.save_checkpoint(0, None, nn.Linear(1, 1), dir=tmp_path)
    with pytest.raises(CheckpointError, match="dataset and arch"):
        apputils.load_lean_checkpoint(None, path)


def test_zoo_model_is_built_from_the_file(tmp_path):
    path = apputils.save_checkpoint(0, "digits_cnn", new_model(4), dir=tmp_path)
    model = apputils.load_lean_checkpoint(None, path, "cpu")
    assert torch.equal(model.fc.bias, new_model(4).fc.bias)
    assert (model.arch, model.dataset) == ("digits_cnn", "digits")
