"""Every shape of schedule that Distiller's examples have loads on its model and runs its first, second and last epochs.

Each file is run for its policies' first, second and last active epochs, two minibatches each, with made-up gradients.
What masks, penalties and learning rates must be is computed again in ``golden_expectations``.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import yaml
from golden_expectations import CHECKS, FIRST_ONLY, lasso_groups, learning_rate, penalty, share
from golden_models import HEAVY, SCHEDULES, builder, example_inputs

from distiller_ng.config import file_config
from distiller_ng.core.policy import PolicyLoss
from distiller_ng.errors import ScheduleWarning

NAMES = sorted(path.stem for path in SCHEDULES.glob("*.yaml"))
SCHEMA = Path(__file__).parents[2] / "schedules" / "schedule.schema.json"
BASE_LR = 0.1
MINIBATCHES = 2
PLATEAU_EPOCHS = 12  # patience 3 and cooldown 3, twice
UNUSED = {
    "resnet20_slimming": ["regularizer 'scale_regularizer'"],
    "resnet50_filters_agp": ["pruner 'fine_pruner'", "pruner 'fc_pruner'"],
    "resnet50_filters_with_fc_agp": ["pruner 'fine_pruner'"],
    "vgg19_filter_rank": ["lr scheduler 'exp_finetuning_lr'"],
}


def active_epochs(policy: Mapping[str, Any]) -> list[int]:
    if "epochs" in policy:
        return list(policy["epochs"])
    return list(range(policy["starting_epoch"], policy["ending_epoch"], policy["frequency"]))


def window(policy: Mapping[str, Any]) -> tuple[int, int, int]:
    epochs = active_epochs(policy)
    return (epochs[0], policy.get("ending_epoch", epochs[-1] + 1), policy.get("frequency", 1))


class Run:
    """One golden file on its model."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.content = yaml.safe_load((SCHEDULES / f"{name}.yaml").read_text())
        self.model = builder(name)()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=BASE_LR, momentum=0.9)
        self.inputs = example_inputs(name)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            path = SCHEDULES / f"{name}.yaml"
            self.scheduler = file_config(
                self.model, self.optimizer, path, example_inputs=self.inputs, compat="distiller"
            )
        self.warnings = [str(w.message) for w in caught if issubclass(w.category, ScheduleWarning)]
        self.first_weights: dict[str, dict[str, torch.Tensor]] = {}

    def policies(self, key: str) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """Pairs of a policy and the definition it names."""
        section = f"{key}s"
        named = [policy for policy in self.content["policies"] if key in policy]
        return [(policy, self.content[section][policy[key]["instance_name"]]) for policy in named]

    def epochs(self) -> list[int]:
        """The first, second and last active epoch of each policy; more for one that waits for a plateau."""
        chosen: set[int] = set()
        for policy in self.content["policies"]:
            epochs = active_epochs(policy)
            chosen |= {epochs[0], epochs[min(1, len(epochs) - 1)], epochs[-1]}
        for policy, definition in self.policies("lr_scheduler"):
            if definition["class"] == "ReduceLROnPlateau":
                chosen |= set(active_epochs(policy)[:PLATEAU_EPOCHS])
        if self.observes:
            chosen |= {min(chosen) - 1}
        return sorted(chosen)

    @property
    def observes(self) -> bool:
        return any("APoZ" in definition["class"] for _, definition in self.policies("pruner"))

    def weights(self, definition: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The parameters a definition names, as they are now."""
        names = definition.get("weights") or definition.get("sensitivities") or definition.get("reg_regims")
        return {n: self.scheduler.parameters[n].detach() for n in ([names] if isinstance(names, str) else names)}

    def run(self) -> None:
        twin = self.twin()
        for epoch in self.epochs():
            before = {id(d): {n: w.clone() for n, w in self.weights(d).items()} for _, d in self.due("pruner", epoch)}
            self.scheduler.on_epoch_begin(epoch)
            self.train(epoch, before)
            metrics = {"min": 1.0, "max": 50.0}
            rates = [group["lr"] for group in self.optimizer.param_groups]
            self.scheduler.on_epoch_end(epoch, self.optimizer, metrics=metrics)
            self.check_rate(epoch, rates[0], twin)

    def due(self, key: str, epoch: int) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
        return [(policy, d) for policy, d in self.policies(key) if epoch in active_epochs(policy)]

    def train(self, epoch: int, before: Mapping[int, Mapping[str, torch.Tensor]]) -> None:
        scheduler, optimizer = self.scheduler, self.optimizer
        for minibatch in range(MINIBATCHES):
            scheduler.on_minibatch_begin(epoch, minibatch, MINIBATCHES, optimizer)
            if minibatch == 0:
                for policy, definition in self.due("pruner", epoch):
                    self.check_masks(policy, definition, epoch, before[id(definition)])
            optimizer.zero_grad()
            if self.observes:
                self.model(*self.inputs)
            self.backward(epoch, minibatch)
            scheduler.before_parameter_optimization(epoch, minibatch, MINIBATCHES, optimizer)
            optimizer.step()
            scheduler.on_minibatch_end(epoch, minibatch, MINIBATCHES, optimizer)
        self.check_zeros(epoch)

    def backward(self, epoch: int, minibatch: int) -> None:
        """Gradients of the penalties, and a little of everything else."""
        parameters = list(self.model.parameters())
        loss = parameters[0].sum() * 1e-6
        expected = sum(penalty(d, list(self.weights(d).values())) for _, d in self.due("regularizer", epoch))
        result = self.scheduler.before_backward_pass(
            epoch, minibatch, MINIBATCHES, loss, self.optimizer, return_loss_components=True
        )
        assert isinstance(result, PolicyLoss)
        assert float(result.overall_loss.detach() - loss.detach()) == pytest.approx(expected, rel=1e-4, abs=1e-12)
        assert len(result.loss_components) == len(self.due("regularizer", epoch))
        result.overall_loss.backward()
        with torch.no_grad():
            for parameter in parameters:
                parameter.grad = (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).add_(1e-4)

    def check_masks(
        self, policy: Mapping[str, Any], definition: Mapping[str, Any], epoch: int, before: Mapping[str, torch.Tensor]
    ) -> None:
        if definition["class"] in FIRST_ONLY and epoch != active_epochs(policy)[0]:
            return
        owner = policy["pruner"]["instance_name"]  # other pruners' masks of the same weight are not looked at
        found = [self.scheduler.zeros_mask_dict[name].owners.get(owner) for name in before]
        masks = [torch.ones_like(w) if m is None else m for m, w in zip(found, before.values(), strict=True)]
        expected = share(definition, epoch, window(policy))
        CHECKS[definition["class"]](definition, masks, list(before.values()), expected)
        for name, mask in zip(before, masks, strict=True):
            weight = self.scheduler.parameters[name].detach()
            assert bool((weight[mask == 0] == 0).all()), f"{name} is not masked in the forward pass"

    def check_zeros(self, epoch: int) -> None:
        """After the step masked weights are zero (unless the mask is for forward passes only); groups are dropped."""
        for policy, definition in self.due("pruner", epoch):
            args = policy["pruner"].get("args", {})
            for name, weight in self.weights(definition).items():
                mask = self.scheduler.zeros_mask_dict[name].mask
                if args.get("discard_masks_at_minibatch_end"):
                    assert mask is None
                elif not args.get("mask_on_forward_only"):
                    assert bool((weight[mask == 0] == 0).all())
        for _, definition in self.due("regularizer", epoch):
            if definition.get("threshold_criteria") == "Mean_Abs":
                for weight, (strength, group_type) in zip(
                    self.weights(definition).values(), definition["reg_regims"].values(), strict=True
                ):
                    means = lasso_groups(weight, group_type).abs().mean(dim=1)
                    assert bool(((means == 0) | (means > strength * (1 - 1e-6))).all())

    # -- learning rates -------------------------------------------------------------------------------------------

    def twin(self) -> torch.optim.lr_scheduler.ReduceLROnPlateau | None:
        """torch's own scheduler on an optimizer of its own, to compare a plateau with."""
        for _, definition in self.policies("lr_scheduler"):
            if definition["class"] == "ReduceLROnPlateau":
                arguments = {key: value for key, value in definition.items() if key != "class"}
                other = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=BASE_LR)
                return torch.optim.lr_scheduler.ReduceLROnPlateau(other, **arguments)
        return None

    def check_rate(self, epoch: int, before: float, twin: Any) -> None:
        now = self.optimizer.param_groups[0]["lr"]
        due = self.due("lr_scheduler", epoch)
        if not due:
            assert now == before
        elif twin is not None:
            twin.step(1.0)
            assert now == twin.optimizer.param_groups[0]["lr"]
        else:
            assert now == pytest.approx(learning_rate(due[0][1], BASE_LR, epoch + 1), rel=1e-9)


def weighted(names: list[str]) -> list[Any]:
    return [pytest.param(n, marks=pytest.mark.slow) if n.startswith(HEAVY) else n for n in names]


@pytest.mark.parametrize("name", weighted(NAMES))
def test_first_second_and_last_active_epochs(name):
    run = Run(name)
    run.run()
    summary = run.scheduler.finish()
    for row in summary.parameters:
        if row.planned is not None and "dropfilter" not in name and "randomlevel" not in name:
            # Structures are counted whole, and other pruners' masks of the same weight come on top.
            assert row.achieved >= row.planned - 1 / min(size for size in row.shape if size > 1)


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith(HEAVY)])
def test_loading_changes_neither_model_nor_optimizer(name):
    model = builder(name)()
    optimizer = torch.optim.SGD(model.parameters(), lr=BASE_LR, momentum=0.9)
    weights = copy.deepcopy(model.state_dict())
    state = copy.deepcopy(optimizer.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        file_config(model, optimizer, SCHEDULES / f"{name}.yaml")
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
    assert optimizer.state_dict() == state


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith(HEAVY)])
def test_only_what_is_odd_is_warned_about(name):
    warned = Run(name).warnings
    unused = [text for text in warned if "no policy uses it" in text]
    assert len(unused) == len(UNUSED.get(name, []))
    assert all(any(label in text for text in unused) for label in UNUSED.get(name, []))
    duplicates = [text for text in warned if "repeated" in text]
    assert len(duplicates) == (2 if name == "resnet20_ssl_channels_training" else 0)
    overlaps = [text for text in warned if "both write" in text]
    assert not overlaps
    assert all("keep_mask has no effect" in text for text in set(warned) - set(unused) - set(duplicates))


@pytest.mark.parametrize("name", NAMES)
def test_the_editor_schema_accepts_it(name):
    content = yaml.safe_load((SCHEDULES / f"{name}.yaml").read_text())
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(content)


def test_the_last_of_two_equal_keys_counts():
    run = Run("resnet20_ssl_channels_training")
    policy = run.scheduler.schedule[0][0]
    assert policy.regularizer.reg_regims["module.layer1.0.conv1.weight"][0] == 0.002


def test_unscheduled_definitions_do_nothing():
    run = Run("vgg19_filter_rank")
    run.run()
    assert run.optimizer.param_groups[0]["lr"] == BASE_LR
    slim = Run("resnet20_slimming")
    assert [type(policy).__name__ for policy, _ in slim.scheduler.schedule] == ["LRPolicy"]


def test_one_pruner_in_several_policies_is_one_object():
    policies = [policy for policy, _ in Run("vgg19_filter_rank").scheduler.schedule]
    assert policies[0].pruner is policies[2].pruner and policies[1].pruner is policies[3].pruner
    assert len(set(map(id, policies))) == 4


def test_keep_mask_survives_the_last_epoch():
    run = Run("resnet20_network_surgery")
    run.run()
    surgeon = run.policies("pruner")[0][1]
    for name, weight in run.weights(surgeon).items():
        masker = run.scheduler.zeros_mask_dict[name]
        assert not masker.is_forward_only
        assert bool((weight[masker.mask == 0] == 0).all())


def test_final_sparsities_are_exact():
    run = Run("mobilenet_agp")
    run.run()
    achieved = {row.name: row.achieved for row in run.scheduler.finish().parameters}
    assert achieved["fc.weight"] == int(0.6 * 1024000) / 1024000
    assert achieved["model.13.3.weight"] == 0.5
