import builtins

import numpy as np
import pytest
import torch

from distiller_ng.apputils.datasets import DATASETS, InMemorySource, TensorImages, open_dataset
from distiller_ng.apputils.datasets.synthetic import Synthetic
from distiller_ng.apputils.datasets.transforms import Normalize
from distiller_ng.errors import ArgumentError, DatasetError


def forbid_import(monkeypatch, package):
    real = builtins.__import__

    def refusing(name, *args, **kwargs):
        if name == package or name.startswith(package + "."):
            raise ImportError(f"No module named {package!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refusing)


# ---------------------------------------------------------------------------------------------------- opening


def test_all_documented_names_are_registered():
    assert {"cifar10", "digits", "fashion-mnist", "imagenet", "mnist", "synthetic"} <= set(DATASETS.names())


@pytest.mark.parametrize(
    ("name", "classes", "shape"),
    [
        ("digits", 10, (1, 8, 8)),
        ("mnist", 10, (1, 28, 28)),
        ("fashion-mnist", 10, (1, 28, 28)),
        ("Fashion_MNIST", 10, (1, 28, 28)),
        ("cifar10", 10, (3, 32, 32)),
        ("imagenet", 1000, (3, 224, 224)),
        ("synthetic", 10, (3, 32, 32)),
        ("synthetic:1x28x20", 10, (1, 28, 20)),
        ("synthetic:3x64x64:7", 7, (3, 64, 64)),
    ],
)
def test_shape_and_classes_are_known_without_files(name, classes, shape):
    source = open_dataset(name)
    assert source.num_classes == classes
    assert source.image_shape == shape


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("digit", "Did you mean 'digits'"),
        ("fashionmnist", "Did you mean 'fashion-mnist'"),
        ("zzz", "allowed: cifar10, digits"),
        ("digits:8x8", "takes no options"),
        ("synthetic:28x28", "synthetic:CxHxW"),
        ("synthetic:1x0x28", "each 1 or more"),
        ("synthetic:1x8x8:0", "each 1 or more"),
    ],
)
def test_unknown_names_and_options(name, says):
    with pytest.raises(DatasetError, match=says):
        open_dataset(name)


def test_tensor_images_item_and_batch_agree():
    images = torch.arange(12, dtype=torch.uint8).view(3, 1, 2, 2)
    data = TensorImages(images, torch.tensor([5, 6, 7]), transform=Normalize((0.0,), (1.0,), scale=1.0))
    assert len(data) == 3
    single, label = data[-1]
    assert single.tolist() == [[[8.0, 9.0], [10.0, 11.0]]] and label == 7
    batch = data.__getitems__([2, 0])
    assert [label for _, label in batch] == [7, 5]
    assert torch.equal(batch[0][0], single)


def test_tensor_images_refuse_different_counts():
    with pytest.raises(DatasetError, match=r"\[2, 1, 2, 2\].*\[3\]"):
        TensorImages(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(3).long(), transform=Normalize((0,), (1,)))


def test_a_source_with_a_label_outside_its_classes_is_refused():
    class Wrong(InMemorySource):
        num_classes = 2
        image_shape = (1, 1, 1)
        normalize = Normalize((0.5,), (0.5,))

        def read(self, split):
            return torch.zeros(3, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 1, 2])

    with pytest.raises(DatasetError, match=r"from 0 to 2; 2 classes allow 0\.\.1"):
        Wrong().train_set()


# ---------------------------------------------------------------------------------------------------- digits


def test_digits_are_real_split_in_proportion_and_always_the_same():
    source = open_dataset("digits")
    train, test = source.train_set(), source.test_set()
    assert train.images.shape == (1437, 1, 8, 8) and test.images.shape == (360, 1, 8, 8)
    assert test.labels.bincount().tolist() == [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]
    assert train.labels.bincount().tolist() == [142, 145, 142, 146, 145, 146, 145, 143, 139, 144]
    again = open_dataset("digits").test_set()
    assert torch.equal(again.images, test.images) and torch.equal(again.labels, test.labels)
    assert int(test.images.max()) == 16
    together = torch.cat([train.images, test.images]).flatten(1)
    from sklearn.datasets import load_digits

    original = torch.from_numpy(load_digits().data.astype(np.uint8))
    assert torch.equal(together.unique(dim=0), original.unique(dim=0))


def test_digits_are_normalised():
    train = open_dataset("digits").train_set()
    x = torch.stack([image for image, _ in train.__getitems__(range(len(train)))])
    assert float(x.mean()) == pytest.approx(0.0, abs=1e-3)
    assert float(x.std()) == pytest.approx(1.0, abs=1e-3)
    assert float(x.min()) == pytest.approx(-0.8120, abs=1e-4)
    assert float(x.max()) == pytest.approx(1.8433, abs=1e-4)


def test_digits_without_scikit_learn(monkeypatch):
    forbid_import(monkeypatch, "sklearn")
    with pytest.raises(DatasetError, match="pip install scikit-learn"):
        open_dataset("digits").train_set()


# ---------------------------------------------------------------------------------------------------- synthetic


def test_synthetic_is_seeded_balanced_and_of_the_asked_shape():
    def make(seed):
        return Synthetic(image_shape=(2, 5, 7), num_classes=3, train_size=31, test_size=8, seed=seed)

    train = make(0).train_set()
    assert train.images.shape == (31, 2, 5, 7) and train.images.dtype == torch.uint8
    assert train.labels.bincount().tolist() == [11, 10, 10]
    assert torch.equal(make(0).train_set().images, train.images)
    assert not torch.equal(make(1).train_set().images, train.images)
    test = make(0).test_set()
    assert len(test) == 8 and not torch.equal(test.images, train.images[:8])


def test_synthetic_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    open_dataset("synthetic:1x4x4").train_set()
    assert torch.equal(torch.get_rng_state(), state)


def test_synthetic_is_learnable_from_class_means():
    source = Synthetic(image_shape=(1, 12, 12), train_size=300, test_size=100)
    train, test = source.train_set(), source.test_set()
    means = torch.stack([train.images[train.labels == c].float().mean(0) for c in range(10)]).flatten(1)
    guesses = torch.cdist(test.images.float().flatten(1), means).argmin(1)
    assert (guesses == test.labels).float().mean() > 0.95


@pytest.mark.parametrize(
    "wrong",
    [{"image_shape": (0, 2, 2)}, {"num_classes": 0}, {"train_size": 0}, {"test_size": -1}, {"noise": -0.1}],
)
def test_synthetic_refuses(wrong):
    with pytest.raises(ArgumentError):
        Synthetic(**wrong)
