import numpy as np
import pytest
import torch
from PIL import Image

from distiller_ng.apputils.datasets import open_dataset
from distiller_ng.apputils.datasets._photos import RandomResizedCrop, ResizeCenterCrop
from distiller_ng.apputils.datasets.imagenet import ImageNet
from distiller_ng.errors import ArgumentError, DatasetError


def write_photo(path, *, size=(40, 30), color=(0, 0, 0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.fixture
def folder(tmp_path):
    for part in ("train", "val"):
        for name, color in (("cat", (255, 0, 0)), ("dog", (0, 255, 0))):
            write_photo(tmp_path / part / name / "a.png", color=color)
            write_photo(tmp_path / part / name / "deep" / "b.JPEG", color=color)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "cat" / "._a.png").write_text("what some systems leave behind")
    return tmp_path


def test_folders_are_classes_in_sorted_order(folder):
    source = open_dataset("imagenet", folder)
    train, test = source.train_set(), source.test_set()
    assert train.labels.tolist() == [0, 0, 1, 1] and test.labels.tolist() == [0, 0, 1, 1]
    assert [path.name for path in train.paths] == ["a.png", "b.JPEG", "a.png", "b.JPEG"]
    image, label = test[2]
    assert image.shape == (3, 224, 224) and image.dtype == torch.float32 and label == 1
    expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0 - 0.406) / 0.225]
    assert image[:, 100, 100].tolist() == pytest.approx(expected, abs=1e-5)
    assert train[0][0].shape == (3, 224, 224)


def test_smaller_crops_for_small_networks(folder):
    source = ImageNet(folder, crop=16, resize=20)
    assert source.image_shape == (3, 16, 16)
    assert source.test_set()[0][0].shape == (3, 16, 16)
    assert source.train_set(augment=False)[0][0].shape == (3, 16, 16)


def test_grey_and_palette_images_become_rgb(tmp_path):
    for part in ("train", "val"):
        (tmp_path / part / "x").mkdir(parents=True)
        Image.new("L", (20, 20), 255).save(tmp_path / part / "x" / "grey.png")
        Image.new("P", (20, 20)).save(tmp_path / part / "x" / "palette.png")
    test = ImageNet(tmp_path, crop=4, resize=4).test_set()
    assert [test[i][0].shape[0] for i in range(2)] == [3, 3]
    assert test[0][0][0, 0, 0].item() == pytest.approx((1 - 0.485) / 0.229, abs=1e-5)


def test_training_crops_follow_torchs_generator(folder):
    gradient = np.arange(40 * 30 * 3, dtype=np.uint32).reshape(30, 40, 3) % 256
    Image.fromarray(gradient.astype(np.uint8)).save(folder / "train" / "cat" / "a.png")
    train = ImageNet(folder, crop=8, resize=10).train_set()
    torch.manual_seed(3)
    first, second = train[0][0], train[0][0]
    torch.manual_seed(3)
    assert torch.equal(train[0][0], first) and not torch.equal(first, second)


def test_center_crop_takes_the_documented_part():
    pixels = np.zeros((512, 1024, 3), np.uint8)
    pixels[..., 0] = (np.arange(1024) // 4)[None, :]
    out = ResizeCenterCrop(256, 224)(Image.fromarray(pixels))
    assert out.shape == (3, 224, 224)
    # Column c of the scaled photo averages source columns 2c and 2c+1, both of value c // 2: columns 144..367 stay.
    assert out[0, 0, 2].item() == pytest.approx(73, abs=1)
    assert out[0, 0, -2].item() == pytest.approx(183, abs=1)


def test_resize_keeps_the_aspect_of_either_orientation():
    for size in ((64, 32), (32, 64), (33, 33)):
        assert ResizeCenterCrop(16, 12)(Image.new("RGB", size)).shape == (3, 12, 12)


def test_random_part_obeys_area_and_shape():
    torch.manual_seed(0)
    crop = RandomResizedCrop(8)
    for _ in range(200):
        left, top, right, bottom = crop._box(100, 80)
        width, height = right - left, bottom - top
        assert left >= 0 and top >= 0 and right <= 100 and bottom <= 80
        assert 0.07 <= width * height / 8000 <= 1.0
        assert 0.70 <= width / height <= 1.40


def test_random_part_of_a_strip_is_its_middle():
    crop = RandomResizedCrop(8, scale=(1.0, 1.0))
    assert crop._box(400, 100) == (133, 0, 266, 100)
    assert crop._box(100, 400) == (0, 133, 100, 266)


def test_crop_larger_than_resize():
    with pytest.raises(ArgumentError, match=r"crop must lie in 1\.\.resize"):
        ImageNet(crop=300, resize=256)


def test_missing_folders_say_what_is_expected(tmp_path):
    with pytest.raises(DatasetError, match="no data_dir was given"):
        open_dataset("imagenet").test_set()
    with pytest.raises(DatasetError, match=r"there is no folder .*val.*one folder a class"):
        open_dataset("imagenet", tmp_path).test_set()
    (tmp_path / "val").mkdir()
    with pytest.raises(DatasetError, match="holds no class folders"):
        open_dataset("imagenet", tmp_path).test_set()
    (tmp_path / "val" / "cat").mkdir()
    with pytest.raises(DatasetError, match="cat holds no image"):
        open_dataset("imagenet", tmp_path).test_set()


def test_classes_must_agree_between_train_and_val(folder):
    write_photo(folder / "val" / "bird" / "a.png")
    with pytest.raises(DatasetError, match="only one of them has bird"):
        open_dataset("imagenet", folder).train_set()


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n" + b"\x00" * 20])
def test_unreadable_images_are_named(folder, content):
    (folder / "val" / "cat" / "a.png").write_bytes(content)
    with pytest.raises(DatasetError, match=r"cat.a\.png: not a readable image"):
        open_dataset("imagenet", folder).test_set()[0]


def test_truncated_jpeg_is_named(folder):
    path = folder / "val" / "cat" / "deep" / "b.JPEG"
    noise = np.random.RandomState(0).randint(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-800])
    with pytest.raises(DatasetError, match=r"b\.JPEG: not a readable image"):
        open_dataset("imagenet", folder).test_set()[1]


def test_without_pillow(folder, monkeypatch):
    import builtins

    real = builtins.__import__

    def refusing(name, *args, **kwargs):
        if name.split(".")[0] == "PIL":
            raise ImportError("No module named 'PIL'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refusing)
    with pytest.raises(DatasetError, match="pip install pillow"):
        open_dataset("imagenet", folder).test_set()
