"""A small job that every integration must train exactly as a loop of our own does."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from distiller_ng import dict_config

SCHEDULE = {
    "pruners": {
        "agp": {
            "class": "AutomatedGradualPruner",
            "initial_sparsity": 0.1,
            "final_sparsity": 0.75,
            "weights": ["0.weight"],
        }
    },
    "regularizers": {"l1": {"class": "L1Regularizer", "reg_regims": {"2.weight": 0.05}}},
    "lr_schedulers": {"step": {"class": "StepLR", "step_size": 1, "gamma": 0.5}},
    "policies": [
        {"pruner": {"instance_name": "agp"}, "starting_epoch": 0, "ending_epoch": 3, "frequency": 1},
        {"regularizer": {"instance_name": "l1"}, "starting_epoch": 0, "ending_epoch": 4, "frequency": 1},
        {"lr_scheduler": {"instance_name": "step"}, "starting_epoch": 0, "ending_epoch": 4, "frequency": 1},
    ],
}
#: The network's structure changes in epoch 1, for checkpoints that others write.
SMALLER = {
    **SCHEDULE,
    "pruners": {"l2": {"class": "L2RankedStructureParameterPruner", "group_type": "Filters", "desired_sparsity": 0.5,
                       "weights": ["0.weight"]}},
    "extensions": {
        "thin": {"class": "FilterRemover", "thinning_func_str": "remove_filters"},
        "low_rank": {"class": "LowRankThinning", "layers": ["0"], "rank": 1},
    },
    "policies": [
        {"pruner": {"instance_name": "l2"}, "epochs": [0]},
        {"extension": {"instance_name": "thin"}, "epochs": [0]},
        {"extension": {"instance_name": "low_rank"}, "epochs": [1]},
        *SCHEDULE["policies"][1:],
    ],
}  # fmt: skip
PLATEAU = {
    "lr_schedulers": {"plateau": {"class": "ReduceLROnPlateau", "mode": "min", "factor": 0.1, "patience": 0}},
    "policies": [
        {"lr_scheduler": {"instance_name": "plateau"}, "starting_epoch": 0, "ending_epoch": 9, "frequency": 1}
    ],
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def samples() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(24, 6, generator=generator)
    return TensorDataset(inputs, (inputs.sum(1) > 0).long())


def loader() -> DataLoader:
    return DataLoader(samples(), batch_size=4)


def by_hand(epochs: int = 4, accumulate: int = 1, schedule: dict = SCHEDULE) -> nn.Sequential:
    """The network after training in the short form."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4, momentum=0.9)
    scheduler = dict_config(model, optimizer, schedule)
    for _ in scheduler.epochs(epochs):
        for inputs, labels in scheduler.minibatches(loader(), accumulate=accumulate):
            scheduler.backward(nn.functional.cross_entropy(model(inputs), labels))
            if scheduler.should_step:
                optimizer.step()
                optimizer.zero_grad()
    return model
