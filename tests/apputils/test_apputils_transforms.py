import pickle

import pytest
import torch

from distiller_ng.apputils.datasets.transforms import Compose, Normalize, RandomCrop, RandomHorizontalFlip
from distiller_ng.errors import ArgumentError


def test_normalize_gives_the_documented_values_and_leaves_its_input_alone():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    out = Normalize((0.5,), (0.5,))(pixels)
    assert out.dtype == torch.float32
    assert out.flatten().tolist() == pytest.approx([-1.0, -0.6, 1.0])
    assert pixels.flatten().tolist() == [0, 51, 255]


def test_normalize_does_not_write_into_float_input():
    images = torch.full((1, 1, 2, 2), 255.0)
    Normalize((0.5,), (0.5,))(images)
    assert images.unique().tolist() == [255.0]


def test_normalize_one_value_a_channel():
    out = Normalize((0.0, 0.5), (1.0, 0.25), scale=16.0)(torch.full((1, 2, 1, 1), 8, dtype=torch.uint8))
    assert out.flatten().tolist() == [0.5, 0.0]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (((0.5,), (0.5, 0.5)), "std"),
        (((0.5,), (0.0,)), "std"),
        (((0.5,), (1.0,), 0.0), "scale"),
    ],
)
def test_normalize_refuses(arguments, name):
    with pytest.raises(ArgumentError) as caught:
        Normalize(*arguments)
    assert caught.value.argument == (name,)


def test_random_crop_shifts_each_image_on_its_own_and_fills_with_black():
    torch.manual_seed(0)
    images = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3).expand(300, 1, 3, 3)
    out = RandomCrop(1)(images)
    assert out.shape == images.shape and out.dtype == torch.uint8
    seen = {tuple(image.flatten().tolist()) for image in out}
    expected = set()
    padded = torch.zeros(5, 5, dtype=torch.uint8)
    padded[1:4, 1:4] = images[0, 0]
    for top in range(3):
        for left in range(3):
            expected.add(tuple(padded[top : top + 3, left : left + 3].flatten().tolist()))
    assert seen == expected


def test_random_crop_moves_all_channels_together():
    torch.manual_seed(1)
    images = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4).expand(50, 3, 4, 4)
    out = RandomCrop(2)(images)
    assert torch.equal(out[:, 0], out[:, 1]) and torch.equal(out[:, 0], out[:, 2])
    assert not torch.equal(out[0], out[1]) or not torch.equal(out[1], out[2])


def test_random_crop_of_zero_is_the_identity():
    images = torch.randint(255, (4, 1, 3, 3), dtype=torch.uint8)
    assert torch.equal(RandomCrop(0)(images), images)


@pytest.mark.parametrize(("probability", "row"), [(1.0, [3, 2, 1]), (0.0, [1, 2, 3])])
def test_flip_always_and_never(probability, row):
    images = torch.tensor([1, 2, 3], dtype=torch.uint8).view(1, 1, 1, 3)
    assert RandomHorizontalFlip(probability)(images).flatten().tolist() == row


def test_flip_half_of_the_images():
    torch.manual_seed(0)
    images = torch.tensor([1, 2], dtype=torch.uint8).view(1, 1, 1, 2).expand(1000, 1, 1, 2)
    flipped = (RandomHorizontalFlip()(images)[:, 0, 0, 0] == 2).sum().item()
    assert 430 < flipped < 570


@pytest.mark.parametrize("wrong", [lambda: RandomCrop(-1), lambda: RandomHorizontalFlip(1.5)])
def test_random_transforms_refuse(wrong):
    with pytest.raises(ArgumentError):
        wrong()


def test_randomness_is_torchs_generator_alone_and_transforms_can_be_sent_to_workers():
    chain = pickle.loads(pickle.dumps(Compose((RandomCrop(2), RandomHorizontalFlip(), Normalize((0.5,), (0.5,))))))
    images = torch.randint(255, (8, 3, 6, 6), dtype=torch.uint8)
    torch.manual_seed(7)
    first, second = chain(images), chain(images)
    torch.manual_seed(7)
    assert torch.equal(chain(images), first)
    assert not torch.equal(first, second)
