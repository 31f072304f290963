import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from distiller_ng.apputils.data_loaders import (
    SubsetSampler,
    classification_dataset_str_from_arch,
    classification_get_input_shape,
    classification_num_classes,
    dataset_summary,
    load_data,
)
from distiller_ng.apputils.datasets import DATASETS, InMemorySource
from distiller_ng.apputils.datasets.base import TensorImages
from distiller_ng.apputils.datasets.transforms import Normalize, RandomCrop
from distiller_ng.errors import ArgumentError, DatasetError


@pytest.mark.parametrize(
    ("arch", "dataset"),
    [
        ("resnet20_cifar", "cifar10"),
        ("vgg16_bn_cifar", "cifar10"),
        ("simplenet_mnist", "mnist"),
        ("simplenet_fashion_mnist", "fashion-mnist"),
        ("simplenet_digits", "digits"),
        ("resnet18", "imagenet"),
        ("alexnet_bn", "imagenet"),
    ],
)
def test_dataset_from_arch(arch, dataset):
    assert classification_dataset_str_from_arch(arch) == dataset


@pytest.mark.parametrize(
    ("dataset", "classes", "shape"),
    [
        ("imagenet", 1000, (1, 3, 224, 224)),
        ("cifar10", 10, (1, 3, 32, 32)),
        ("mnist", 10, (1, 1, 28, 28)),
        ("fashion-mnist", 10, (1, 1, 28, 28)),
        ("digits", 10, (1, 1, 8, 8)),
        ("synthetic:3x16x16:4", 4, (1, 3, 16, 16)),
    ],
)
def test_classes_and_shape(dataset, classes, shape):
    assert classification_num_classes(dataset) == classes
    assert classification_get_input_shape(dataset) == shape


@pytest.mark.parametrize("ask", [classification_num_classes, classification_get_input_shape])
def test_unknown_dataset_is_an_error(ask):
    with pytest.raises(ValueError, match="unknown data set 'cifar100'"):
        ask("cifar100")


# ---------------------------------------------------------------------------------------------------- sampler


def test_sampler_visits_everything_in_random_order():
    torch.manual_seed(0)
    sampler = SubsetSampler(range(100, 150))
    first, second = list(sampler), list(sampler)
    assert len(sampler) == 50 and sorted(first) == sorted(second) == list(range(100, 150))
    assert first != second and first != sorted(first)


@pytest.mark.parametrize(("count", "size", "length"), [(10, 0.25, 2), (100, 0.29, 29), (10, 1.0, 10), (10, 0.01, 1)])
def test_sampler_length_is_floored_but_never_zero(count, size, length):
    sampler = SubsetSampler(range(count), size)
    assert len(sampler) == len(list(sampler)) == length


def test_subset_changes_every_epoch_unless_fixed():
    torch.manual_seed(0)
    moving = SubsetSampler(range(100), 0.2)
    assert set(moving) != set(moving)
    fixed = SubsetSampler(range(100), 0.2, fixed_subset=True)
    first, second = list(fixed), list(fixed)
    assert set(first) == set(second) and first != second
    torch.manual_seed(99)
    assert set(SubsetSampler(range(100), 0.2, fixed_subset=True)) == set(first)


@pytest.mark.parametrize("fixed", [False, True])
def test_sequential_is_ascending(fixed):
    torch.manual_seed(0)
    visited = list(SubsetSampler([5, 3, 9, 1, 7, 8, 2, 6], 0.5, fixed_subset=fixed, sequential=True))
    assert len(visited) == 4 and visited == sorted(visited)
    assert list(SubsetSampler([5, 3, 9], sequential=True)) == [3, 5, 9]


def test_full_sequential_pass_draws_nothing():
    state = torch.get_rng_state()
    list(SubsetSampler(range(10), sequential=True))
    SubsetSampler(range(10), 0.5, fixed_subset=True)
    assert torch.equal(torch.get_rng_state(), state)


def test_empty_sampler():
    with pytest.raises(ArgumentError, match="empty"):
        SubsetSampler([])


# ---------------------------------------------------------------------------------------------------- load_data


def test_digits_with_distillers_split():
    train, valid, test, shape = load_data("digits", "simplenet_digits", None, 64, 0)
    assert shape == (1, 1, 8, 8)
    assert [len(loader.sampler) for loader in (train, valid, test)] == [1437 - 143, 143, 360]
    assert len(train) == 21
    images, labels = next(iter(train))
    assert images.shape == (64, 1, 8, 8) and images.dtype == torch.float32
    assert labels.shape == (64,) and labels.dtype == torch.int64
    train_indices, valid_indices = set(train.sampler), set(valid.sampler)
    assert not train_indices & valid_indices
    assert train_indices | valid_indices == set(range(1437))


def test_the_split_is_the_same_in_every_run():
    splits = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        splits.append(sorted(load_data("digits", "", None, 64, 0)[1].sampler))
    assert splits[0] == splits[1] and splits[0] != list(range(143))


def test_dataset_may_come_from_the_architecture():
    assert load_data(None, "simplenet_digits", None, 8, 0, test_only=True)[3] == (1, 1, 8, 8)


def test_no_split_validates_with_the_test_set():
    train, valid, test, _ = load_data("digits", "", None, 32, 0, validation_split=0.0)
    assert valid is test and len(train.sampler) == 1437


def test_test_only():
    train, valid, test, shape = load_data("digits", "", None, 32, 0, test_only=True)
    assert train is None and valid is None and len(test.sampler) == 360 and shape == (1, 1, 8, 8)


def test_effective_sizes():
    loaders = load_data("digits", "", None, 10, 0, 0.1, False, 0.5, 0.2, 0.1)
    assert [len(loader.sampler) for loader in loaders[:3]] == [647, 28, 36]
    assert sum(len(labels) for _, labels in loaders[2]) == 36


def test_sequential_test_set_keeps_the_order_of_the_files():
    _, _, test, _ = load_data("digits", "", None, 50, 0, sequential=True)
    labels = torch.cat([labels for _, labels in test])
    assert torch.equal(labels, DATASETS.get("digits").cls().test_set().labels)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("workers", -1),
        ("validation_split", 1.0),
        ("validation_split", -0.1),
        ("validation_split", float("nan")),
        ("effective_train_size", 0.0),
        ("effective_valid_size", 1.1),
        ("effective_test_size", float("nan")),
    ],
)
def test_values_out_of_range(name, value):
    arguments = {"dataset": "digits", "arch": "", "data_dir": None, "batch_size": 8, "workers": 0, name: value}
    with pytest.raises(ArgumentError) as caught:
        load_data(**arguments)
    assert caught.value.argument == (name,) and str(value) in str(caught.value)


def test_unknown_dataset_in_load_data():
    with pytest.raises(DatasetError, match="unknown data set 'cifar100'"):
        load_data("cifar100", "resnet20_cifar", None, 8, 0)


@pytest.fixture
def counting_set():
    """A registered set whose pixels hold the image's index, shifted at random for training."""

    class Counting(InMemorySource):
        num_classes = 40
        image_shape = (1, 4, 4)
        normalize = Normalize((0.0,), (1.0,), scale=1.0)
        augmentations = (RandomCrop(2),)

        def read(self, split):
            labels = torch.arange(40)
            return (labels.view(-1, 1, 1, 1) + 1).expand(40, 1, 4, 4).to(torch.uint8).clone(), labels

    DATASETS.register("counting-test-set")(Counting)
    yield "counting-test-set"
    del DATASETS._entries["counting-test-set"]


def test_a_registered_set_loads_by_name_and_validation_images_are_not_augmented(counting_set):
    torch.manual_seed(0)
    train, valid, test, _ = load_data(counting_set, "", None, 8, 0, validation_split=0.5)
    for loader in (valid, test):
        for images, labels in loader:
            assert torch.equal(images, (labels + 1.0).view(-1, 1, 1, 1).expand_as(images))
    assert any(bool((images == 0).any()) for images, _ in train)


def epoch(loader, seed):
    torch.manual_seed(seed)
    batches = list(loader)
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


@pytest.mark.parametrize("workers", [0, 2])
def test_order_and_augmentation_replay_from_torchs_generator(counting_set, workers):
    train = load_data(counting_set, "", None, 8, workers, deterministic=True)[0]
    first, labels = epoch(train, 5)
    random.seed(123)
    np.random.seed(123)
    again, labels_again = epoch(train, 5)
    other, _ = epoch(train, 6)
    assert torch.equal(first, again) and torch.equal(labels, labels_again)
    assert not torch.equal(first, other)


class _Drawing(TensorDataset):
    def __getitem__(self, index):
        return random.random(), float(np.random.rand())


def test_deterministic_workers_seed_python_and_numpy():
    from distiller_ng.apputils.data_loaders import _seed_worker

    loader = DataLoader(_Drawing(torch.zeros(4)), num_workers=2, worker_init_fn=_seed_worker)
    torch.manual_seed(0)
    first = [tuple(float(v) for v in batch) for batch in loader]
    torch.manual_seed(0)
    second = [tuple(float(v) for v in batch) for batch in loader]
    assert first == second and len(set(first)) == 4


def test_images_of_another_shape_in_the_test_set_are_refused():
    class Mixed(InMemorySource):
        num_classes = 1
        image_shape = (1, 2, 2)
        normalize = Normalize((0.0,), (1.0,))

        def read(self, split):
            side = 2 if split == "train" else 3
            return torch.zeros(4, 1, side, side, dtype=torch.uint8), torch.zeros(4).long()

    DATASETS.register("mixed-test-set")(Mixed)
    try:
        with pytest.raises(DatasetError, match="not of the same data set"):
            load_data("mixed-test-set", "", None, 2, 0)
    finally:
        del DATASETS._entries["mixed-test-set"]


# ---------------------------------------------------------------------------------------------------- summary


def images_with(labels):
    count = len(labels)
    return TensorImages(
        torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.tensor(labels), transform=Normalize((0.0,), (1.0,))
    )


def test_summary_counts_what_an_epoch_visits(caplog):
    data = images_with([0, 2, 2, 2, 0, 1])
    with caplog.at_level("INFO", logger="distiller_ng"):
        summary = dataset_summary(DataLoader(data, batch_size=4))
    assert summary.counts == {0: 2, 1: 1, 2: 3} and summary.total == 6
    assert str(summary).splitlines()[-1] == "Dataset contains 6 items of 3 classes"
    assert "Class    2: 3" in caplog.text
    assert dataset_summary(DataLoader(data, sampler=SubsetSampler([1, 2, 5]))).counts == {1: 1, 2: 2}


def test_summary_of_any_other_loader_iterates():
    plain = TensorDataset(torch.zeros(5, 1), torch.tensor([4, 4, 0, 0, 0]))
    assert dataset_summary(DataLoader(plain, batch_size=2)).counts == {0: 3, 4: 2}


@pytest.mark.parametrize("data", [images_with([0, 1]), TensorDataset(torch.zeros(2, 1), torch.tensor([0, 1]))])
def test_looking_does_not_change_what_follows(data):
    state = torch.get_rng_state()
    dataset_summary(DataLoader(data, batch_size=1, shuffle=True))
    assert torch.equal(torch.get_rng_state(), state)
