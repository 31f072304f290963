"""Two processes agree on ranges and steps, whatever each one sees."""

from datetime import timedelta

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from distiller_ng.quantization.activations import FakeLinearQuantization, LSQActivation


def _replica(rank, folder):
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    ema, lsq = FakeLinearQuantization(8, "ASYMMETRIC_UNSIGNED"), LSQActivation(None, 8)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(4, 4), ema, lsq))
    generator = torch.Generator().manual_seed(rank)
    for _ in range(3):
        model(torch.randn(8, 4, generator=generator) * (1 + rank)).sum().backward()
    state = {name: value.clone() for name, value in model.module.state_dict().items()}
    torch.save(state, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_replicas_agree(tmp_path):
    mp.spawn(_replica, args=(tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["1.iter_count"] == 3 and first["2.initialized"] == 1 and first["2.step"] != 1
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
