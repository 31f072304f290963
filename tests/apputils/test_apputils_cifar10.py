import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from distiller_ng.apputils.datasets import open_dataset
from distiller_ng.errors import DatasetError


def cifar_records(count: int, start: int) -> tuple[np.ndarray, list[int]]:
    pixels = (np.arange(count * 3072).reshape(count, 3072) + start) % 256
    return pixels.astype(np.uint8), [(start + i) % 10 for i in range(count)]


def write_cifar_python(folder: Path, *, protocol: int = 2, keys=bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        pixels, labels = cifar_records(2, number)
        batch = {"batch_label": "x", "labels": labels, "data": pixels, "filenames": ["a.png", "b.png"]}
        if keys is bytes:
            batch = {key.encode(): value for key, value in batch.items()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))


def write_cifar_binary(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate([*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]):
        pixels, labels = cifar_records(2, number)
        (folder / name).write_bytes(np.column_stack([np.array(labels, np.uint8), pixels]).tobytes())


@pytest.mark.parametrize("sub", ["", "cifar-10-batches-py"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("keys", [bytes, str])
def test_cifar_python_batches(tmp_path, sub, protocol, keys):
    write_cifar_python(tmp_path / sub, protocol=protocol, keys=keys)
    check_cifar(tmp_path)


@pytest.mark.parametrize("sub", ["", "cifar-10-batches-bin"])
def test_cifar_binary_batches(tmp_path, sub):
    write_cifar_binary(tmp_path / sub)
    check_cifar(tmp_path)


def check_cifar(folder: Path) -> None:
    source = open_dataset("cifar10", folder)
    train, test = source.train_set(augment=False), source.test_set()
    assert train.labels.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5] and test.labels.tolist() == [5, 6]
    assert train.images.shape == (10, 3, 32, 32)
    assert train.images[2, 0, 0, :3].tolist() == [1, 2, 3]
    assert train.images[2].flatten().tolist() == [(i + 1) % 256 for i in range(3072)]
    assert float(train[0][0].min()) == -1.0 and float(train[0][0].max()) == 1.0
    torch.manual_seed(0)
    augmented = source.train_set()[0][0]
    assert augmented.shape == (3, 32, 32) and not torch.equal(augmented, train[0][0])


def python2_batch() -> bytes:
    """Hand-written opcodes as Python 2 and numpy 1 wrote the original files (protocol 2, str = bytes)."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    pixels = bytes(range(256)) * 12
    data = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
        b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
        b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + struct.pack("<I", len(pixels)) + pixels + b"tb"
    )
    return b"\x80\x02}(" + text(b"data") + data + text(b"labels") + b"]K\x06a" + b"u."


def test_cifar_batches_as_python_2_wrote_them(tmp_path):
    (tmp_path / "test_batch").write_bytes(python2_batch())
    test = open_dataset("cifar10", tmp_path).test_set()
    assert test.labels.tolist() == [6]
    assert test.images.flatten()[:300].tolist() == [i % 256 for i in range(300)]


def test_cifar_accepts_numpy_integers_and_arrays_as_labels(tmp_path):
    pixels, _ = cifar_records(2, 0)
    for labels in ([np.int64(3), np.int64(4)], np.array([3, 4])):
        (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": pixels, "labels": labels}, protocol=2))
        assert open_dataset("cifar10", tmp_path).test_set().labels.tolist() == [3, 4]


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_pickled_code_never_runs(tmp_path, protocol):
    pixels, labels = cifar_records(2, 0)
    batch = {"data": pixels, "labels": labels, "extra": Malicious(tmp_path / "owned")}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, protocol=protocol))
    with pytest.raises(DatasetError, match=r"test_batch.*refers to .*mkdir"):
        open_dataset("cifar10", tmp_path).test_set()
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "payload",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"c__builtin__\ngetattr\n.",
        b"cnumpy\nload\n.",
        b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.",
    ],
)
def test_no_other_name_is_looked_up(tmp_path, payload):
    (tmp_path / "test_batch").write_bytes(payload)
    with pytest.raises(DatasetError, match="refers to"):
        open_dataset("cifar10", tmp_path).test_set()


def test_a_pickle_cannot_change_the_reader_itself(tmp_path):
    for name in (b"cnumpy.core.multiarray\nscalar\n", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n"):
        (tmp_path / "test_batch").write_bytes(name + b"(N}S'__defaults__'\n)stb.")
        with pytest.raises(DatasetError, match="test_batch"):
            open_dataset("cifar10", tmp_path).test_set()


def test_object_arrays_are_refused(tmp_path):
    array = np.array([None, "x"], dtype=object)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": array, "labels": [0]}))
    with pytest.raises(DatasetError, match=r"'O8' do not belong|without plain"):
        open_dataset("cifar10", tmp_path).test_set()


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        (b"", "test_batch"),
        (b"garbage", "test_batch"),
        (python2_batch()[:-400], "test_batch"),
        (pickle.dumps([1, 2]), "holds a list, not a dictionary"),
        (pickle.dumps({"labels": [1]}), "'data' must be bytes of shape"),
        (pickle.dumps({"data": np.zeros((2, 100), np.uint8), "labels": [1, 1]}), r"found uint8 \[2, 100\]"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.int64), "labels": [1, 1]}), r"found int64 \[2, 3072\]"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}), "2 images but 1 labels"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": ["a", "b"]}), "list of integers"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}), "list of integers, found NoneType"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}), "from 10 to 10"),
    ],
)
def test_damaged_cifar_batches_are_named(tmp_path, batch, says):
    (tmp_path / "test_batch").write_bytes(batch)
    with pytest.raises(DatasetError, match=says):
        open_dataset("cifar10", tmp_path).test_set()


def test_truncated_cifar_binary(tmp_path):
    write_cifar_binary(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=r"data_batch_3\.bin: 6145 bytes"):
        open_dataset("cifar10", tmp_path).train_set()


def test_missing_cifar(tmp_path):
    with pytest.raises(DatasetError, match=r"data_batch_1, .*Looked in: .*cifar-10-python\.tar\.gz"):
        open_dataset("cifar10", tmp_path).train_set()
    with pytest.raises(DatasetError, match="no data_dir was given"):
        open_dataset("cifar10").train_set()
    (tmp_path / "cifar-10-python.tar.gz").touch()
    with pytest.raises(DatasetError, match="still packed: tar -xzf"):
        open_dataset("cifar10", tmp_path).train_set()


def test_a_missing_cifar_batch_is_not_trained_without(tmp_path):
    write_cifar_python(tmp_path)
    (tmp_path / "data_batch_4").unlink()
    with pytest.raises(DatasetError, match="lacks data_batch_4"):
        open_dataset("cifar10", tmp_path).train_set()
