import math

import pytest

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.optional import require


def test_require_returns_the_module():
    assert require("math", "onnx", "counting") is math


def test_require_says_what_to_install():
    with pytest.raises(
        ArgumentError, match=r"counting needs no_such_package \(.*\): pip install 'distiller_ng\[onnx\]'"
    ):
        require("no_such_package.part", "onnx", "counting")
