"""What models are told about a data set is what its images are."""

from __future__ import annotations

import pytest

from distiller_ng.apputils.datasets import open_dataset
from distiller_ng.ops.dataset_shapes import dataset_names, dataset_shape


@pytest.mark.parametrize("name", [*dataset_names(), "synthetic:1x5x7:3"])
def test_shapes_agree(name):
    source, shape = open_dataset(name), dataset_shape(name)
    assert (1, *source.image_shape) == shape.input_shape
    assert source.num_classes == shape.num_classes
