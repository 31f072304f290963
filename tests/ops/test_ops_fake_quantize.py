"""The fake-quantize operator: torch's own as reference, gradients, layouts, dtypes, export and compile."""

import pytest
import torch
from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.fake_quantize import fake_quantize, fake_quantize_with
from distiller_ng.ops.linear_quantization import LinearQuantMode, QuantizationParameters, dequantize, quantize

MODES = list(LinearQuantMode)
X = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(1)) * 3
PER_TENSOR = (torch.tensor(0.125), torch.tensor(9, dtype=torch.uint8))
PER_CHANNEL = (torch.tensor([0.25, 0.125, 0.5]), torch.tensor([0, -5, 7], dtype=torch.int8))


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_it_quantizes_and_dequantizes(bits, mode, axis):
    params = QuantizationParameters.of_tensor(X, bits, mode, axis=axis)
    before = X.clone()
    assert torch.equal(fake_quantize_with(X, params), dequantize(quantize(X, params), params))
    assert torch.equal(X, before)


def test_values_and_gradients_of_torch():
    ours, theirs = X.clone().requires_grad_(), X.clone().requires_grad_()
    grad = torch.randn(X.shape, generator=torch.Generator().manual_seed(2))
    out = fake_quantize(ours, *PER_TENSOR, qmin=0, qmax=31)
    expected = torch.fake_quantize_per_tensor_affine(theirs, 0.125, 9, 0, 31)
    assert torch.equal(out, expected)
    out.backward(grad), expected.backward(grad)
    assert torch.equal(ours.grad, theirs.grad) and 0 < (ours.grad == 0).float().mean() < 1


def test_values_and_gradients_of_torch_per_channel():
    ours, theirs = X.clone().requires_grad_(), X.clone().requires_grad_()
    scale, zero_point = PER_CHANNEL
    out = fake_quantize(ours, scale, zero_point, 1, qmin=-8, qmax=7)
    expected = torch.fake_quantize_per_channel_affine(theirs, scale, zero_point.int(), 1, -8, 7)
    assert torch.equal(out, expected)
    out.sum().backward(), expected.sum().backward()
    assert torch.equal(ours.grad, theirs.grad) and 0 < (ours.grad == 0).float().mean() < 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_the_ends_of_the_range_keep_their_gradient(mode, bits):
    for seed in range(20):
        x = (torch.randn(50, generator=torch.Generator().manual_seed(seed)) * 3).requires_grad_()
        params = QuantizationParameters.of_tensor(x, bits, mode)
        fake_quantize_with(x, params).sum().backward()
        assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [24, 31, 32])
def test_very_many_bits_change_next_to_nothing(mode, bits):
    for x in (X, X.abs(), -X.abs()):
        found = fake_quantize_with(x, QuantizationParameters.of_tensor(x, bits, mode))
        torch.testing.assert_close(found, x, rtol=0, atol=2e-6)


def test_known_values():
    values = torch.tensor([0.25, 0.75, -0.25, 0.3, -7.0, 99.0])  # halves go to even
    found = fake_quantize(values, torch.tensor([0.5]), torch.tensor([0], dtype=torch.int8), qmin=-8, qmax=7)
    assert found.tolist() == [0.0, 1.0, 0.0, 0.5, -4.0, 3.5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes(dtype):
    x = X.to(dtype, copy=True).requires_grad_()
    out = fake_quantize(x, *PER_TENSOR, qmin=0, qmax=255)
    assert out.dtype == dtype
    torch.testing.assert_close(
        out.double(), fake_quantize(x.double(), *PER_TENSOR, qmin=0, qmax=255), atol=0.06, rtol=0
    )
    out.sum().backward()
    assert x.grad.dtype == dtype


@pytest.mark.parametrize(
    "x",
    [
        X.to(memory_format=torch.channels_last),
        X.transpose(1, 3).contiguous().transpose(1, 3),
        X[:, :, ::2],
        X[:1].expand(4, -1, -1, -1),
        X[:0],
    ],
)
def test_layouts(x):
    found = fake_quantize(x, *PER_CHANNEL, 1, qmin=-128, qmax=127)
    assert torch.equal(found, fake_quantize(x.contiguous(), *PER_CHANNEL, 1, qmin=-128, qmax=127))
    if x.is_contiguous(memory_format=torch.channels_last):
        assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "arguments", [(*PER_TENSOR, None, 0, 255), (*PER_CHANNEL, 1, -128, 127), (*PER_CHANNEL, 1, -8, 7)]
)
def test_torch_accepts_the_operator(arguments):
    for x in (X, X.to(memory_format=torch.channels_last), X.half()):
        inputs = (x.clone().requires_grad_(), *arguments)
        torch.library.opcheck(torch.ops.distiller_ng.fake_quantize.default, inputs)


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("scale", torch.tensor([0.02, 0.03, 0.02, 0.01]))
        self.register_buffer("zero_point", torch.zeros(4, dtype=torch.int8))
        self.register_buffer("x_scale", torch.tensor([0.05]))
        self.register_buffer("x_zero_point", torch.tensor([128], dtype=torch.uint8))

    def forward(self, x):
        x = fake_quantize(x, self.x_scale, self.x_zero_point, qmin=0, qmax=255)
        weight = fake_quantize(self.conv.weight, self.scale, self.zero_point, 0, qmin=-127, qmax=127)
        return nn.functional.conv2d(x, weight, self.conv.bias)


def test_export_keeps_one_node_each():
    net = _Net().eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (X,), dynamic_shapes={"x": {0: batch}})
    names = [str(node.target) for node in program.graph.nodes]
    assert names.count("distiller_ng.fake_quantize.default") == 2
    assert torch.equal(program.module()(X[:2]), net(X[:2]))


def test_compiled_graphs_train():
    torch.compiler.reset()
    net = _Net()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), net(X))
    compiled(X).square().sum().backward()
    first = net.conv.weight.grad.clone()
    net.zero_grad()
    net(X).square().sum().backward()
    torch.testing.assert_close(first, net.conv.weight.grad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X.long()}, "floating point"),
        ({"zero_point": torch.tensor(0.0)}, "int8 or uint8"),
        ({"zero_point": torch.tensor(0, dtype=torch.int8)}, "does not fit torch.int8"),
        ({"qmin": 5, "qmax": 5}, "range 5 .. 5"),
        ({"scale": torch.ones(3)}, "without an axis"),
        ({"axis": 1}, "3 values along axis 1"),
        ({"axis": 4}, "axis 4"),
    ],
)
def test_refusals(change, message):
    arguments = {"x": X, "scale": PER_TENSOR[0], "zero_point": PER_TENSOR[1], "qmin": 0, "qmax": 255, **change}
    with pytest.raises(ArgumentError, match=message):
        fake_quantize(**arguments)
