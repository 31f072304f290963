"""Building models by name (layer 5)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.models._zoo import build, designed_for, zoo_names
from distiller_ng.models.weights import load_weights_
from distiller_ng.ops.dataset_shapes import DatasetShape, dataset_key, dataset_shape

__all__ = ["create_model", "is_inception", "model_names", "register_user_model"]

_INCEPTION = frozenset({"inception_v3", "googlenet", "inceptionv3", "inceptionv4", "inceptionresnetv2"})
_USER_MODELS: dict[tuple[str, str], Callable[[], nn.Module]] = {}


def create_model(
    pretrained: bool | str | os.PathLike[str],
    dataset: str,
    arch: str,
    parallel: bool = True,
    device_ids: int | Sequence[int] | None = None,
) -> nn.Module:
    """A model of the zoo, or a registered one, for a data set's channels, image size and classes; on the CPU.

    ``create_model(False, "cifar10", "resnet20_cifar")`` is Distiller's ResNet-20. Any architecture can be built for any
    data set: ``create_model(False, "fashion-mnist", "resnet20_cifar")`` reads ``[N, 1, 28, 28]`` and gives ``[N, 10]``.
    ``pretrained`` is False or a local file of weights. ``parallel`` and ``device_ids`` are accepted because Distiller's
    scripts pass them, and have no effect: the model is never wrapped in DataParallel, so parameters have their plain
    names; move it with ``model.to(device)`` and distribute it with DistributedDataParallel.

    The model carries the plain attributes ``arch``, ``dataset``, ``is_parallel`` (False) and ``input_shape``
    (``(1, C, H, W)``), as Distiller's do. Raises :class:`ArgumentError` (a ``ValueError``) for an unknown data set,
    architecture or file and for ``pretrained=True``, :class:`CheckpointError` for a file that does not fit.
    """
    del parallel, device_ids
    shape = dataset_shape(dataset)
    key = dataset_key(dataset)
    weights = _weights_file(pretrained)
    model = _construct(key, arch, shape)
    if weights is not None:
        load_weights_(model, weights)
    described = {"arch": arch, "dataset": key, "is_parallel": False, "input_shape": shape.input_shape}
    for name, value in described.items():
        setattr(model, name, value)
    return model


def register_user_model(arch: str, dataset: str, model: Callable[[], nn.Module]) -> None:
    """Let :func:`create_model` find your own model: ``register_user_model("mynet", "cifar10", MyNet)``.

    ``model`` is the class, or any callable without arguments that returns a new model for that data set. Registering
    the same one again does nothing. Raises :class:`ArgumentError` for an unknown data set, a model instance instead of
    its class, and a name that is taken.
    """
    dataset_shape(dataset)
    if isinstance(model, nn.Module) or not callable(model):
        raise ArgumentError(
            f"model must be a class or a function that builds the model, not a {type(model).__name__}"
            f"{' instance: write register_user_model(arch, dataset, lambda: MyNet())' if callable(model) else ''}",
            argument=("model",),
        )
    if arch in zoo_names():
        raise ArgumentError(f"{arch!r} is an architecture of the zoo; choose another name", argument=("arch",))
    key = (dataset_key(dataset), arch)
    known = _USER_MODELS.setdefault(key, model)
    if known is not model:
        raise ArgumentError(f"a model {arch!r} is already registered for {key[0]!r}: {known!r}", argument=("arch",))


def model_names(dataset: str | None = None) -> list[str]:
    """Names :func:`create_model` knows, sorted; for a data set, only those designed or registered for its images."""
    if dataset is None:
        return sorted({*zoo_names(), *(arch for _, arch in _USER_MODELS)})
    return sorted({*designed_for(dataset), *_registered_for(dataset_key(dataset))})


def is_inception(arch: str | None) -> bool:
    """Whether an architecture has auxiliary outputs, which training loops must add to the loss: "googlenet" has."""
    return arch in _INCEPTION


def _registered_for(key: str) -> list[str]:
    return [arch for home, arch in _USER_MODELS if home == key]


def _construct(key: str, arch: str, shape: DatasetShape) -> nn.Module:
    constructor = _USER_MODELS.get((key, arch))
    if constructor is None:
        elsewhere = [home for home, name in _USER_MODELS if name == arch]
        if elsewhere:
            raise ArgumentError(
                f"the model {arch!r} is registered for {', '.join(elsewhere)}, not for {key}", argument=("arch",)
            )
        return build(arch, shape, others=_registered_for(key))
    model = constructor()
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"the constructor registered for {arch!r} returned a {type(model).__name__}, not a torch.nn.Module",
            argument=("arch",),
        )
    return model


def _weights_file(pretrained: bool | str | os.PathLike[str]) -> Path | None:
    if pretrained is False or pretrained is None:
        return None
    if isinstance(pretrained, str | os.PathLike) and os.fspath(pretrained):
        return Path(pretrained).expanduser()
    raise ArgumentError(
        f"pretrained={pretrained!r}: nothing is downloaded. Write False for fresh weights, or the path of a local file "
        "with a state dict, e.g. create_model('resnet20.pt', 'cifar10', 'resnet20_cifar')",
        argument=("pretrained",),
    )
