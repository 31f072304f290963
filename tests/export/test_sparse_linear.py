import copy

import pytest
import torch
from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.export.sparse_linear import SparseLinear, dense_linear_, sparse_linear_
from distiller_ng.quantization import DorefaQuantizer


def model(sparsity=0.99, size=512):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 4, bias=False)).eval()
    with torch.no_grad():
        net[0].weight.mul_(torch.rand_like(net[0].weight) > sparsity)
    return net


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(64, 512), (4, 16, 512)])
def test_sparse_layers_compute_the_same(shape):
    net, x = model(), torch.randn(shape)
    expected, keys = net(x), list(net.state_dict())
    report = sparse_linear_(net, x, seconds=0.05)
    assert report.taken == ["0"]
    assert report.rows[0].speedup > 1.1 and report.rows[0].rows == 64
    assert report.rows[0].sparsity == pytest.approx(0.99, abs=0.002)
    assert report.rows[1].reason == "its sparsity is below 0.8"
    assert isinstance(net[0], SparseLinear) and type(net[0]).__name__ == "SparseLinear"
    assert torch.allclose(net(x), expected, atol=1e-5)
    assert torch.allclose(net(x[:1]), expected[:1], atol=1e-5)
    assert list(net.state_dict()) == keys
    assert "compressed rows" in repr(net) and "Speed-up" in str(report)
    assert torch.allclose(copy.deepcopy(net)(x), expected, atol=1e-5)
    assert dense_linear_(net) == ["0"]
    assert type(net[0]) is nn.Linear and torch.equal(net(x), expected)


def test_training_computes_with_the_parameter():
    net, x = model(), torch.randn(64, 512)
    sparse_linear_(net, x, min_speedup=1e-6, seconds=0.0)
    net.train()(x).sum().backward()
    assert net[0].weight.grad is not None


def test_other_types_follow():
    net, x = model(), torch.randn(64, 512)
    sparse_linear_(net, x, min_speedup=1e-6, seconds=0.0)
    net.double()
    assert net(x.double()).dtype == torch.float64
    assert sparse_linear_(net, x.double(), min_speedup=1e-6, seconds=0.0).taken == ["0"]


def test_slow_ones_stay_dense():
    report = sparse_linear_(model(0.85), torch.randn(64, 512), min_speedup=1000, seconds=0.0)
    assert report.taken == []
    assert "x as fast, 1000x was asked for" in report.rows[0].reason


def test_why_layers_stay_dense():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Linear(4, 4)
            self.unused = nn.Linear(4, 4)
            self.attention = nn.MultiheadAttention(4, 1, batch_first=True)
            self.quantized = nn.Linear(4, 4)

        def forward(self, x):
            return self.attention(*[self.quantized(self.used(x))] * 3)[0]

    net = Odd().eval()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    bits = {"bits_weights": 8}
    DorefaQuantizer(net, optimizer, overrides={"quantized": bits}, bits_weights=None).prepare_model()
    reasons = {row.name: row.reason for row in sparse_linear_(net, torch.randn(2, 3, 4), min_sparsity=0.9).rows}
    assert reasons == {
        "used": "its sparsity is below 0.9",
        "unused": "it did not run on the example inputs",
        "attention.out_proj": "the attention around it computes with the weight itself",
        "quantized": "its weight is quantized",
    }
    half = nn.Sequential(nn.Linear(4, 4)).bfloat16()
    assert sparse_linear_(half, torch.zeros(1, 4).bfloat16()).rows[0].reason == "it computes in bfloat16"


def test_wrong_arguments():
    with pytest.raises(ArgumentError, match="min_sparsity is a fraction"):
        sparse_linear_(model(), torch.zeros(1, 512), min_sparsity=90)
    with pytest.raises(ArgumentError, match="min_speedup must be positive"):
        sparse_linear_(model(), torch.zeros(1, 512), min_speedup=0)
