"""Two processes that train together, for tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def in_two_processes(work: Callable[[int, Path], None], folder: Path) -> None:
    """Run ``work(rank, folder)`` in each; a failing one fails the test with its traceback."""
    mp.spawn(_one, args=(work, folder), nprocs=2)


def _one(rank: int, work: Callable[[int, Path], None], folder: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    work(rank, folder)
    gc.collect()  # replicas refer to themselves; one that outlives its group may abort the process as it ends
    dist.barrier()
    dist.destroy_process_group()
