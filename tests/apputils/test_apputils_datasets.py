import builtins
import gzip
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from distiller_ng.apputils.datasets import DATASETS, InMemorySource, TensorImages, open_dataset
from distiller_ng.apputils.datasets.fashion_mnist import FashionMnist
from distiller_ng.apputils.datasets.synthetic import Synthetic
from distiller_ng.apputils.datasets.transforms import Normalize
from distiller_ng.errors import ArgumentError, DatasetError

SYSTEM_DIRS = FashionMnist.system_dirs


@pytest.fixture(autouse=True)
def _no_installed_files(monkeypatch):
    monkeypatch.setattr(FashionMnist, "system_dirs", ())


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


# ---------------------------------------------------------------------------------------------------- IDX files


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


# ---------------------------------------------------------------------------------------------------- CIFAR-10


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
