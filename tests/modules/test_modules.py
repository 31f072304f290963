"""Operations as modules: values, in-place behaviour, gradients and printing."""

import logging

import pytest
import torch

from distiller_ng.errors import ArgumentError
from distiller_ng.modules import (
    BatchMatmul,
    Chunk,
    Concat,
    EltwiseAdd,
    EltwiseDiv,
    EltwiseMult,
    EltwiseSub,
    Flatten,
    Matmul,
    Mean,
    Norm,
    Print,
    Split,
    Stack,
)


def tensors(*values):
    return [torch.tensor([float(v), float(v) + 1]) for v in values]


@pytest.mark.parametrize(
    ("module", "values", "expected"),
    [
        (EltwiseAdd, (1, 2, 3), [6.0, 9.0]),
        (EltwiseSub, (9, 2, 3), [4.0, 3.0]),
        (EltwiseMult, (2, 3, 4), [24.0, 60.0]),
        (EltwiseDiv, (9, 2), [4.5, 10 / 3]),
        (EltwiseAdd, (7,), [7.0, 8.0]),
    ],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_eltwise_folds_its_inputs_and_writes_only_where_told(module, values, expected, inplace):
    inputs = tensors(*values)
    before = [t.clone() for t in inputs]
    result = module(inplace=inplace)(*inputs)
    torch.testing.assert_close(result, torch.tensor(expected))
    if inplace:
        assert result is inputs[0]
    else:
        torch.testing.assert_close(inputs[0], before[0], rtol=0, atol=0)
    for given, kept in zip(inputs[1:], before[1:], strict=True):
        assert torch.equal(given, kept)


def test_eltwise_broadcasts_and_passes_gradients_to_every_input():
    a = torch.ones(2, 3, requires_grad=True)
    b = torch.full((3,), 2.0, requires_grad=True)
    EltwiseMult()(a, b).sum().backward()
    assert torch.equal(a.grad, torch.full((2, 3), 2.0))
    assert torch.equal(b.grad, torch.full((3,), 2.0))


def test_eltwise_needs_an_input():
    with pytest.raises(TypeError):
        EltwiseAdd()()


def test_matrix_products():
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])
    assert Matmul()(a, b).tolist() == [[11.0]]
    assert BatchMatmul()(a.expand(2, 1, 2), b.expand(2, 2, 1)).tolist() == [[[11.0]], [[11.0]]]
    with pytest.raises(RuntimeError):
        BatchMatmul()(a, b)


def test_grouping():
    x = torch.arange(5.0)
    assert Concat()(x[:1], x[1:3]).tolist() == [0.0, 1.0, 2.0]
    assert Concat(dim=1)(torch.zeros(2, 1), torch.ones(2, 2)).shape == (2, 3)
    assert [len(part) for part in Chunk(2)(x)] == [3, 2]
    assert [len(part) for part in Split(2)(x)] == [2, 2, 1]
    assert [len(part) for part in Split([4, 1])(x)] == [4, 1]
    assert [part.shape for part in Split(1, dim=1)(torch.zeros(3, 2))] == [(3, 1), (3, 1)]
    assert Stack()([x, x]).shape == (2, 5)
    assert Stack(dim=1)([x, x]).shape == (5, 2)


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        (Norm(), 13.0),
        (Norm(p=1), 19.0),
        (Norm(p=float("inf")), 12.0),
        (Norm(p=2, dim=1), [5.0, 12.0]),
        (Norm(dim=1, keepdim=True), [[5.0], [12.0]]),
        (Norm(p="nuc"), 17.0),
    ],
)
def test_norms(norm, expected):
    # Orthogonal rows of length 5 and 12, so the singular values are 5 and 12.
    x = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 12.0]])
    torch.testing.assert_close(norm(x), torch.tensor(expected))


def test_an_unknown_norm_is_refused():
    with pytest.raises(ArgumentError, match=r"'l2'.*'fro'"):
        Norm(p="l2")


def test_mean_and_flatten():
    x = torch.tensor([[1.0, 3.0], [2.0, 6.0]])
    assert Mean()(x).item() == 3.0
    assert Mean(dim=1)(x).tolist() == [2.0, 4.0]
    assert Mean(0, keepdim=True)(x).tolist() == [[1.5, 4.5]]
    assert Flatten()(torch.zeros(8, 50, 4, 4)).shape == (8, 800)


def test_print_reports_the_shape_and_changes_nothing(caplog):
    lines = []
    x = torch.zeros(2, 3)
    assert Print(lines.append)(x) is x
    assert lines == ["[2, 3]"]
    with caplog.at_level(logging.INFO, logger="distiller_ng.modules"):
        Print()(x)
    assert caplog.messages == ["[2, 3]"]


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (EltwiseAdd(), "EltwiseAdd()"),
        (EltwiseAdd(inplace=True), "EltwiseAdd(inplace=True)"),
        (Concat(dim=1), "Concat(dim=1)"),
        (Chunk(4, dim=1), "Chunk(chunks=4, dim=1)"),
        (Split((2, 3)), "Split([2, 3], dim=0)"),
        (Mean(1, keepdim=True), "Mean(1, keepdim=True)"),
    ],
)
def test_printed_form(module, text):
    assert repr(module) == text


def test_the_operations_can_be_exported():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.add, self.cat, self.flat = EltwiseAdd(), Concat(dim=1), Flatten()

        def forward(self, x):
            return self.flat(self.cat(self.add(x, x), x))

    x = torch.randn(2, 1, 2, 2)
    exported = torch.export.export(Net(), (x,), strict=False).module()
    assert torch.equal(exported(x), torch.cat([x + x, x], 1).flatten(1))
