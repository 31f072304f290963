"""GroupPruner in schedules: budgets ramped while filters are removed, data-driven scores, resume, AMP, accumulation."""

import copy

import pytest
import torch
from group_models import Residual, Separable
from torch import nn

import distiller_ng as distiller
from distiller_ng.errors import ScheduleError
from distiller_ng.graph.cost import MacsCost, ParamsCost
from distiller_ng.graph.dependency import DependencyGraph
from distiller_ng.pruning.base import PRUNERS

INPUTS = torch.zeros(1, 3, 12, 12)
SCHEDULE = """
pruners:
  groups:
    class: GroupPruner
    weights: [__ALL_PRUNABLE__]
    {arguments}
policies:
  - pruner: {{instance_name: groups}}
    starting_epoch: 1
    ending_epoch: 5
    frequency: 1
{more}
"""
RAMP = "schedule: {class: Linear, final_sparsity: 1.0}"
THINNER = """
  - extension: {instance_name: thinner}
    epochs: [2, 3, 4]
extensions:
  thinner: {class: FilterRemover, thinning_func_str: remove_filters}
"""


def written(tmp_path, *arguments, more=""):
    path = tmp_path / "schedule.yaml"
    path.write_text(SCHEDULE.format(arguments="\n    ".join(arguments), more=more))
    return str(path)


def make(path, **options):
    torch.manual_seed(1)
    model = Separable()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    options = {"example_inputs": INPUTS, **options}
    return model, optimizer, distiller.file_config(model, optimizer, path, **options)


def run(model, optimizer, scheduler, epochs, *, steps=2, amp=False):
    scaler = torch.amp.GradScaler("cpu", enabled=amp)
    k = scheduler.accumulation_steps
    for epoch in epochs:
        generator = torch.Generator().manual_seed(epoch)
        data = [torch.randn(4, 3, 12, 12, generator=generator) for _ in range(steps)]
        parts = [part for batch in data for part in batch.chunk(k)]
        scheduler.on_epoch_begin(epoch, optimizer)
        for step, batch in enumerate(parts):
            scheduler.on_minibatch_begin(epoch, step, len(parts), optimizer)
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                loss = (model(batch) - 1).square().mean() / k
            loss = scheduler.before_backward_pass(epoch, step, len(parts), loss, optimizer)
            scaler.scale(loss).backward()
            if (step + 1) % k == 0:
                scheduler.before_parameter_optimization(epoch, step, len(parts), optimizer)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
            scheduler.on_minibatch_end(epoch, step, len(parts), optimizer)
        scheduler.on_epoch_end(epoch, optimizer)


def original(cost):
    return cost.of(DependencyGraph.trace(Separable(), INPUTS))


@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.4}], ids=str)
def test_ramped_budgets_with_filters_removed_in_between_end_at_the_target(budget, tmp_path):
    (name, share), cost = next(iter(budget.items())), {"macs": MacsCost(), "params": ParamsCost()}[next(iter(budget))]
    path = written(tmp_path, f"target: {{{name}: {share}}}", "scope: global", RAMP, more=THINNER)
    model, optimizer, scheduler = make(path)
    run(model, optimizer, scheduler, range(6))
    scheduler.finish()
    found = cost.of(DependencyGraph.trace(model, INPUTS)) / original(cost)
    assert 0.98 * share <= found <= share
    assert model.blocks[2][3].out_channels < 64
    assert model(torch.randn(2, 3, 12, 12)).shape == (2, 5)


def test_levels_do_not_compound_when_filters_are_removed_every_epoch(tmp_path):
    path = written(tmp_path, "sparsity: 0.5", more=THINNER)
    model, optimizer, scheduler = make(path)
    run(model, optimizer, scheduler, range(6))
    assert [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == 1] == [8, 16, 16, 32]


def test_masked_groups_stay_zero_while_training(tmp_path):
    model, optimizer, scheduler = make(written(tmp_path, "sparsity: 0.25"))
    run(model, optimizer, scheduler, range(3))
    conv, norm = model.blocks[0][3], model.blocks[0][4]
    dead = (conv.weight.flatten(1) == 0).all(dim=1)
    assert int(dead.sum()) == 8
    assert (norm.weight[dead] == 0).all() and (norm.bias[dead] == 0).all() and (norm.weight[~dead] != 0).all()
    assert (model.blocks[1][0].weight[dead] == 0).all() and (model.blocks[1][3].weight[:, dead] == 0).all()


@pytest.mark.parametrize("importance", ["taylor", "hessian_diagonal", "gradient", "activation"])
def test_data_is_seen_in_the_epoch_before_the_first_decision(importance, tmp_path):
    path = written(tmp_path, "target: {macs: 0.6}", f"importance: {importance}", "scope: global")
    model, optimizer, scheduler = make(path)
    run(model, optimizer, scheduler, [0])
    assert scheduler.masks.masked() == {}
    run(model, optimizer, scheduler, [1])
    pruner = scheduler.schedule[0][0].pruner
    assert 0.588 <= pruner.achieved["macs"] <= 0.6
    assert all(not module._forward_hooks for module in model.modules()) or importance == "activation"
    run(model, optimizer, scheduler, range(2, 6))
    assert all(not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("importance", ["l1", "taylor", "activation"])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_ends_with_the_same_weights(importance, stop, tmp_path):
    path = written(tmp_path, "target: {macs: 0.5}", f"importance: {importance}", "scope: global", RAMP)
    model, optimizer, scheduler = make(path)
    run(model, optimizer, scheduler, range(stop))
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    torch.save(copy.deepcopy(state), tmp_path / "c.pt")
    run(model, optimizer, scheduler, range(stop, 6))
    again, optimizer, scheduler = make(path)
    loaded = torch.load(tmp_path / "c.pt", weights_only=True)
    again.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    scheduler.load_state_dict(loaded["scheduler"])
    run(again, optimizer, scheduler, range(stop, 6))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


def test_micro_batches_decide_as_whole_batches_do(tmp_path):
    found = []
    for k in (1, 2):
        path = written(tmp_path, "sparsity: 0.5", "importance: taylor")
        model, optimizer, scheduler = make(path)
        scheduler.accumulation_steps = k
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        run(model, optimizer, scheduler, range(2))
        found.append({name: mask.clone() for name, mask in scheduler.masks.masked().items()})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("importance", ["taylor", "activation"])
def test_automatic_mixed_precision(importance, tmp_path):
    path = written(tmp_path, "target: {macs: 0.6}", f"importance: {importance}", "scope: global")
    model, optimizer, scheduler = make(path)
    run(model, optimizer, scheduler, range(3), amp=True)
    assert 0.588 <= scheduler.schedule[0][0].pruner.achieved["macs"] <= 0.6


def test_mistakes_in_a_schedule_are_found_when_it_is_read(tmp_path):
    for line, message in (
        ("target: {flops: 0.5}", "no budget 'flops'"),
        ("importance: tailor", "Did you mean 'taylor'"),
        ("sparsity: 2", "sparsity"),
        ("max_layer_sparsity: {convv.weight: 0.5}", "convv.weight"),
    ):
        arguments = [line] if "sparsity:" in line and "max" not in line else [line, "sparsity: 0.5"]
        with pytest.raises(ScheduleError, match=message):
            make(written(tmp_path, *[a for a in arguments if "target" not in line or "sparsity" not in a]))


@pytest.mark.parametrize(("importance", "steps"), [("l1", 1), ("l1", 2), ("taylor", 1), ("activation", 2)])
def test_without_example_inputs_those_of_the_first_forward_pass_are_used(importance, steps, tmp_path):
    path = written(tmp_path, "target: {macs: 0.5}", f"importance: {importance}")
    model, optimizer, scheduler = make(path, example_inputs=None)
    first = 1 if importance == "l1" else 0  # the epoch in which the inputs are first seen
    run(model, optimizer, scheduler, range(first, 2), steps=steps)
    found = scheduler.masks.masked()
    assert found and 0.49 <= scheduler.schedule[0][0].pruner.achieved["macs"] <= 0.5
    assert all((dict(model.named_parameters())[name][mask == 0] == 0).all() for name, mask in found.items())


def test_wrapped_models_and_other_layouts():
    for prepare in (lambda m: nn.DataParallel(m), lambda m: m.to(memory_format=torch.channels_last)):
        model = prepare(Residual())
        scheduler = distiller.CompressionScheduler(model, example_inputs=torch.zeros(1, 2, 6, 6))
        pruner = PRUNERS.get("GroupPruner").cls("p", ["module.c.weight"], sparsity=0.5)
        scheduler.add_policy(distiller.PruningPolicy(pruner), epochs=[0])
        scheduler.on_epoch_begin(0)
        scheduler.on_minibatch_begin(0, 0, 1)
        weight = dict(distiller.names.ParameterIndex(model))["c.weight"]
        assert int((weight.flatten(1) == 0).all(dim=1).sum()) == 3
