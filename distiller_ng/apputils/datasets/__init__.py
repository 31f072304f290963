"""Data sets for image classification, one a file, opened by name: ``open_dataset("digits").train_set()`` (layer 5)."""

from distiller_ng.apputils.datasets.base import (
    DATASETS,
    ImageSet,
    ImageSource,
    InMemorySource,
    TensorImages,
    open_dataset,
)

__all__ = ["DATASETS", "ImageSet", "ImageSource", "InMemorySource", "TensorImages", "open_dataset"]
