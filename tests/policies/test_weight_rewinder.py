"""WeightRewinder: lottery tickets, surviving weights, optimizer state, thinning in between, resume, mistakes."""

import copy

import pytest
import torch
from torch import nn

import distiller_ng as distiller
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import ArgumentError, LifecycleError, TargetError
from distiller_ng.graph.changes import record_change
from distiller_ng.policies.pruning import PruningPolicy
from distiller_ng.policies.weight_rewinder import WeightRewinder
from distiller_ng.pruning import SparsityLevelParameterPruner


def a_model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


def snapshot_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def run(model, scheduler, optimizer, epochs, at=None, steps=3):
    """Train; ``at[epoch]`` is called before the first step of an epoch, after its first minibatch began."""
    for epoch in epochs:
        scheduler.on_epoch_begin(epoch, optimizer)
        torch.manual_seed(epoch)
        for step in range(steps):
            scheduler.on_minibatch_begin(epoch, step, steps, optimizer)
            if step == 0 and at and epoch in at:
                at[epoch]()
            optimizer.zero_grad()
            loss = scheduler.before_backward_pass(epoch, step, steps, model(torch.randn(8, 4)).square().mean())
            loss.backward()
            scheduler.before_parameter_optimization(epoch, step, steps, optimizer)
            optimizer.step()
            scheduler.on_minibatch_end(epoch, step, steps, optimizer)
        scheduler.on_epoch_end(epoch, optimizer)


def pruned_and_rewound(first="pruner", **arguments):
    model = a_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = CompressionScheduler(model, optimizer=optimizer)
    pruner = PruningPolicy(SparsityLevelParameterPruner("p", {"0.weight": 0.5}))
    rewinder = WeightRewinder(**arguments)
    policies = [(pruner, [3]), (rewinder, [1, 3])]
    for policy, epochs in policies if first == "pruner" else reversed(policies):
        scheduler.add_policy(policy, epochs=epochs)
    return model, optimizer, scheduler


@pytest.mark.parametrize("first", ["pruner", "rewinder"])
def test_surviving_weights_return_and_pruned_ones_stay_pruned(first):
    model, optimizer, scheduler = pruned_and_rewound(first)
    taken, trained, rewound = {}, {}, {}
    at = {1: lambda: taken.update(snapshot_of(model)), 3: lambda: rewound.update(snapshot_of(model))}
    run(model, scheduler, optimizer, range(3), at)
    trained.update(snapshot_of(model))
    run(model, scheduler, optimizer, [3], at)
    # The pruner ranks what training made of the weights, whichever policy stands first.
    weakest = trained["0.weight"].abs().flatten().argsort()[:12]
    mask = torch.ones(24).index_fill_(0, weakest, 0).reshape(6, 4)
    assert torch.equal(rewound["0.weight"], taken["0.weight"] * mask)
    for name in taken.keys() - {"0.weight"}:
        assert torch.equal(rewound[name], taken[name]), name
    assert not torch.equal(trained["3.weight"], taken["3.weight"])
    assert ((model[0].weight == 0) == (mask == 0)).all()


def test_optimizer_state_is_dropped_only_where_asked():
    for reset in (True, False):
        model, optimizer, scheduler = pruned_and_rewound(reset_optimizer_state=reset)
        seen = {}
        run(model, scheduler, optimizer, range(4), {3: lambda: seen.update(optimizer.state)})  # noqa: B023
        assert (model[3].weight in seen) is not reset
        assert len(optimizer.state) == 6


def test_only_the_named_weights_and_their_buffers_return():
    model, optimizer, scheduler = pruned_and_rewound(weights=["re:1.*"])
    taken, rewound = {}, {}
    at = {1: lambda: taken.update(snapshot_of(model)), 3: lambda: rewound.update(snapshot_of(model))}
    run(model, scheduler, optimizer, range(4), at)
    same = {n for n in taken if torch.equal(taken[n], rewound[n])} - {"0.bias"}  # a bias before a norm never moves
    assert same == {"1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"}
    model, optimizer, scheduler = pruned_and_rewound(weights="re:1.*", buffers=False)
    run(model, scheduler, optimizer, range(4), at)
    same = {n for n in taken if torch.equal(taken[n], rewound[n])} - {"0.bias"}  # a bias before a norm never moves
    assert same == {"1.weight", "1.bias"}


def test_loops_with_epoch_hooks_only_rewind_at_the_epochs_end():
    model = a_model()
    scheduler = CompressionScheduler(model)
    scheduler.add_policy(WeightRewinder(), epochs=[0, 1])
    before = snapshot_of(model)
    for epoch in range(2):
        scheduler.on_epoch_begin(epoch)
        with torch.no_grad():
            model[0].weight.add_(1.0)
        scheduler.on_epoch_end(epoch)
    assert torch.equal(model[0].weight, before["0.weight"])


def test_epochs_may_be_named():
    model = a_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = CompressionScheduler(model, optimizer=optimizer)
    scheduler.add_policy(WeightRewinder(1, [3]), starting_epoch=0, ending_epoch=5, frequency=1)
    states = {}
    at = {e: (lambda e=e: states.setdefault(e, snapshot_of(model))) for e in range(5)}
    run(model, scheduler, optimizer, range(5), at)
    same = {e for e in range(5) if torch.equal(states[e]["0.weight"], states[1]["0.weight"])}
    assert same == {1, 3}


def test_filters_removed_in_between_are_removed_from_the_snapshot():
    model = a_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = CompressionScheduler(model, optimizer=optimizer)
    scheduler.add_policy(WeightRewinder(), epochs=[0, 2])
    taken, kept = snapshot_of(model), [0, 2, 3, 5]
    run(model, scheduler, optimizer, range(2))
    cuts = []
    for name, dim in (("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("1.bias", 0), ("3.weight", 1)):
        cuts.append([name, dim, [1, 4], 6])
    for name in ("1.running_mean", "1.running_var"):
        cuts.append([name, 0, [1, 4], 6])
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, dim, _, _ in cuts:
        tensors[name].grad = None
        tensors[name].data = tensors[name].data.index_select(dim, torch.tensor(kept))
    model[0].out_features, model[3].in_features, model[1].num_features = 4, 4, 4
    record_change(model, "thinning", {"cuts": cuts}, {})
    rewound = {}
    run(model, scheduler, optimizer, [2], {2: lambda: rewound.update(snapshot_of(model))})
    assert torch.equal(rewound["0.weight"], taken["0.weight"][kept])
    assert torch.equal(rewound["3.weight"], taken["3.weight"][:, kept])
    assert torch.equal(rewound["1.running_var"], taken["1.running_var"][kept])


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_run_ends_with_the_same_weights(stop, tmp_path):
    model, optimizer, scheduler = pruned_and_rewound()
    run(model, scheduler, optimizer, range(stop))
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    torch.save(copy.deepcopy(saved), tmp_path / "c.pt")
    run(model, scheduler, optimizer, range(stop, 5))
    again, optimizer, scheduler = pruned_and_rewound()
    loaded = torch.load(tmp_path / "c.pt", weights_only=True)
    again.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    scheduler.load_state_dict(loaded["scheduler"])
    run(again, scheduler, optimizer, range(stop, 5))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


SCHEDULE = """
extensions:
  ticket: {class: WeightRewinder, reset_optimizer_state: false}
pruners:
  magnitude: {class: SparsityLevelParameterPruner, levels: {'0.weight': 0.5}}
policies:
  - pruner: {instance_name: magnitude}
    epochs: [2]
  - extension: {instance_name: ticket}
    epochs: [0, 2]
"""


def test_a_schedule_finds_a_ticket(tmp_path):
    path = tmp_path / "ticket.yaml"
    path.write_text(SCHEDULE)
    model = a_model()
    start = snapshot_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = distiller.file_config(model, optimizer, str(path))
    rewound = {}
    run(model, scheduler, optimizer, range(3), {2: lambda: rewound.update(snapshot_of(model))})
    kept = rewound["0.weight"] != 0
    assert int(kept.sum()) == 12 and torch.equal(rewound["0.weight"][kept], start["0.weight"][kept])
    assert torch.equal(rewound["3.bias"], start["3.bias"])


@pytest.mark.parametrize(
    ("arguments", "window", "place"),
    [
        ({}, {"epochs": [4]}, "epochs"),
        ({}, {"starting_epoch": 2, "ending_epoch": 3}, "ending_epoch"),
        ({}, {"starting_epoch": 0.5, "ending_epoch": 3}, "starting_epoch"),
        ({"snapshot_epoch": 1}, {"epochs": [0, 3]}, "snapshot_epoch"),
        ({"rewind_epochs": [3, 4]}, {"epochs": [0, 3]}, "rewind_epochs"),
        ({"rewind_epochs": 0}, {"epochs": [0, 3]}, "rewind_epochs"),
        ({"weights": ["conv9.weight"]}, {"epochs": [0, 3]}, "weights"),
    ],
    ids=str,
)
def test_impossible_epochs_and_unknown_names_are_refused_at_once(arguments, window, place):
    scheduler = CompressionScheduler(a_model())
    with pytest.raises(ArgumentError) as caught:
        scheduler.add_policy(WeightRewinder(**arguments), **window)
    assert caught.value.argument[0] == place
    assert isinstance(caught.value, TargetError) == (place == "weights")


@pytest.mark.parametrize(
    "arguments",
    [
        {"snapshot_epoch": -1},
        {"snapshot_epoch": 1.5},
        {"rewind_epochs": []},
        {"rewind_epochs": "10"},
        {"snapshot_epoch": 5, "rewind_epochs": [5]},
        {"buffers": 1},
        {"reset_optimizer_state": "no"},
    ],
    ids=str,
)
def test_malformed_arguments_are_refused(arguments):
    with pytest.raises(ArgumentError):
        WeightRewinder(**arguments)


def test_without_a_snapshot_or_with_other_modules_the_error_says_so():
    model = a_model()
    scheduler = CompressionScheduler(model)
    scheduler.add_policy(WeightRewinder(), epochs=[0, 2])
    scheduler.on_epoch_begin(2)
    with pytest.raises(LifecycleError, match="no snapshot to rewind to in epoch 2"):
        scheduler.on_minibatch_begin(2, 0, 1)
    model, optimizer, scheduler = pruned_and_rewound()
    run(model, scheduler, optimizer, range(3))
    model[3] = nn.Linear(6, 5)
    scheduler.on_epoch_begin(3, optimizer)
    with pytest.raises(LifecycleError, match=r"'3.weight' was \[2, 6\] and is \[5, 6\]"):
        scheduler.on_minibatch_begin(3, 0, 3, optimizer)
