"""ScheduledModifierManager: a recipe around a loop that knows nothing of it."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from distiller_ng import ArgumentError, LifecycleError
from distiller_ng.compat.sparseml import ModifierView
from distiller_ng.compat.sparseml.pytorch.optim import ScheduledModifierManager
from distiller_ng.errors import ScheduleError, ScheduleWarning

RECIPE = """
num_epochs: 4
training_modifiers:
  - !EpochRangeModifier
    start_epoch: 0.0
    end_epoch: eval(num_epochs)
  - !SetLearningRateModifier
    start_epoch: 0.0
    learning_rate: 0.2
  - !LearningRateFunctionModifier
    start_epoch: 0.5
    end_epoch: eval(num_epochs)
    lr_func: linear
    init_lr: 0.1
    final_lr: 0.0
pruning_modifiers:
  - !GMPruningModifier
    params: ["fc1.weight"]
    init_sparsity: 0.05
    final_sparsity: 0.85
    start_epoch: 0
    end_epoch: eval(num_epochs)
    update_frequency: 1.0
"""
CUBIC = [0.05, 0.5125, 0.75, 0.8375, 0.85]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(20, 40)
        self.fc2 = nn.Linear(40, 3)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))


def setup(text=RECIPE, steps=2, **options):
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
    manager = ScheduledModifierManager.from_yaml(text, recipe_variables=options.pop("variables", None))
    returned = manager.modify(model, optimizer, steps, **options)
    assert returned is optimizer
    return manager, model, optimizer


def step(model, optimizer, forwards=1):
    optimizer.zero_grad()
    for _ in range(forwards):
        model(torch.randn(4, 20)).pow(2).mean().backward()
    optimizer.step()


def sparsity(model):
    return float((model.fc1.weight == 0).float().mean())


def test_a_plain_loop_prunes_as_the_recipe_says():
    manager, model, optimizer = setup()
    assert manager.max_epochs == 4 and manager.min_epochs == 0
    found, rates = [], []
    for _ in range(manager.max_epochs):
        for i in range(2):
            step(model, optimizer)
            found += [sparsity(model)] if i == 0 else []
            rates.append(optimizer.param_groups[0]["lr"])
    assert found == pytest.approx(CUBIC[:4], abs=0.001)
    assert rates == pytest.approx([0.2, *[0.1 * (1 - k / 7) for k in range(7)]])
    summary = manager.finalize(model)
    assert sparsity(model) == pytest.approx(0.85) and summary.parameters[0].planned == pytest.approx(0.85)
    assert optimizer.param_groups[0]["lr"] == 0.0


def test_no_hook_is_left():
    manager, model, optimizer = setup()
    step(model, optimizer)
    manager.finalize(model)
    assert not model._forward_pre_hooks and not model.fc1.weight._backward_hooks
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    with pytest.raises(LifecycleError, match="call modify"):
        manager.finalize(model)


def test_learning_rate_schedulers_and_scalers_take_what_modify_returns():
    manager, model, optimizer = setup()
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    other = ScheduledModifierManager.from_yaml(RECIPE)
    net = Net()
    second = torch.optim.SGD(net.parameters(), 0.1)
    assert other.modify(net, second, 2, wrap_optim=scaler) is scaler
    manager.finalize(model)


def test_evaluation_and_accumulation_count_no_steps():
    _manager, model, optimizer = setup()
    for _ in range(2):
        step(model, optimizer, forwards=3)
        model.eval()
        model(torch.randn(2, 20))
        model.train()
        with torch.no_grad():
            model(torch.randn(2, 20))
    step(model, optimizer)
    assert sparsity(model) == pytest.approx(CUBIC[1], abs=0.001)


@pytest.mark.parametrize("steps", [2.5, 3.3, 0.5])
def test_epochs_of_no_whole_number_of_steps(steps):
    text = "modifiers:\n  - !SetLearningRateModifier {start_epoch: 2, learning_rate: 0.125}\n"
    _manager, model, optimizer = setup(text, steps)
    first = None
    for s in range(12):
        step(model, optimizer)
        if first is None and optimizer.param_groups[0]["lr"] == 0.125:
            first = s
    assert first == next(s for s in range(12) if s / steps >= 2 - 1e-9)


def test_a_run_that_goes_on_at_an_epoch():
    _manager, model, optimizer = setup(epoch=2)
    step(model, optimizer)
    assert sparsity(model) == pytest.approx(CUBIC[2], abs=0.001)


def test_variables_from_outside():
    assert ScheduledModifierManager.from_yaml(RECIPE, recipe_variables="num_epochs=9").max_epochs == 9
    with pytest.raises(ArgumentError, match="no variable 'epochs'"):
        ScheduledModifierManager.from_yaml(RECIPE, recipe_variables={"epochs": 9})


def test_modifiers_as_objects():
    manager = ScheduledModifierManager.from_yaml(RECIPE)
    assert [m.tag for m in manager.pruning_modifiers] == ["GMPruningModifier"]
    assert manager.pruning_modifiers[0].final_sparsity == 0.85
    assert len(manager.learning_rate_modifiers) == 2 and len(manager.epoch_modifiers) == 1
    assert manager.quantization_modifiers == [] and not manager.qat_active(9)
    with pytest.raises(AttributeError, match="Did you mean 'final_sparsity'"):
        _ = manager.pruning_modifiers[0].final_sparsty


def test_more_modifiers_and_metadata(tmp_path):
    manager = ScheduledModifierManager.from_yaml(
        RECIPE,
        add_modifiers=[ModifierView("EpochRangeModifier", {"start_epoch": 0.0, "end_epoch": 11.5})],
        metadata={"batch": 32},
    )
    assert manager.max_epochs == 12 and manager.metadata == {"batch": 32}
    manager.save(tmp_path / "out.yaml")
    again = ScheduledModifierManager.from_yaml(tmp_path / "out.yaml")
    assert str(again) == str(manager) == (tmp_path / "out.yaml").read_text()
    manager.save(tmp_path / "some.yaml", include_modifiers=manager.epoch_modifiers)
    assert ScheduledModifierManager.from_yaml(tmp_path / "some.yaml").pruning_modifiers == []


def test_a_saved_run_goes_on_exactly():
    def run(manager, model, optimizer, count):
        for _ in range(count):
            step(model, optimizer)

    torch.manual_seed(5)
    whole = setup()
    torch.manual_seed(6)
    run(*whole, 7)
    first = setup()
    torch.manual_seed(6)
    run(*first, 3)
    saved = copy.deepcopy((first[0].state_dict(), first[1].state_dict(), first[2].state_dict(), torch.get_rng_state()))
    second = setup()
    second[1].load_state_dict(saved[1])
    second[2].load_state_dict(saved[2])
    second[0].load_state_dict(saved[0])
    torch.set_rng_state(saved[3])
    run(*second, 4)
    assert torch.equal(whole[1].fc1.weight, second[1].fc1.weight)
    assert whole[2].param_groups[0]["lr"] == second[2].param_groups[0]["lr"]


def test_one_shot():
    manager = ScheduledModifierManager.from_yaml(RECIPE)
    model = Net()
    summary = manager.apply(model)
    assert sparsity(model) == pytest.approx(0.85) and summary.total_sparsity == pytest.approx(0.85)
    assert not model._forward_pre_hooks


STAGED = """
a_stage:
  a_modifiers:
    - !ConstantPruningModifier {params: [fc2.weight], start_epoch: 0}
    - !MagnitudePruningModifier
      {params: [fc1.weight], init_sparsity: 0, final_sparsity: 0.5, start_epoch: 0, end_epoch: 1, update_frequency: 1}
b_stage:
  b_modifiers:
    - !MagnitudePruningModifier
      {params: [fc2.weight], init_sparsity: 0, final_sparsity: 0.25, start_epoch: 1, end_epoch: 2, update_frequency: 1}
"""


def test_one_shot_goes_stage_after_stage():
    manager = ScheduledModifierManager.from_yaml(STAGED)
    model = Net()
    manager.apply(model)
    assert sparsity(model) == 0.5 and float((model.fc2.weight == 0).float().mean()) == 0.25
    assert list(manager.modifiers) == ["a_stage", "b_stage"]
    assert str(ScheduledModifierManager.from_yaml(str(manager))) == str(manager)


def test_staged_state_can_be_saved():
    with pytest.warns(ScheduleWarning, match="both write 'fc2.weight'"):
        manager, model, optimizer = setup(STAGED)
    step(model, optimizer)
    assert manager.state_dict()["steps"] == 1


def test_recipes_one_after_the_other(tmp_path):
    combined = ScheduledModifierManager.compose_staged(RECIPE, RECIPE, save_path=tmp_path / "both.yaml")
    assert combined.max_epochs == 8 and list(combined.modifiers) == ["stage_0", "stage_1"]
    assert ScheduledModifierManager.from_yaml(tmp_path / "both.yaml").max_epochs == 8
    base = ScheduledModifierManager.from_yaml(RECIPE)
    third = ScheduledModifierManager.compose_staged(combined, base)
    assert list(third.modifiers) == ["stage_0", "stage_1", "stage_3"]


def test_the_report():
    manager, *_ = setup(steps=4)
    plan = manager.report()
    pruning = next(row for row in plan.policies if "GMPruning" in row.name)
    assert pruning.parameters == ("fc1.weight",) and pruning.weights == 800
    assert pruning.acts == (0, 1, 2, 3, 4) and pruning.settings["final_sparsity"] == 0.85
    text = str(plan)
    assert "acts 5 times, at epochs 0, 1, 2, 3, 4" in text and "acts before every optimizer step" in text
    assert plan.as_dict()["policies"][0]["name"]


def test_a_step_without_a_forward_pass_counts():
    _manager, model, optimizer = setup()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert sparsity(model) == pytest.approx(0.05)


def test_copies_of_the_model_are_not_followed():
    manager, model, optimizer = setup()
    step(model, optimizer)
    average = copy.deepcopy(model)
    for _ in range(5):
        average(torch.randn(2, 20))
    step(model, optimizer)
    assert manager.state_dict()["steps"] == 2
    manager.finalize(model)


def test_data_parallel_models_and_skipped_steps():
    torch.manual_seed(0)
    model = Net()
    wrapped = nn.DataParallel(model)
    optimizer = torch.optim.AdamW(wrapped.parameters(), 0.01)
    manager = ScheduledModifierManager.from_yaml(RECIPE)
    scaler = manager.modify(wrapped, optimizer, 2, wrap_optim=torch.amp.GradScaler("cpu", init_scale=4.0))
    for bad in (True, False, False):
        optimizer.zero_grad()
        loss = wrapped(torch.randn(4, 20)).pow(2).mean() * (float("inf") if bad else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert manager.state_dict()["steps"] == 2
    assert sparsity(model) == pytest.approx(0.05)
    manager.finalize(wrapped)


DISTILLATION = "modifiers:\n  - !DistillationModifier {hardness: 0.25, temperature: 1.0}\n"


@pytest.mark.parametrize("teacher", ["self", "module"])
def test_distillation(teacher):
    torch.manual_seed(1)
    given = Net() if teacher == "module" else "self"
    manager, model, optimizer = setup(DISTILLATION, distillation_teacher=given)
    x, y = torch.randn(4, 20), torch.tensor([0, 1, 2, 0])
    loss = nn.functional.cross_entropy(model(x), y)
    updated = manager.loss_update(loss, model, optimizer, 0, 2)
    reference = given if teacher == "module" else copy.deepcopy(model)
    divergence = nn.functional.kl_div(
        model(x).log_softmax(-1), reference(x).log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert float(updated.detach()) == pytest.approx(float(0.75 * loss.detach() + 0.25 * divergence.detach()), rel=1e-4)
    manager.finalize(model)


def test_distillation_that_is_disabled_forgotten_or_has_no_teacher():
    with pytest.warns(ScheduleWarning, match="does not distil"):
        setup(DISTILLATION + "  - !EpochRangeModifier {start_epoch: 0, end_epoch: 1}\n", distillation_teacher="disable")
    with pytest.raises(ScheduleError, match="teacher"):
        setup(DISTILLATION)
    _, model, optimizer = setup(DISTILLATION, distillation_teacher=Net())
    with pytest.warns(ScheduleWarning, match="loss = manager.loss_update"):
        step(model, optimizer)
    step(model, optimizer)


def test_a_run_that_stops_inside_an_epoch_does_not_reach_its_end():
    manager, model, optimizer = setup(steps=10)
    for _ in range(35):
        step(model, optimizer)
    manager.finalize(model)
    assert sparsity(model) == pytest.approx(0.8375, abs=0.001)


def test_an_optimizer_with_a_closure():
    text = "modifiers:\n  - !SetLearningRateModifier {start_epoch: 1, learning_rate: 0.125}\n"
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=2)
    manager = ScheduledModifierManager.from_yaml(text)
    manager.modify(model, optimizer, 2)
    x = torch.randn(4, 20)

    def closure():
        optimizer.zero_grad()
        loss = model(x).pow(2).mean()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert manager.state_dict()["steps"] == 3 and optimizer.param_groups[0]["lr"] == 0.125


def test_mistakes(tmp_path):
    with pytest.raises(ScheduleError, match=r"fc3.*is no parameter"):
        setup(RECIPE.replace("fc1.weight", "fc3"))
    manager, model, optimizer = setup()
    with pytest.raises(LifecycleError, match="called before"):
        manager.modify(model, optimizer, 2)
    with pytest.raises(ArgumentError, match="no argument 'grad_samplr'"):
        ScheduledModifierManager.from_yaml(RECIPE).modify(Net(), optimizer, 2, grad_samplr=1)
    with pytest.raises(ArgumentError, match="steps_per_epoch"):
        setup(steps=0)
    with pytest.raises(ArgumentError, match="distillation_teacher"):
        setup(distillation_teacher="selfie")
    with pytest.raises(LifecycleError, match="before modify"):
        ScheduledModifierManager.from_yaml(RECIPE).loss_update(torch.zeros(()))


def test_initialize_comes_before_modify():
    manager = ScheduledModifierManager.from_yaml(RECIPE)
    model = Net()
    manager.initialize(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    manager.modify(model, optimizer, 2)
    step(model, optimizer)
    assert sparsity(model) == pytest.approx(0.05)


def test_quantized_structure_for_a_checkpoint():
    text = "modifiers:\n  - !QuantizationModifier {start_epoch: 2}\n"
    manager = ScheduledModifierManager.from_yaml(text)
    early, late = Net(), Net()
    manager.apply_structure(early, epoch=1)
    assert type(early.fc1) is nn.Linear
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        manager.apply_structure(late, epoch=float("inf"))
    assert type(late.fc1) is not nn.Linear or len(list(late.fc1.named_buffers())) > 0


@pytest.mark.parametrize("stop", [4, 5, 7])
def test_quantized_runs_go_on_before_their_norms_are_frozen(stop):
    text = """modifiers:
  - !EpochRangeModifier {start_epoch: 0, end_epoch: 5}
  - !QuantizationModifier {start_epoch: 2, disable_quantization_observer_epoch: 3, freeze_bn_stats_epoch: 4}
"""

    def begin(seed, done=0):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        manager = ScheduledModifierManager.from_yaml(text)
        if done:
            manager.apply_structure(model, epoch=done / 2)
        manager.modify(model, optimizer, 2, epoch=done / 2)
        return model, optimizer, manager

    def go(parts, first, last):
        model, optimizer, _ = parts
        for number in range(first, last):
            x = torch.randn(6, 1, 6, 6, generator=torch.Generator().manual_seed(number))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScheduleWarning)
        whole = begin(0)
        go(whole, 0, 10)
        first = begin(0)
        go(first, 0, stop)
        saved = copy.deepcopy([part.state_dict() for part in first])
        second = begin(1, stop)
    for part, state in zip(second, saved, strict=True):
        part.load_state_dict(state)
    go(second, stop, 10)
    expected, found = whole[0].state_dict(), second[0].state_dict()
    assert expected.keys() == found.keys()
    assert found["1.num_batches_tracked"] == 8
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
