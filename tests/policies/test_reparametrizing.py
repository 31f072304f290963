"""Layers that compute with a function of their weight: Powerpropagation, STR, soft movement, Top-KAST."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import distiller_ng as distiller
from distiller_ng.errors import ArgumentError, TargetError
from distiller_ng.policies.powerpropagation import Powerpropagation
from distiller_ng.policies.soft_movement import SoftMovement
from distiller_ng.policies.soft_threshold import SoftThreshold
from distiller_ng.policies.top_kast import TopKAST

STEPS = 4
POLICIES = {
    "power": lambda: Powerpropagation(alpha=2.0),
    "threshold": lambda: SoftThreshold(init_threshold=-2.0),
    "soft_movement": lambda: SoftMovement(regularization=3.0, score_lr=1.0),
    "topkast": lambda: TopKAST(forward_sparsity=0.8, backward_sparsity=0.5),
}
each = pytest.mark.parametrize("make", POLICIES.values(), ids=list(POLICIES))


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))


def train(model, policy, window=(0, 2, 1), *, epochs=3, optimizer=None, watch=None, trigger="step", stop=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = distiller.CompressionScheduler(model, optimizer=optimizer)
    start, end, frequency = window
    scheduler.add_policy(policy, starting_epoch=start, ending_epoch=end, frequency=frequency, trigger=trigger)
    torch.manual_seed(1)
    data = [(torch.randn(8, 6), torch.randn(8, 3))] * STEPS
    for epoch in scheduler.epochs(epochs):
        for step, (x, y) in enumerate(scheduler.minibatches(data)):
            optimizer.zero_grad()
            scheduler.backward(nn.functional.mse_loss(model(x), y))
            optimizer.step()
            if watch is not None:
                watch(epoch + step / STEPS, scheduler)
            if stop == epoch * STEPS + step:
                return scheduler
    return scheduler


def zeros(model):
    return float((model[0].weight == 0).sum() + (model[2].weight == 0).sum()) / 180


# -- what all of them promise ----------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("trigger", ["step", "epoch"])
def test_the_model_is_its_own_again_when_training_is_over(make, trigger):
    model = mlp()
    before, classes = list(model.state_dict()), [type(m) for m in model]
    identities = [id(p) for p in model.parameters()]
    inside = []
    train(model, make(), watch=lambda at, s: inside.append(type(model[0]) is nn.Linear), trigger=trigger)
    assert inside == [False] * 8 + [True] * 4 or (trigger == "step" and inside == [False] * 9 + [True] * 3)
    assert list(model.state_dict()) == before and [type(m) for m in model] == classes
    assert [id(p) for p in model.parameters()] == identities
    assert not any(name.startswith("_weight") for m in model for name in vars(m))


@each
def test_an_open_window_ends_with_training_without_changing_outputs(make):
    model, outputs = mlp(), {}
    x = torch.randn(5, 6)

    def watch(at, scheduler):
        outputs[at] = model(x).detach()

    train(model, make(), (0, -1, 0), watch=watch)
    torch.testing.assert_close(model(x).detach(), outputs[2.75], rtol=1e-5, atol=1e-6)


@each
def test_copies_pickles_and_evaluation_compute_the_same(make):
    model = mlp()
    scheduler = train(model, make(), (0, -1, 0), stop=5)
    x = torch.randn(5, 6)
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(x), expected)
        assert other[0]._parameters["weight"] is not model[0]._parameters["weight"]
    model.eval()
    torch.testing.assert_close(model(x), expected)
    scheduler.on_minibatch_end(1, 1, STEPS)


@each
@pytest.mark.parametrize("killed_after", [0, 3, 7, 8, 10])
def test_resume_is_bit_identical(make, killed_after):
    whole = mlp()
    train(whole, make())
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = train(model, make(), optimizer=optimizer, stop=killed_after)
    buffer = io.BytesIO()
    torch.save({"m": model.state_dict(), "o": optimizer.state_dict(), "s": scheduler.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    other = mlp()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    resumed = distiller.CompressionScheduler(other, optimizer=optimizer)
    resumed.add_policy(make(), starting_epoch=0, ending_epoch=2, frequency=1, trigger="step")
    other.load_state_dict(saved["m"])
    optimizer.load_state_dict(saved["o"])
    resumed.load_state_dict(saved["s"])
    x = torch.randn(5, 6)
    torch.testing.assert_close(other(x), model(x))
    torch.manual_seed(1)
    data = [(torch.randn(8, 6), torch.randn(8, 3))] * STEPS
    for _ in resumed.epochs(3):
        for x, y in resumed.minibatches(data):
            optimizer.zero_grad()
            resumed.backward(nn.functional.mse_loss(other(x), y))
            optimizer.step()
    for a, b in zip(whole.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@each
def test_only_layers_with_a_weight_of_that_kind(make):
    policy = make()
    policy.weights = ["0.bias"]
    with pytest.raises(TargetError):
        train(mlp(), policy)
    twice = distiller.CompressionScheduler(mlp())
    for one in (make(), make()):
        twice.add_policy(one, starting_epoch=0, ending_epoch=2)
    with pytest.raises((ArgumentError, KeyError)):  # the second one finds the layers taken
        twice.on_epoch_begin(0)


@each
def test_the_token_means_the_layers_that_can(make):
    model = nn.Sequential(nn.LSTM(4, 4), nn.Linear(4, 2))
    policy = make()
    distiller.CompressionScheduler(model).add_policy(policy, starting_epoch=0, ending_epoch=2)
    assert policy._names == ["1.weight"]
    with pytest.raises(TargetError):
        distiller.CompressionScheduler(nn.LSTM(4, 4)).add_policy(make(), starting_epoch=0, ending_epoch=2)


class Conv1D(nn.Module):
    """As in GPT-2: a linear layer that keeps its weight transposed."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3))

    def forward(self, x):
        return x @ self.weight


@each
def test_the_conv1d_of_gpt_models(make):
    model, policy = nn.Sequential(Conv1D()), make()
    policy.weights = ["__ALL_PRUNABLE_WITH_EMBEDDINGS__"]
    scheduler = train(model, policy, stop=3)
    assert policy._names == ["0.weight"]
    assert list(scheduler.parameters.prunable_with_embeddings()) == ["0.weight"]  # also while it is derived
    assert not isinstance(model[0].weight, nn.Parameter)
    scheduler.finish()
    assert isinstance(model[0].weight, nn.Parameter)
    assert type(model[0]) is Conv1D


@each
def test_convolutions_tied_weights_and_data_parallel(make):
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    model[1].weight = model[0].weight
    policy = make()
    policy.weights = ["0.weight"]
    scheduler = distiller.CompressionScheduler(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    scheduler.add_policy(policy, starting_epoch=0, ending_epoch=-1)
    for _ in scheduler.epochs(1):
        for x in scheduler.minibatches([torch.arange(7)]):
            assert torch.equal(model[0].weight, model[1].weight)
            scheduler.backward(model(x).square().mean())
            scheduler.optimizer.step()
    assert model[0].weight is model[1].weight
    conv = nn.DataParallel(nn.Sequential(nn.Conv2d(2, 4, 3)))
    scheduler = distiller.CompressionScheduler(conv)
    policy = make()
    policy.weights = ["0.weight"]
    scheduler.add_policy(policy, starting_epoch=0, ending_epoch=-1)
    scheduler.on_epoch_begin(0)
    assert conv(torch.randn(2, 2, 5, 5)).shape == (2, 4, 3, 3)


# -- Powerpropagation ------------------------------------------------------------------------------------------------


def test_powerpropagation_learns_the_root_and_changes_no_output():
    model, x, outputs = mlp(), torch.randn(5, 6), []
    expected = model(x).detach()
    stored = model[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def watch(at, scheduler):
        outputs.append(model(x).detach())
        if at == 0.0:
            torch.testing.assert_close(model[0]._parameters["weight"], stored.sign() * stored.abs().sqrt())

    train(model, Powerpropagation(alpha=2.0), (0, 1.5, 0), optimizer=optimizer, watch=watch)
    for output in outputs:
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[0].weight.detach(), stored, rtol=1e-5, atol=1e-7)


def test_powerpropagation_scales_gradients_by_magnitude():
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-0.25, 1.0]]))
    policy = Powerpropagation(alpha=2.0)
    scheduler = distiller.CompressionScheduler(model)
    scheduler.add_policy(policy, starting_epoch=0, ending_epoch=1)
    scheduler.on_epoch_begin(0)
    model(torch.ones(1, 2)).sum().backward()
    assert model[0]._parameters["weight"].detach().tolist() == [[-0.5, 1.0]]
    assert model[0]._parameters["weight"].grad.tolist() == [[1.0, 2.0]]  # alpha |v|^(alpha - 1)


@pytest.mark.parametrize("alpha", [0.5, "2", True, float("inf")])
def test_powerpropagation_refuses(alpha):
    with pytest.raises(ArgumentError) as caught:
        Powerpropagation(alpha=alpha)
    assert caught.value.argument == ("alpha",)


def test_masks_work_beside_powerpropagation():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = {
        "version": 1,
        "pruners": {"m": {"class": "MagnitudePruner", "final_sparsity": 0.9}},
        "extensions": {"power": {"class": "Powerpropagation", "alpha": 2.0}},
        "policies": [
            {"extension": {"instance_name": "power"}, "starting_epoch": 0, "ending_epoch": 3},
            {"pruner": {"instance_name": "m"}, "starting_epoch": 0, "ending_epoch": 3},
        ],
    }
    scheduler = distiller.dict_config(model, optimizer, schedule)
    for _ in scheduler.epochs(3):
        for _ in scheduler.minibatches([0] * STEPS):
            optimizer.zero_grad()
            scheduler.backward(model(torch.randn(4, 6)).square().mean())
            optimizer.step()
    assert zeros(model) == pytest.approx(0.9)


# -- soft threshold --------------------------------------------------------------------------------------------------


def test_soft_threshold_shrinks_and_learns_its_threshold():
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.7, -0.2]]))
    policy = SoftThreshold(init_threshold=0.0, threshold_lr=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scheduler = distiller.CompressionScheduler(model, optimizer=optimizer)
    scheduler.add_policy(policy, starting_epoch=0, ending_epoch=1)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]
    assert optimizer.param_groups[1]["weight_decay"] == 5e-4 and optimizer.param_groups[1]["lr"] == 0.5
    scheduler.on_epoch_begin(0)
    assert model[0].weight.tolist() == [[pytest.approx(0.2), 0.0]]
    model(torch.ones(1, 2)).sum().backward()
    assert model[0]._parameters["weight"].grad.tolist() == [[1.0, 0.0]]
    assert policy._thresholds["0.weight"].grad == pytest.approx(-0.25)  # -sigmoid'(0)
    assert policy.thresholds() == {"0.weight": 0.5}


def test_soft_threshold_leaves_zeros_that_stay():
    for leave, alive in ((True, False), (False, True)):
        model, found = mlp(), {}
        policy = SoftThreshold(init_threshold=-2.5, leave_enabled=leave)
        train(model, policy, (0, 1, 0), watch=lambda at, s, m=model, f=found: f.update({at: zeros(m)}), epochs=3)
        assert found[0.75] > 0.2
        assert (zeros(model) < found[0.75] - 0.1) is alive
    decay = {}
    for amount in (0.0, 0.5):
        policy = SoftThreshold(init_threshold=-4.0, threshold_decay=amount)
        train(mlp(), policy, (0, 3, 0))
        decay[amount] = policy.thresholds()["0.weight"]
    assert decay[0.5] > decay[0.0] * 1.2


# -- soft movement ---------------------------------------------------------------------------------------------------


def test_soft_movement_learns_scores_straight_through_the_mask():
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.5, -2.0]]))
    policy = SoftMovement()
    scheduler = distiller.CompressionScheduler(model)
    scheduler.add_policy(policy, starting_epoch=0, ending_epoch=1)
    with torch.no_grad():
        model[0].mask_scores.copy_(torch.tensor([[1.0, -3.0]]))
    scheduler.on_epoch_begin(0)
    assert model[0].weight.tolist() == [[0.5, 0.0]]
    model(torch.tensor([[1.0, 3.0]])).sum().backward()
    assert model[0]._parameters["weight"].grad.tolist() == [[1.0, 0.0]]
    assert model[0].mask_scores.grad.tolist() == [[0.5, -6.0]]


def test_soft_movement_presses_scores_down_and_prunes_more_the_stronger_it_is():
    reached = {}
    for strength in (0.0, 300.0):
        model = mlp()
        train(model, SoftMovement(regularization=strength, score_lr=1.0, warmup=0.5), (0, 3, 0), epochs=3)
        reached[strength] = zeros(model)
    assert reached[0.0] < 0.1 < 0.3 < reached[300.0]
    components = {}
    model = mlp()
    scheduler = distiller.CompressionScheduler(model)
    scheduler.add_policy(SoftMovement(regularization=2.0, inter_func="linear"), starting_epoch=0, ending_epoch=5)
    scheduler.on_epoch_begin(2)
    scheduler.on_minibatch_begin(2, 0, 1)
    result = scheduler.before_backward_pass(2, 0, 1, torch.tensor(1.0, requires_grad=True), return_loss_components=True)
    components.update({c.name: float(c.value) for c in result.loss_components})
    assert components == {"soft_movement": pytest.approx(2.0 * 0.5 * 0.5)}


# -- Top-KAST --------------------------------------------------------------------------------------------------------


def test_topkast_uses_the_largest_and_teaches_some_more():
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[4.0, -3.0, 2.0, 1.0]]))
    policy = TopKAST(forward_sparsity=0.75, backward_sparsity=0.5, active_weight_decay=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.3)
    scheduler = distiller.CompressionScheduler(model, optimizer=optimizer)
    scheduler.add_policy(policy, starting_epoch=0, ending_epoch=2)
    for epoch in scheduler.epochs(1):
        for _ in scheduler.minibatches([0]):
            assert model[0].weight.tolist() == [[4.0, 0.0, 0.0, 0.0]]
            scheduler.backward(model(torch.ones(1, 4)).sum())
            assert model[0]._parameters["weight"].grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]
            optimizer.step()
        stored = model[0]._parameters["weight"].detach().clone()
        # 4 - 0.05 * 4 = 3.8, -3 + 4 * 0.05 * 3 = -2.4, then SGD with weight decay 0.3: w - 0.5 (g + 0.3 w)
        torch.testing.assert_close(stored, torch.tensor([[3.8 - 0.5 * 2.14, -2.4 - 0.5 * 0.28, 2.0, 1.0]]))
        assert stored[0, 2:].tolist() == [2.0, 1.0] and epoch == 0
    assert model[0].weight.tolist() == [[pytest.approx(2.73), 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_topkast_ends_sparse_and_stays_so(scope):
    model, found = mlp(), {}
    policy = TopKAST(forward_sparsity=0.8, backward_sparsity=0.5, scope=scope)
    train(model, policy, (0, 2, -1), watch=lambda at, s: found.update({at: zeros(model)}), epochs=4)
    assert found[1.0] == found[2.25] == zeros(model) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"forward_sparsity": 1.5}, "forward_sparsity"),
        ({"backward_sparsity": 0.95}, "backward_sparsity"),
        ({"scope": "all"}, "scope"),
        ({"mask_type": "x"}, "mask_type"),
        ({"leave_enabled": 1}, "leave_enabled"),
    ],
)
def test_topkast_refuses(settings, where):
    with pytest.raises(ArgumentError) as caught:
        TopKAST(**{"forward_sparsity": 0.9, "backward_sparsity": 0.8, **settings})
    assert caught.value.argument[0] == where
