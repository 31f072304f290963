"""Models with unusual forwards, inputs, weights or wrappers, tiny: each function returns (model, example inputs)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune


def image(*shape):
    """Example inputs of a shape."""
    return (torch.randn(shape or (2, 3, 8, 6)),)


class Chomp(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return x[:, :, : -self.size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, i, o, dilation):
        super().__init__()
        pad = 2 * dilation
        self.net = nn.Sequential(
            nn.Conv1d(i, o, 3, padding=pad, dilation=dilation),
            Chomp(pad),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv1d(o, o, 3, padding=pad, dilation=dilation),
            Chomp(pad),
            nn.ReLU(),
        )
        self.downsample = nn.Conv1d(i, o, 1) if i != o else None

    def forward(self, x):
        return F.relu(self.net(x) + (x if self.downsample is None else self.downsample(x)))


class TCN(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.linear = (
            nn.Sequential(TemporalBlock(3, 8, 1), TemporalBlock(8, 8, 2), TemporalBlock(8, 10, 4)),
            nn.Linear(10, 4),
        )

    def forward(self, x):
        return F.log_softmax(self.linear(self.net(x)[:, :, -1]), dim=1)


def tcn():
    return TCN(), (torch.randn(2, 3, 20),)


def video():
    return nn.Sequential(
        nn.Conv3d(1, 6, 3, padding=1),
        nn.BatchNorm3d(6),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(6, 8, (3, 3, 1)),
        nn.InstanceNorm3d(8, affine=True),
        nn.PReLU(8),
        nn.Flatten(),
        nn.Linear(8 * 2 * 1 * 2, 5),
    ), (torch.randn(2, 1, 8, 6, 4),)


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.bn = nn.Linear(7, 12 * 2 * 3), nn.BatchNorm1d(72)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(12, 8, 4, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(True),
            nn.ConvTranspose2d(8, 3, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, z):
        return self.up(F.relu(self.bn(self.fc(z))).view(-1, 12, 2, 3))


def generator():
    return Generator(), (torch.randn(4, 7),)


@dataclass
class Output:
    logits: Tensor
    features: Tensor


class ManyInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(5, 8), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, batch, scale=1.0, *, extra=None):
        x = torch.relu(self.a(batch["left"])) * torch.sigmoid(self.b(batch["right"][0])) * scale
        x = x if extra is None else x + extra
        return self.head(x)


def many_inputs():
    return ManyInputs(), ({"left": torch.randn(3, 5), "right": [torch.randn(3, 4)]}, 2.0)


class ManyOutputs(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.body, self.a, self.b, self.kind = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 4, 1), kind

    def forward(self, x):
        x = F.leaky_relu(self.body(x), 0.1, inplace=True)
        a, b = self.a(x).relu(), self.b(x)
        if self.kind == "dataclass":
            return Output(a.mean((2, 3)), b)
        return {"a": a, "pair": (b, None, 3)} if self.kind == "dict" else [a, b.sigmoid()]


def outputs_dict():
    return ManyOutputs("dict"), image()


def outputs_dataclass():
    return ManyOutputs("dataclass"), image()


def _small(*, wrap=lambda layer: layer, width=8):
    """Two convolutions, the second wrapped, and a classifier."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.ReLU(),
        wrap(nn.Conv2d(width, 6, 3, padding=1)),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def weight_norm():
    return _small(wrap=parametrizations.weight_norm), image()


def old_weight_norm():
    return _small(wrap=nn.utils.weight_norm), image()


def spectral_norm():
    return _small(wrap=parametrizations.spectral_norm), image()


class Rounded(nn.Module):
    """Fake quantization with one scale, written by hand with a straight-through estimator."""

    def forward(self, w):
        scale = 0.05
        return w + (torch.clamp(torch.round(w / scale), -127, 127) * scale - w).detach()


class PerChannel(nn.Module):
    """A scale for each filter."""

    def __init__(self, n):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(n, 1, 1, 1) + 0.5)

    def forward(self, w):
        return w * self.scale


def parametrized_rounding():
    return _small(wrap=lambda c: (parametrize.register_parametrization(c, "weight", Rounded()), c)[1]), image()


def parametrized_scale():
    return _small(wrap=lambda c: (parametrize.register_parametrization(c, "weight", PerChannel(6)), c)[1]), image()


class MaskedConv(nn.Conv2d):
    """A mask buffer of the weight's shape."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.register_buffer("mask", (torch.rand_like(self.weight) > 0.3).float())

    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias, self.stride, self.padding)


def masked_conv():
    return _small(wrap=lambda c: MaskedConv(8, 6, 3, padding=1)), image()


class StandardizedConv(nn.Conv2d):
    """Weight standardization."""

    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


def standardized_conv():
    return _small(wrap=lambda c: StandardizedConv(8, 6, 3, padding=1)), image()


def pruned_by_torch():
    return _small(wrap=lambda c: prune.l1_unstructured(c, "weight", 0.5)), image()


def frozen_parameters():
    model = _small()
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return model, image()


def data_parallel():
    return nn.DataParallel(_small()), image()


class NoGradBranch(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Linear(6, 2)

    def forward(self, x):
        with torch.no_grad():
            x = torch.relu(self.stem(x))
            scale = x.mean((2, 3), keepdim=True)
        x = F.dropout(self.body(x * scale), 0.2, training=self.training)
        return self.head(x.mean((2, 3)))


def no_grad_branch():
    return NoGradBranch(), image()


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.fc = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 1),
            nn.Conv2d(8, 8, 1),
            nn.Linear(8 * 48, 3),
        )

    def forward(self, x):
        x = self.a(x).relu_()
        y = self.b(x)
        y += x
        y.mul_(0.5).add_(self.c(x)).clamp_(min=0)
        return self.fc(torch.flatten(y, 1))


def in_place():
    return InPlace(), image()


def bfloat16():
    return _small().bfloat16(), (torch.randn(2, 3, 8, 6).bfloat16(),)


def channels_last():
    return _small().to(memory_format=torch.channels_last), (
        torch.randn(2, 3, 8, 6).contiguous(memory_format=torch.channels_last),
    )


class Buffers(nn.Module):
    """Buffers with a channel dimension, integer buffers, sizes in tuples."""

    def __init__(self):
        super().__init__()
        self.conv, self.out, self.size = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 12, 3), (8, 12)
        self.register_buffer("mean", torch.rand(1, 8, 1, 1))
        self.register_buffer("order", torch.arange(12))
        self.register_buffer("scale", torch.ones(1), persistent=False)

    def forward(self, x):
        x = F.max_pool2d((self.conv(x) - self.mean) * self.scale, 2)
        x = x.reshape(x.shape[0], *self.size)[:, :, self.order]
        return self.out(x.reshape(x.shape[0], -1))


def buffers():
    return Buffers(), image()
