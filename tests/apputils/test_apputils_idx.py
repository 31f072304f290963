import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from distiller_ng.apputils.datasets import open_dataset
from distiller_ng.apputils.datasets.fashion_mnist import FashionMnist
from distiller_ng.errors import DatasetError

SYSTEM_DIRS = FashionMnist.system_dirs


@pytest.fixture(autouse=True)
def _no_installed_files(monkeypatch):
    monkeypatch.setattr(FashionMnist, "system_dirs", ())


def write_idx(path: Path, array: np.ndarray) -> None:
    content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype("u1").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, *, suffix: str = ".gz", dash: str = "-", train: int = 6, test: int = 4) -> None:
    for prefix, count in (("train", train), ("t10k", test)):
        images = np.arange(count * 784).reshape(count, 28, 28) % 256
        write_idx(folder / f"{prefix}-images{dash}idx3-ubyte{suffix}", images)
        write_idx(folder / f"{prefix}-labels{dash}idx1-ubyte{suffix}", np.arange(count) % 10)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("dash", ["-", "."])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_idx_files_in_every_spelling(tmp_path, name, dash, suffix):
    write_mnist(tmp_path, suffix=suffix, dash=dash)
    source = open_dataset(name, tmp_path)
    train, test = source.train_set(augment=False), source.test_set()
    assert train.images.shape == (6, 1, 28, 28) and len(test) == 4
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert train.images[0, 0, 0, :4].tolist() == [0, 1, 2, 3]
    low, high = {"mnist": (-0.4242, 2.8215), "fashion-mnist": (-0.8102, 2.0227)}[name]
    image = train[0][0]
    assert float(image.min()) == pytest.approx(low, abs=1e-4)
    assert float(image.max()) == pytest.approx(high, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "sub"),
    [
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", "fashion-mnist"),
        ("fashion-mnist", "FashionMNIST/raw"),
    ],
)
def test_idx_files_in_usual_subfolders(tmp_path, name, sub):
    write_mnist(tmp_path / sub)
    assert len(open_dataset(name, str(tmp_path)).train_set()) == 6


def test_installed_fashion_mnist_is_found_after_data_dir(tmp_path, monkeypatch, caplog):
    write_mnist(tmp_path / "installed", train=6)
    monkeypatch.setattr(FashionMnist, "system_dirs", (tmp_path / "installed",))
    assert len(open_dataset("fashion-mnist").train_set()) == 6
    with caplog.at_level("INFO", logger="distiller_ng"):
        assert len(open_dataset("fashion-mnist", tmp_path / "elsewhere").train_set()) == 6
    assert "using the installed files" in caplog.text
    write_mnist(tmp_path / "own", train=3)
    assert len(open_dataset("fashion-mnist", tmp_path / "own").train_set()) == 3


def test_debians_folder_is_the_default_place():
    assert tuple(SYSTEM_DIRS) == (Path("/usr/share/datasets/fashion-mnist"),)


def test_fashion_mnist_augments_training_images_only(tmp_path):
    write_mnist(tmp_path)
    source = open_dataset("fashion-mnist", tmp_path)
    torch.manual_seed(0)
    plain, train, test = source.train_set(augment=False), source.train_set(), source.test_set()
    assert any(not torch.equal(train[0][0], plain[0][0]) for _ in range(5))
    assert torch.equal(test[0][0], test[0][0])
    quiet = FashionMnist(tmp_path, augment=False).train_set()
    assert all(torch.equal(quiet[0][0], plain[0][0]) for _ in range(5))
    assert train.images is plain.images


def test_missing_fashion_mnist_says_how_to_get_it(tmp_path):
    with pytest.raises(DatasetError) as caught:
        open_dataset("fashion-mnist", tmp_path).train_set()
    message = str(caught.value)
    assert "apt-get install dataset-fashion-mnist" in message
    assert "train-images-idx3-ubyte" in message and str(tmp_path) in message


def test_missing_mnist_names_files_and_places(tmp_path):
    with pytest.raises(DatasetError, match=r"t10k-images-idx3-ubyte.*Looked in: nowhere.*no data_dir"):
        open_dataset("mnist").test_set()
    with pytest.raises(DatasetError, match="MNIST/raw"):
        open_dataset("mnist", tmp_path).test_set()


def test_one_file_of_a_pair_is_never_completed_from_another_folder(tmp_path, monkeypatch):
    write_mnist(tmp_path / "installed")
    write_mnist(tmp_path / "own")
    (tmp_path / "own" / "train-labels-idx1-ubyte.gz").unlink()
    monkeypatch.setattr(FashionMnist, "system_dirs", (tmp_path / "installed",))
    with pytest.raises(DatasetError, match=r"own.*no train-labels-idx1-ubyte"):
        open_dataset("fashion-mnist", tmp_path / "own").train_set()


def test_gzip_is_recognised_by_content(tmp_path):
    write_mnist(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_suffix(""))
    assert len(open_dataset("mnist", tmp_path).train_set()) == 6


GOOD_LABELS = bytes((0, 0, 8, 1)) + struct.pack(">I", 6) + bytes(range(6))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "starts with nothing"),
        (b"\x00\x00\x08\x03" + GOOD_LABELS[4:], "expected 00 00 08 01"),
        (b"\x00\x00\x0d\x01" + GOOD_LABELS[4:], "expected 00 00 08 01"),
        (b"<html>", "not an IDX file"),
        (GOOD_LABELS[:6], "truncated inside its header"),
        (GOOD_LABELS[:-1], "truncated: its header says 6 = 6 bytes, it holds 5"),
        (GOOD_LABELS + b"\x00", "too long"),
        (gzip.compress(GOOD_LABELS)[:-9], "damaged gzip"),
        (gzip.compress(GOOD_LABELS)[:12] + b"\xff" * 20, "damaged gzip"),
        (bytes((0, 0, 8, 1)) + struct.pack(">I", 2**32 - 1) + b"\x00", "truncated"),
        (bytes((0, 0, 8, 1)) + struct.pack(">I", 5) + bytes(5), "6 images, but .* 5 labels"),
        (GOOD_LABELS[:-1] + b"\x0a", "from 0 to 10; 10 classes allow"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, content, says):
    write_mnist(tmp_path, suffix="")
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(DatasetError, match=says) as caught:
        open_dataset("mnist", tmp_path).train_set()
    assert "train-labels" in str(caught.value) or "Mnist" in str(caught.value)
