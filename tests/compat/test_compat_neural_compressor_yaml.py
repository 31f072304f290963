"""What the façade builds from a configuration: loaders, transforms, optimizers, epochs, accuracy."""

import struct

import pytest
import torch
from torch import nn

from distiller_ng.compat.neural_compressor import Distillation, DistillationConf
from distiller_ng.compat.neural_compressor._data import build_loader, build_optimizer
from distiller_ng.compat.neural_compressor._training import top_k
from distiller_ng.errors import DatasetError, LifecycleError, ScheduleError


@pytest.fixture
def idx(tmp_path):
    """Twelve training and four test images of Fashion-MNIST's format; image i has pixels 20 i."""
    for split, count in (("train", 12), ("t10k", 4)):
        pixels = b"".join(bytes([20 * i]) * 784 for i in range(count))
        (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, count, 28, 28) + pixels)
        labels = bytes(i % 3 for i in range(count))
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels)
    return str(tmp_path)


def conf(train=None, evaluation=None):
    return DistillationConf({"distillation": {"train": train or {}}, "evaluation": evaluation or {}}).settings


def loader(root, name="FashionMNIST", **more):
    given = {"root": root, **more.pop("dataset", {})}
    return build_loader(conf({"dataloader": {"dataset": {name: given}, **more}}).train.dataloader)


def test_idx_files_become_floats(idx):
    images, labels = next(iter(loader(idx, batch_size=12)))
    assert images.shape == (12, 1, 28, 28)
    assert images[3].unique().tolist() == pytest.approx([60 / 255])
    assert labels.tolist() == [i % 3 for i in range(12)]
    scaled = loader(idx, batch_size=12, transform={"ToTensor": None, "Normalize": {"mean": [0.5], "std": [0.25]}})
    assert next(iter(scaled))[0][3].unique().tolist() == pytest.approx([(60 / 255 - 0.5) / 0.25])


def test_grey_images_are_cut_and_scaled_with_their_one_channel(idx):
    for transform in ({"RandomResizedCrop": {"size": 9}}, {"Resize": {"size": 12}, "CenterCrop": {"size": 9}}):
        images, _ = next(iter(loader(idx, batch_size=4, transform={**transform, "ToTensor": {}})))
        assert images.shape == (4, 1, 9, 9)
        assert images[2].unique().tolist() == pytest.approx([40 / 255])


@pytest.mark.parametrize(("last", "sizes"), [("rollover", [5, 5, 2]), ("discard", [5, 5])])
def test_last_batch(idx, last, sizes):
    assert [len(labels) for _, labels in loader(idx, batch_size=5, last_batch=last)] == sizes


def test_shuffling_and_the_test_split(idx):
    torch.manual_seed(0)
    orders = [[x.mean().item() for x, _ in loader(idx, shuffle=True)] for _ in range(2)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == pytest.approx([20 * i / 255 for i in range(12)])
    assert len(loader(idx, dataset={"train": False})) == 4
    accuracy = {"metric": {"topk": 2}, "dataloader": {"dataset": {"FashionMNIST": {"root": idx}}}}
    settings = conf(evaluation={"accuracy": accuracy})
    assert settings.topk == 2
    assert len(build_loader(settings.eval_dataloader)) == 4


def test_data_that_are_not_there(idx, tmp_path):
    with pytest.raises(LifecycleError, match="torchrun"):
        loader(idx, distributed=True)
    with pytest.raises(DatasetError, match="there is no folder"):
        loader(str(tmp_path / "nothing"), name="ImageFolder")
    with pytest.raises(DatasetError, match="train-images"):
        loader(str(tmp_path / "nothing"), name="MNIST")
    with pytest.raises(ScheduleError, match="nothing is downloaded"):
        loader(idx, dataset={"download": True})
    with pytest.raises(ScheduleError, match="root: required"):
        conf({"dataloader": {"dataset": {"ImageFolder": {}}}})


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("SGD", {"learning_rate": 0.1}, {"lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}),
        ("SGD", {"learning_rate": 1, "momentum": 0.9, "weight_decay": 1e-4}, {"momentum": 0.9, "weight_decay": 1e-4}),
        (
            "Adam",
            {"learning_rate": 0.01, "beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-6, "amsgrad": True},
            {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6, "amsgrad": True, "weight_decay": 0.0},
        ),
        ("AdamW", {"learning_rate": 0.01}, {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}),
    ],
)
def test_optimizers(name, given, expected):
    optimizer = build_optimizer(conf({"optimizer": {name: given}}).train.optimizer, nn.Linear(2, 2))
    assert type(optimizer).__name__ == name
    assert {key: optimizer.defaults[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"Adam": {"learning_rate": 0.1, "beta_1": 1.0}}, "below 1"),
        ({"Adam": {"learning_rate": 0.1, "momentum": 0.9}}, "unknown key 'momentum'"),
        ({"SGD": {"learning_rate": "fast"}}, "expected a number"),
        ({"SGD": {"learning_rate": 0.1}, "Adam": {"learning_rate": 0.1}}, "exactly one"),
        ({}, "exactly one"),
        ([1], "expected a mapping"),
    ],
)
def test_wrong_optimizers(given, message):
    with pytest.raises(ScheduleError, match=message):
        conf({"optimizer": given})


@pytest.mark.parametrize(
    ("train", "first", "last"),
    [
        ({}, 0, 1),
        ({"epoch": 3}, 0, 3),
        ({"end_epoch": 5}, 0, 5),
        ({"start_epoch": 2, "end_epoch": 5}, 2, 5),
        ({"start_epoch": 2, "epoch": 3}, 2, 5),
    ],
)
def test_epochs(train, first, last):
    settings = conf(train).train
    assert (settings.start_epoch, settings.end_epoch) == (first, last)


def test_epochs_iterations_frequency_and_seed_are_followed(idx):
    steps, scored = [], []

    def run(seed):
        train = {
            "epoch": 4,
            "iteration": 2,
            "frequency": 2,
            "dataloader": {"batch_size": 4, "shuffle": True, "dataset": {"FashionMNIST": {"root": idx}}},
            "optimizer": {"SGD": {"learning_rate": 0.1}},
        }
        distiller = Distillation({"distillation": {"train": train}, "tuning": {"random_seed": seed}})
        torch.manual_seed(0)
        distiller.student_model = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
        distiller.teacher_model = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
        distiller.student_model.model.register_forward_hook(lambda module, args, output: steps.append(len(output)))
        distiller.eval_func = lambda model: scored.append(model) or len(scored)
        return distiller.fit().model[1].weight.detach().clone()

    first = run(7)
    assert steps == [4] * 8
    assert len(scored) == 2 + 2
    assert torch.equal(first, run(7))
    assert not torch.equal(first, run(8))


def test_top_k():
    model = nn.Identity()
    batches = [
        (torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]), torch.tensor([1, 2])),
        (torch.eye(3)[:1], torch.tensor([0])),
    ]
    assert top_k(model, batches, 1) == pytest.approx(2 / 3)
    assert top_k(model, batches, 2) == 1.0
    assert top_k(model, batches, 9) == 1.0
    assert model.training
