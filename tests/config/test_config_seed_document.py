"""Every fragment of Distiller's page on the compression scheduler runs as it stands (``fragments/`` holds them).

Fragments about quantization and knowledge distillation come with those features; the nesting of epochs they show is
understood already.
"""

from __future__ import annotations

import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import distiller_ng as distiller
from distiller_ng.config import read_schedule
from distiller_ng.errors import ScheduleWarning
from distiller_ng.models import create_model

FRAGMENTS = Path(__file__).parent / "fragments"
BASE_LR = 0.1


class SmallAlexNet(nn.Module):
    """AlexNet's parameter names, on small layers."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = (0, 3, 6, 8, 10)
        self.features = nn.Sequential(*[nn.Conv2d(4, 4, 3) if i in convolutions else nn.ReLU() for i in range(13)])
        self.classifier = nn.Sequential(*[nn.Linear(8, 8) if i in (1, 4, 6) else nn.ReLU() for i in range(7)])


def load(text: str, model: nn.Module, tmp_path: Path):
    """The scheduler, the optimizer and the warnings of a text."""
    path = tmp_path / "fragment.yaml"
    path.write_text(text)
    optimizer = torch.optim.SGD(model.parameters(), lr=BASE_LR)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scheduler = distiller.file_config(model, optimizer, path)
    return scheduler, optimizer, [str(w.message) for w in caught if issubclass(w.category, ScheduleWarning)]


def fragment(name: str) -> str:
    return (FRAGMENTS / f"{name}.yaml").read_text()


def run_epoch(scheduler, optimizer, epoch: int) -> torch.Tensor:
    """One epoch of one minibatch; returns the loss the policies made of 0."""
    scheduler.on_epoch_begin(epoch)
    scheduler.on_minibatch_begin(epoch, 0, 1, optimizer)
    optimizer.zero_grad()
    parameter = next(scheduler.model.parameters())
    loss = scheduler.before_backward_pass(epoch, 0, 1, parameter.sum() * 0.0, optimizer)
    loss.backward()
    scheduler.before_parameter_optimization(epoch, 0, 1, optimizer)
    optimizer.step()
    scheduler.on_minibatch_end(epoch, 0, 1, optimizer)
    scheduler.on_epoch_end(epoch, optimizer)
    return loss.detach()


SENSITIVITIES = {"features.0.weight": 0.25, "features.10.weight": 0.55, "classifier.1.weight": 0.875}


def check_sensitivities(scheduler, optimizer) -> None:
    weights = {name: scheduler.parameters[name].detach().clone() for name in SENSITIVITIES}
    run_epoch(scheduler, optimizer, 0)
    for name, sensitivity in SENSITIVITIES.items():
        weight, mask = weights[name], scheduler.zeros_mask_dict[name].mask
        assert torch.equal(mask, (weight.abs() > sensitivity * weight.std()).float())


def test_the_first_example(tmp_path):
    scheduler, optimizer, warned = load(fragment("sensitivity_pruning"), SmallAlexNet(), tmp_path)
    assert warned == []
    check_sensitivities(scheduler, optimizer)
    assert [window.last_epoch for _, window in scheduler.schedule] == [36, 199]
    run_epoch(scheduler, optimizer, 23)
    assert optimizer.param_groups[0]["lr"] == BASE_LR
    run_epoch(scheduler, optimizer, 24)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(BASE_LR * 0.9**25)


def test_the_version_alone(tmp_path):
    scheduler, _, warned = load(fragment("version"), SmallAlexNet(), tmp_path)
    assert scheduler.schedule == () and any("no policies" in text for text in warned)


@pytest.mark.parametrize("name", ["pruners", "lr_schedulers"])
def test_definitions_alone(tmp_path, name):
    scheduler, _, warned = load(fragment(name), SmallAlexNet(), tmp_path)
    assert scheduler.schedule == () and any("no policy uses it" in text for text in warned)


def test_definitions_and_policies_together(tmp_path):
    text = fragment("pruners") + fragment("lr_schedulers") + fragment("policies")
    scheduler, optimizer, warned = load(text, SmallAlexNet(), tmp_path)
    assert warned == [] and len(scheduler.schedule) == 2
    check_sensitivities(scheduler, optimizer)


def regularizer_model() -> nn.Module:
    return create_model(False, "cifar10", "resnet50")


def test_l1_regularization(tmp_path):
    scheduler, optimizer, warned = load(fragment("l1_regularizer"), regularizer_model(), tmp_path)
    assert warned == []
    names = ["layer3.1.conv1", "layer3.1.conv2", "layer3.1.conv3", "layer3.2.conv1"]
    expected = sum(2e-6 * float(scheduler.parameters[f"{n}.weight"].detach().abs().sum()) for n in names)
    assert float(run_epoch(scheduler, optimizer, 0)) == pytest.approx(expected, rel=1e-4)


def test_group_regularization(tmp_path):
    scheduler, optimizer, warned = load(fragment("group_lasso"), regularizer_model(), tmp_path)
    assert warned == []
    names = ["layer3.1.conv1", "layer3.1.conv2", "layer3.1.conv3", "layer3.2.conv1"]
    norms = [scheduler.parameters[f"{n}.weight"].detach().flatten(1).norm(dim=1).sum() for n in names]
    assert float(run_epoch(scheduler, optimizer, 59)) == pytest.approx(5e-5 * float(sum(norms)), rel=1e-4)


def test_mixing_it_up(tmp_path):
    scheduler, optimizer, warned = load(fragment("mixing"), SmallAlexNet(), tmp_path)
    assert warned == []
    kinds = [type(policy).__name__ for policy, _ in scheduler.schedule]
    assert kinds == ["PruningPolicy", "RegularizationPolicy", "LRPolicy"]
    check_sensitivities(scheduler, optimizer)


def filled(name: str, values: dict[str, str]) -> str:
    """An informal format with its placeholders filled in, and a policy."""
    text = textwrap.dedent(fragment(name).removeprefix("Format:\n"))
    for placeholder, value in values.items():
        assert placeholder in text
        text = text.replace(placeholder, value)
    policy = "policies:\n  - regularizer:\n      instance_name: reg\n    starting_epoch: 0\n    ending_epoch: 60\n    frequency: 1\n"
    return text + policy


@pytest.mark.parametrize("criterion", ["Mean_Abs", "Max"])
def test_the_format_of_l1_regularization(tmp_path, criterion):
    values = {"<REGULARIZER_NAME_STR>": "reg", "[Mean_Abs | Max]": criterion}
    text = filled("l1_format", values).replace("      ...\n", "")
    for name in ("features.0.weight", "classifier.1.weight"):
        text = text.replace("<PYTORCH_PARAM_NAME_STR>: <STRENGTH_FLOAT>", f"{name}: 0.01", 1)
    assert "<" not in text
    scheduler, optimizer, warned = load(text, SmallAlexNet(), tmp_path)
    assert warned == []
    run_epoch(scheduler, optimizer, 0)
    weight = scheduler.parameters["features.0.weight"].detach()
    assert bool(((weight == 0) | (weight.abs() > 0.01)).all()) and bool((weight == 0).any())


@pytest.mark.parametrize("group_type", ["2D", "3D", "4D", "Channels", "Cols", "Rows"])
def test_the_format_of_group_regularization(tmp_path, group_type):
    """It says L1Regularizer with groups, which Distiller refused; it is taken as group lasso."""
    name = "classifier.{}.weight" if group_type in ("Cols", "Rows") else "features.{}.weight"
    text = filled("group_format", {"<REGULARIZER_NAME_STR>": "reg", "[Mean_Abs | Max]": "Mean_Abs"})
    text = text.replace("<STRENGTH_FLOAT>", "0.01").replace(
        "<'2D' | '3D' | '4D' | 'Channels' | 'Cols' | 'Rows'>", group_type
    )
    for number in (6, 1 if "classifier" in name else 3):
        text = text.replace("<PYTORCH_PARAM_NAME_STR>", name.format(number), 1)
    assert "L1Regularizer" in text and "<" not in text
    scheduler, optimizer, warned = load(text, SmallAlexNet(), tmp_path)
    assert len(warned) == 1 and "taken as group lasso" in warned[0]
    assert "fragment.yaml:2:3: regularizers.reg: " in warned[0]
    assert float(run_epoch(scheduler, optimizer, 0)) > 0


NESTED = """\
policies:
  - quantizer:
      instance_name: dorefa_quantizer
      starting_epoch: 0
      ending_epoch: 200
      frequency: 1
"""


def test_epochs_below_the_component_are_read(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(NESTED)
    spec = read_schedule(path)
    assert spec.problems == () and spec.policies[0].key == "quantizer"
    assert dict(spec.policies[0].timing) == {"starting_epoch": 0, "ending_epoch": 200, "frequency": 1}
    assert "one level further out" in spec.warnings[0].message and spec.warnings[0].line == 4


def test_epochs_below_the_component_count_for_every_kind(tmp_path):
    nested = NESTED.replace("quantizer:", "pruner:", 1).replace("dorefa_quantizer", "my_pruner")
    scheduler, _, warned = load(fragment("pruners") + nested, SmallAlexNet(), tmp_path)
    assert len(warned) == 1 and "starting_epoch, ending_epoch, frequency" in warned[0]
    assert scheduler.schedule[0][1].last_epoch == 199


def test_several_learning_rate_schedulers(tmp_path):
    text = """\
lr_schedulers:
  first: {class: ExponentialLR, gamma: 0.5}
  second: {class: StepLR, step_size: 2, gamma: 0.1}
policies:
  - lr_scheduler: {instance_name: first}
    epochs: [0]
  - lr_scheduler: {instance_name: second}
    epochs: [1]
"""
    scheduler, optimizer, warned = load(text, SmallAlexNet(), tmp_path)
    assert warned == []
    run_epoch(scheduler, optimizer, 0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(BASE_LR * 0.5)
    run_epoch(scheduler, optimizer, 1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(BASE_LR * 0.1)
