"""What ``docs/generate.py`` cannot find in docstrings: torch's learning-rate schedulers, and common arguments.

``LR_TEXTS`` says in a sentence what each scheduler does: ``e`` is the absolute epoch and ``base`` the optimizer's
learning rate before any scheduler. From ``LR_SAMPLES`` the library computes the values a page shows; a class without a
sample cannot be written in a schedule file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["ARGUMENTS", "EPOCHS", "LR_SAMPLES", "LR_TEXTS", "SETTLED"]

#: How many epochs of values a page shows.
EPOCHS = 8

_PYTHON_ONLY = """A function cannot be written in a file: build the object in Python and give it to a policy,
`LRPolicy(torch.optim.lr_scheduler.{name}(optimizer, my_function))`."""

LR_TEXTS: Mapping[str, str] = {
    "ChainedScheduler": "Several schedulers at once: each multiplies what the others leave.",
    "ConstantLR": "`base * factor` up to epoch `total_iters`, then `base`.",
    "CosineAnnealingLR": """Half a cosine wave from `base` to `eta_min` in `T_max` epochs, and up again after them:
`eta_min + (base - eta_min) * (1 + cos(pi * e / T_max)) / 2`.""",
    "CosineAnnealingWarmRestarts": """A cosine from `base` to `eta_min` that starts again every `T_0` epochs; each cycle
is `T_mult` times as long as the one before.""",
    "CyclicLR": """A triangle wave between `base_lr` and `max_lr`, `step_size_up` steps up and `step_size_down` steps
down. It drives the momentum too unless `cycle_momentum` is false. Give it `unit: step`.""",
    "ExponentialLR": "`base * gamma ** e`.",
    "LambdaLR": f"`base * lr_lambda(e)`. {_PYTHON_ONLY.format(name='LambdaLR')}",
    "LinearLR": """A straight line from `base * start_factor` to `base * end_factor` over `total_iters` epochs: a
warm-up.""",
    "MultiplicativeLR": f"Each epoch multiplies by `lr_lambda(e)`. {_PYTHON_ONLY.format(name='MultiplicativeLR')}",
    "MultiStepLR": "`base` times `gamma` for every milestone passed.",
    "OneCycleLR": """Up to `max_lr` in the first `pct_start` of `total_steps`, then down far below `base`; the last
value holds from then on. Made for steps: give it `unit: step` and the number of steps of the whole run.""",
    "PolynomialLR": "With torch's arguments the class is torch's: `base * (1 - e / total_iters) ** power`.",
    "ReduceLROnPlateau": """Multiplies the learning rate by `factor` when the validation result has not improved for
more than `patience` epochs. `mode` says which result: `min` (a loss) or `max` (an accuracy). The loop passes it at the
end of the epoch: `scheduler.report(min=loss)`, or `on_epoch_end(epoch, optimizer, metrics={'min': loss})`.""",
    "SequentialLR": "One scheduler after the other, each from its milestone on and counting from there.",
    "StepLR": "`base * gamma ** (e // step_size)`.",
}

LR_SAMPLES: Mapping[str, Mapping[str, Any]] = {
    "ChainedScheduler": {
        "schedulers": [{"class": "ConstantLR", "factor": 0.5, "total_iters": 2}, {"class": "StepLR", "step_size": 4}]
    },
    "ConstantLR": {"factor": 0.5, "total_iters": 3},
    "CosineAnnealingLR": {"T_max": 8, "eta_min": 0.0},
    "CosineAnnealingWarmRestarts": {"T_0": 2, "T_mult": 2},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3},
    "ExponentialLR": {"gamma": 0.9},
    "LinearLR": {"start_factor": 0.1, "total_iters": 5},
    "MultiStepLR": {"milestones": [3, 6], "gamma": 0.1},
    "MultiStepMultiGammaLR": {"milestones": [2, 4, 6], "gammas": [0.1, 0.1, 0.2]},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 8},
    "PolynomialLR": {"T_max": 8, "power": 2},
    "ReduceLROnPlateau": {"mode": "min", "factor": 0.5, "patience": 2},
    "SequentialLR": {
        "schedulers": [
            {"class": "LinearLR", "start_factor": 0.1, "total_iters": 3},
            {"class": "CosineAnnealingLR", "T_max": 5},
        ],
        "milestones": [3],
    },
    "StepLR": {"step_size": 3, "gamma": 0.1},
}

#: Meanings of arguments that several classes share, or whose docstrings only refer to a base class.
ARGUMENTS: Mapping[str, str] = {
    "weights": "Targets: names, `re:` patterns, `__ALL_PRUNABLE__`.",
    "group_type": "The structures that are ranked.",
    "desired_sparsity": "Share of structures to prune, 0..1; a `schedule` replaces it.",
    "initial_sparsity": "Sparsity in the first active epoch, 0..1.",
    "final_sparsity": "Sparsity in the last active epoch, 0..1.",
    "group_dependency": "`Leader`: the first of `weights` decides, all others get its map.",
    "group_size": "Structures are pruned in whole groups of this many neighbours.",
    "kwargs": "Of `Blocks`: `{block_shape: [repetitions, depth, 1, 1]}`.",
    "ranking_noise": "Probability that all magnitudes of a tensor are multiplied by random noise (exploration).",
    "ramp_slope_mult": "How much steeper the threshold rises from the ramp epoch on.",
    "sparsity_range": "`[low, high]`: the share of structures is drawn uniformly from it at every decision.",
    "low_thresh_mult": "Factor of the lower threshold: weights below it are pruned.",
    "hi_thresh_mult": "Factor of the upper threshold: weights above it come back.",
    "sparsity": "Fraction of zeros, 0..1.",
    "power": "Exponent of the features' magnitude in the map.",
    "temperature": "Divides the logits before the softmax; above 0.",
    "reduction": "`batchmean`: mean over samples; `mean`: over all elements (smaller by the number of classes).",
    "train_size": "Number of training images.",
    "test_size": "Number of test images.",
    "reg_regims": "Parameter -> strength, or strength and group type.",
    "threshold_criteria": "How a group's magnitude is measured when it is compared with the strength.",
}

#: Arguments that mean the same everywhere, whatever words a docstring has for them.
SETTLED = frozenset({"weights", "desired_sparsity", "initial_sparsity", "final_sparsity"})
