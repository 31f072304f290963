"""Two processes agree on ranges and steps, whatever each one sees."""

import pytest
import torch
from replicas import in_two_processes
from torch import nn

from distiller_ng.quantization.activations import FakeLinearQuantization, LSQActivation


def _replica(rank, folder):
    ema, lsq = FakeLinearQuantization(8, "ASYMMETRIC_UNSIGNED"), LSQActivation(None, 8)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(4, 4), ema, lsq))
    generator = torch.Generator().manual_seed(rank)
    for _ in range(3):
        model(torch.randn(8, 4, generator=generator) * (1 + rank)).sum().backward()
    state = {name: value.clone() for name, value in model.module.state_dict().items()}
    torch.save(state, folder / f"{rank}.pt")


@pytest.mark.slow
def test_replicas_agree(tmp_path):
    in_two_processes(_replica, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["1.iter_count"] == 3 and first["2.initialized"] == 1 and first["2.step"] != 1
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
