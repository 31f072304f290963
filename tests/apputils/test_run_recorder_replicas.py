"""Two processes that train together leave one run folder, that of rank 0, with what one process would have left."""

from __future__ import annotations

import json

import pytest
import torch
from replicas import in_two_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import distiller_ng as distiller
from distiller_ng.reports.html import read_run

SCHEDULE = {
    "pruners": {"p": {"class": "AutomatedGradualPruner", "initial_sparsity": 0.2, "final_sparsity": 0.75,
                      "weights": ["0.weight"]}},
    "policies": [{"pruner": {"instance_name": "p"}, "starting_epoch": 0, "ending_epoch": 2}],
}  # fmt: skip


def recorded(folder, rank: int, *, together: bool):
    """Train on this rank's half of every batch, or on whole batches alone; the model."""
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    model = DistributedDataParallel(bare) if together else bare
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = distiller.dict_config(model, optimizer, SCHEDULE)
    run = distiller.record_run(folder, scheduler, facts={"rank": rank})
    x = torch.randn(6, 8, 8)
    batches = [(one[4 * rank : 4 * rank + 4] if together else one) for one in x]
    for epoch in scheduler.epochs(2):
        for batch in scheduler.minibatches(batches):
            optimizer.zero_grad()
            scheduler.backward(model(batch).square().mean())
            optimizer.step()
        run.log(top1=50.0 + epoch + 10 * rank)
    run.collect_activations(batches)
    run.close()
    return bare


def work(rank: int, folder) -> None:
    model = recorded(folder / ("run" if rank == 0 else "other"), rank, together=True)
    torch.save(model.state_dict(), folder / f"{rank}.pt")


@pytest.mark.slow
def test_rank_zero_records_what_all_train(tmp_path):
    in_two_processes(work, tmp_path)
    assert not (tmp_path / "other").exists()
    found = read_run(tmp_path / "run")
    assert found.is_finished and found.summary["rank"] == 0
    assert found.curves["Validation"]["Top1"] == [(1.0, 50.0), (2.0, 51.0)]
    assert found.summary["total_sparsity"] == 24 / 40  # 24 of 32, and none of the last layer's 8
    assert found.summary["model"]["after"]["macs"] == 40 and found.activations
    assert (tmp_path / "run" / "plan.json").exists()
    assert not [name for row in found.summary["layers"] if (name := row["name"]).startswith("module.")]
    mine, theirs = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)

    alone = recorded(tmp_path / "alone", 0, together=False).state_dict()
    assert all(torch.allclose(alone[name], mine[name], atol=1e-6) for name in mine)
    ours, single = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "alone"))
    for key in ("total_sparsity", "parameters", "top1_after", "status", "epochs_done"):
        assert ours[key] == single[key], key
