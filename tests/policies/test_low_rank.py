"""Linear layers replaced by low-rank products: by a schedule, in one call, through checkpoints, below optimizers."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import distiller_ng as distiller
from distiller_ng.checkpoint import load_checkpoint, load_model, save_checkpoint
from distiller_ng.config import dict_config
from distiller_ng.errors import ArgumentError, CheckpointError, GraphError, ScheduleError, TargetError
from distiller_ng.export import OnnxModule, export_model
from distiller_ng.graph.changes import changes_of
from distiller_ng.modules import TruncatedSVD
from distiller_ng.policies.low_rank import low_rank_
from distiller_ng.policies.low_rank_thinning import LowRankThinning

X = torch.randn(5, 24, generator=torch.Generator().manual_seed(3))


def new_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 20, bias=False), nn.ReLU(), nn.Linear(20, 4))


def schedule(epoch=1, layers=("0", "2"), **how):
    how = how or {"rank": 3}
    return {
        "extensions": {"low_rank": {"class": "LowRankThinning", "layers": list(layers), **how}},
        "policies": [{"extension": {"instance_name": "low_rank"}, "epochs": [epoch]}],
    }


def run(document, kind=torch.optim.SGD, **options):
    options = options or {"lr": 0.05, "momentum": 0.9}
    model = new_model()
    optimizer = kind(model.parameters(), **options)
    return model, optimizer, dict_config(model, optimizer, document)


def train(model, optimizer, scheduler, epochs, steps=3):
    for epoch in epochs:
        scheduler.on_epoch_begin(epoch, optimizer)
        for step in range(steps):
            torch.manual_seed(100 * epoch + step)
            x, y = torch.randn(6, 24), torch.randint(4, (6,))
            scheduler.on_minibatch_begin(epoch, step, steps, optimizer)
            loss = nn.functional.cross_entropy(model(x), y)
            loss = scheduler.before_backward_pass(epoch, step, steps, loss, optimizer)
            optimizer.zero_grad()
            loss.backward()
            scheduler.before_parameter_optimization(epoch, step, steps, optimizer)
            optimizer.step()
            scheduler.on_minibatch_end(epoch, step, steps, optimizer)
        scheduler.on_epoch_end(epoch, optimizer)


# -- what is replaced --------------------------------------------------------------------------------------------------


def test_layers_become_the_best_products_of_their_rank():
    model = new_model()
    weight, bias = model[0].weight.detach().clone(), model[0].bias
    report = low_rank_(model, "0", rank=3)
    assert type(model[0]) is TruncatedSVD and type(model[2]) is nn.Linear
    u, s, vh = torch.linalg.svd(weight)
    torch.testing.assert_close(model[0].weight, u[:, :3] * s[:3] @ vh[:3])
    assert model[0].bias is bias and (model[0].in_features, model[0].out_features) == (24, 20)
    (layer,) = report.layers
    assert layer.parameters == (480, 132) and report.parameters == (984, 984 - 480 + 132)
    assert layer.energy == pytest.approx(float(s[:3].square().sum() / s.square().sum()), abs=1e-6)
    assert "0 [20, 24]: rank 3, 480 -> 132 weights" in str(report)
    # both factors have the same norm: they train alike
    torch.testing.assert_close(model[0].fc_u.weight.norm(), model[0].fc_sv.weight.norm())


@pytest.mark.parametrize(
    ("how", "rank"),
    [
        ({"preserve_ratio": 0.25}, 5),
        ({"rank": 2}, 2),
        ({"energy": 0.9}, 2),
        ({"energy": 0.92}, 2),
        ({"energy": 0.95}, 3),
    ],
)
def test_ranks(how, rank):
    model = nn.Sequential(nn.Linear(20, 20))
    q = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(0)))[0]
    values = torch.tensor([3.0, 2.0, 1.0] + 17 * [1e-9])  # energies 9, 13, 14 of 14
    model[0].weight.data = q * values @ q.T
    low_rank_(model, **how)
    assert model[0].rank == rank


def test_everything_is_kept_with_all_energy_of_a_singular_matrix():
    model = nn.Sequential(nn.Linear(30, 30))
    model[0].weight.data = torch.randn(30, 4) @ torch.randn(4, 30)
    before = model(torch.ones(1, 30))
    low_rank_(model, energy=0.999999)
    assert model[0].rank == 4
    torch.testing.assert_close(model(torch.ones(1, 30)), before, atol=1e-3, rtol=1e-3)


def test_layers_that_would_not_get_smaller_stay_and_are_named():
    model = new_model()
    report = low_rank_(model, rank=10)
    assert [layer.name for layer in report.layers] == ["0"]  # 10 * 44 < 480; 10 * 40 = 400
    assert report.notes == (
        "2 stays: at rank 10 it would have 400 weights in place of 400",
        "4 stays: at rank 4 it would have 96 weights in place of 80",
    )
    assert not low_rank_(new_model(), "2", rank=10)


def test_odd_layers_stay_when_they_are_not_named_and_are_refused_when_they_are():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 20, bias=False)
            self.head.weight = self.embed.weight
            self.attend = nn.MultiheadAttention(16, 2, batch_first=True)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
            self.lazy, self.plain = nn.LazyLinear(16), nn.Linear(16, 16)

        def forward(self, x):
            x = self.embed(x)
            x = self.attend(x, x, x, need_weights=False)[0]
            return self.head(self.plain(self.lazy(self.normed(x))))

    model = Odd()
    report = low_rank_(model, rank=2)
    assert [layer.name for layer in report.layers] == ["plain"]
    for name, reason in [("head", "shared"), ("attend.out_proj", "attention"), ("normed", "parametrized")]:
        assert any(note.startswith(f"{name} stays") and reason in note for note in report.notes)
        with pytest.raises(GraphError, match=f"{name} cannot be replaced by a product: .*{reason}"):
            low_rank_(model, name, rank=2)
    assert model(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 20)


def test_a_shared_layer_is_replaced_everywhere():
    shared = nn.Linear(16, 16)
    model = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared))
    low_rank_(model, "0", rank=2)
    assert model[0] is model[2][0] and isinstance(model[0], TruncatedSVD)
    other = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Sequential(nn.Linear(16, 16)))
    assert len(list(model.parameters())) == 3 and model(torch.ones(1, 16)).shape == other(torch.ones(1, 16)).shape


def test_torchs_transformer_layer_works_in_both_modes():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    low_rank_(model, r"re:.*linear1", rank=4)
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), model.train()(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_modes_and_frozen_weights_stay(dtype):
    model = new_model().to(dtype).eval()
    model[0].weight.requires_grad_(False)
    low_rank_(model, "0", rank=2)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert not model[0].training and not model[0].fc_u.weight.requires_grad and model[0].bias.requires_grad
    assert model(X.to(dtype)).dtype == dtype


def test_forward_hooks_stay_and_can_be_removed():
    model, seen = new_model(), []
    handle = model[0].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    low_rank_(model, "0", rank=2)
    model(X)
    handle.remove()
    model(X)
    assert seen == [(5, 20)]


def test_copies_pickles_and_onnx(tmp_path):
    model = new_model()
    low_rank_(model, ["0", "2"], rank=3)
    expected = model.eval()(X)
    assert torch.equal(copy.deepcopy(model)(X), expected)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=False)(X), expected)
    export_model(model, "onnx", X, tmp_path / "small.onnx")
    found = OnnxModule(tmp_path / "small.onnx")(X)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_summaries_follow():
    from distiller_ng.reports.compute import layer_costs

    model = new_model()
    before = sum(cost.macs for cost in layer_costs(model, X[:1]))
    low_rank_(model, ["0", "2"], rank=3)
    after = sum(cost.macs for cost in layer_costs(model, X[:1]))
    assert (before, after) == (480 + 400 + 80, 3 * 44 + 3 * 40 + 80)


# -- in training -------------------------------------------------------------------------------------------------------


def test_a_schedule_replaces_layers_once_at_its_epoch():
    model, optimizer, scheduler = run(schedule(1))
    train(model, optimizer, scheduler, [0])
    assert type(model[0]) is nn.Linear
    before = model.eval()(X)
    scheduler.on_epoch_begin(1, optimizer)
    assert [type(model[i]) for i in (0, 2, 4)] == [TruncatedSVD, TruncatedSVD, nn.Linear]
    assert model(X).shape == before.shape
    names = ["0.fc_sv.weight", "0.fc_u.weight", "0.fc_u.bias", "2.fc_sv.weight", "2.fc_u.weight", "4.weight", "4.bias"]
    assert sorted(scheduler.masks) == sorted(names)
    parameters = dict(model.named_parameters())
    (group,) = optimizer.param_groups
    assert [next(n for n, p in parameters.items() if p is q) for q in group["params"]] == names


def test_sgds_momentum_is_that_of_the_factors():
    model, optimizer, scheduler = run(schedule(1))
    train(model, optimizer, scheduler, [0])
    momentum = optimizer.state[model[0].weight]["momentum_buffer"].clone()
    of_bias = optimizer.state[model[0].bias]["momentum_buffer"].clone()
    scheduler.on_epoch_begin(1, optimizer)
    left, right = model[0].fc_u.weight, model[0].fc_sv.weight
    torch.testing.assert_close(optimizer.state[left]["momentum_buffer"], momentum @ right.T)
    torch.testing.assert_close(optimizer.state[right]["momentum_buffer"], left.T @ momentum)
    assert torch.equal(optimizer.state[model[0].bias]["momentum_buffer"], of_bias)
    assert {id(p) for p in optimizer.state} <= {id(p) for p in model.parameters()}


def test_adams_state_of_the_factors_begins_afresh_and_the_bias_keeps_its_own():
    model, optimizer, scheduler = run(schedule(1), torch.optim.AdamW, lr=0.01)
    train(model, optimizer, scheduler, [0, 1])
    steps = {n: int(optimizer.state[p]["step"]) for n, p in model.named_parameters()}
    assert (steps["0.fc_u.weight"], steps["0.fc_u.bias"], steps["4.weight"]) == (3, 6, 6)


def test_groups_keep_their_settings_and_names():
    model = new_model()
    decayed = [(n, p) for n, p in model.named_parameters() if p.dim() == 2]
    others = [(n, p) for n, p in model.named_parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.3}, {"params": others, "lr": 0.5}], lr=0.1)
    low_rank_(model, "2", rank=3, optimizer=optimizer)
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "2.fc_sv.weight", "2.fc_u.weight", "4.weight"]
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 2]
    assert optimizer.param_groups[0]["weight_decay"] == 0.3
    model(X).sum().backward()
    optimizer.step()
    assert len(optimizer.state) == 6


def test_training_goes_on_and_the_loss_falls():
    model, optimizer, scheduler = run(schedule(1, rank=6), lr=0.1, momentum=0.9)
    x, y = torch.randn(64, 24), torch.randint(4, (64,))
    losses = []
    for _ in scheduler.epochs(150):
        for inputs, labels in scheduler.minibatches([(x, y)]):
            optimizer.zero_grad()
            loss = scheduler.backward(nn.functional.cross_entropy(model(inputs), labels))
            losses.append(float(loss))
            optimizer.step()
    assert losses[-1] < 0.2 < losses[1] and scheduler.finish() is not None


def test_a_schedule_without_training_acts_at_once():
    model = new_model()
    dict_config(model, None, schedule(5)).run_once()
    assert isinstance(model[0], TruncatedSVD)


def test_fractional_windows_act_between_steps():
    document = schedule()
    document["policies"][0] = {
        "extension": {"instance_name": "low_rank"}, "starting_epoch": 0.5, "ending_epoch": 2.0, "frequency": 0.5,
    }  # fmt: skip
    model, optimizer, scheduler = run(document)
    train(model, optimizer, scheduler, [0], steps=4)
    assert isinstance(model[0], TruncatedSVD)
    train(model, optimizer, scheduler, [1])
    assert len(changes_of(model)) == 1


def test_thinning_before_and_after():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 40), nn.ReLU(), nn.Linear(40, 4))
    x = torch.randn(2, 1, 6, 6)
    distiller.prune_structures(model, x, sparsity=0.5, weights=["0.weight"])
    low_rank_(model, "3", rank=5)
    report = distiller.prune_structures(model, x, sparsity=0.5, weights=["3.fc_u.weight"])
    assert report.error < 1e-4 and model[3].out_features == 20 and model[3].in_features == 48
    fresh = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 40), nn.ReLU(), nn.Linear(40, 4))
    assert [step["transform"] for step in changes_of(model)] == ["thinning", "low_rank", "thinning"]
    from distiller_ng.checkpoint.record import CompressionRecord

    record = CompressionRecord.from_json(CompressionRecord().completed(model).to_json())
    record.replay(fresh).load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(x), model.eval()(x))


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
        (torch.optim.Adam, {"lr": 0.01}),
        (torch.optim.AdamW, {"lr": 0.01}),
    ],
)
@pytest.mark.parametrize("stop", [0, 1])
def test_a_run_resumes_exactly(tmp_path, kind, options, stop):
    whole = run(schedule(1, energy=0.7), kind, **options)
    train(*whole, [0, 1, 2])
    killed = run(schedule(1, energy=0.7), kind, **options)
    train(*killed, range(stop + 1))
    path = save_checkpoint(stop, None, *killed, dir=tmp_path)
    model, optimizer, scheduler = run(schedule(1, energy=0.7), kind, **options)
    load_checkpoint(model, path, optimizer, scheduler=scheduler)
    train(model, optimizer, scheduler, range(stop + 1, 3))
    for name, value in whole[0].state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    again, _, rebuilt, _ = load_checkpoint(new_model(), path)
    assert [len(g["params"]) for g in rebuilt.param_groups] == [len(list(again.parameters()))]


def test_models_load_as_often_as_one_likes(tmp_path):
    model = new_model()
    low_rank_(model, ["0", "2"], rank=3)
    path = save_checkpoint(0, None, model, dir=tmp_path)
    loaded = load_model(new_model, path)
    assert torch.equal(loaded(X), model.eval()(X))
    for _ in range(2):
        load_checkpoint(loaded, path)
        path = save_checkpoint(1, None, loaded, dir=tmp_path, name="again")
    assert changes_of(loaded) == changes_of(model)
    with pytest.raises(CheckpointError, match=r"had replaced a Linear \[20, 24\] at '0', here is Linear \[7, 24\]"):
        load_model(lambda: nn.Sequential(nn.Linear(24, 7), nn.ReLU(), nn.Linear(7, 20)), path)


def test_a_load_that_fails_leaves_model_and_optimizer_alone(tmp_path):
    model, optimizer, scheduler = run(schedule(0))
    train(model, optimizer, scheduler, [0])
    path = save_checkpoint(0, None, model, optimizer, scheduler, dir=tmp_path)
    fresh = new_model()
    other = torch.optim.Adam(fresh.parameters())
    groups, parameters = [list(g["params"]) for g in other.param_groups], list(fresh.parameters())
    with pytest.raises(CheckpointError, match="the checkpoint's optimizer is a"):
        load_checkpoint(fresh, path, other)
    assert type(fresh[0]) is nn.Linear
    assert all(p is q for p, q in zip(other.param_groups[0]["params"], groups[0], strict=True))
    assert all(p is q for p, q in zip(fresh.parameters(), parameters, strict=True))


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of preserve_ratio, energy and rank, got none"),
        ({"rank": 2, "energy": 0.5}, "exactly one of .* got energy and rank"),
        ({"energy": 0.0}, "energy must be above 0"),
        ({"preserve_ratio": 1.5}, "preserve_ratio must be above 0"),
        ({"rank": 0}, "whole number from 1"),
        ({"rank": True}, "whole number from 1"),
        ({"energy": "much"}, "energy must be above 0"),
        ({"layers": [], "rank": 1}, "list of module names"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        LowRankThinning(**arguments)
    with pytest.raises(ArgumentError, match=message):
        low_rank_(new_model(), **arguments)


@pytest.mark.parametrize(("layer", "message"), [("conv", "is no module"), ("1", "is a ReLU; only Linear")])
def test_names_are_looked_at_when_the_schedule_is_loaded(layer, message):
    with pytest.raises(ScheduleError, match=message):
        run(schedule(1, layers=[layer]))
    with pytest.raises(TargetError, match=message):
        low_rank_(new_model(), layer, rank=1)
    with pytest.raises(TargetError, match="no Linear layer"):
        low_rank_(nn.Sequential(nn.Conv2d(1, 1, 1)), rank=1)


PRUNER = {"pruners": {"p": {"class": "SparsityLevelParameterPruner", "levels": {"2.weight": 0.5}}}}
L1 = {"regularizers": {"p": {"class": "L1Regularizer", "reg_regims": {"2.weight": 0.1}}}}


def test_masked_layers_are_refused_and_nothing_changes():
    document = schedule(2) | PRUNER
    document["policies"].insert(0, {"pruner": {"instance_name": "p"}, "epochs": [0, 1]})
    model, optimizer, scheduler = run(document)
    train(model, optimizer, scheduler, [0, 1])
    parameters = list(model.parameters())
    with pytest.raises(GraphError, match=r"2\.weight is masked"):
        scheduler.on_epoch_begin(2, optimizer)
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True)) and not changes_of(model)


@pytest.mark.parametrize("epochs", [(0, 4), (2, 4), (1, -1)])
@pytest.mark.parametrize(("kind", "section"), [("pruner", PRUNER), ("regularizer", L1)])
def test_policies_that_need_a_replaced_weight_are_refused_when_the_schedule_is_loaded(kind, section, epochs):
    document = schedule(2) | section
    window = {"starting_epoch": epochs[0], "ending_epoch": epochs[1], "frequency": 1}
    document["policies"].append({kind: {"instance_name": "p"}, **window})
    with pytest.raises(ScheduleError, match=rf"{kind} 'p' acts on '2\.weight' in or after epoch 2, when extension"):
        run(document)


@pytest.mark.parametrize(("start", "first"), [(0, False), (5, True)])
def test_a_quantizer_in_the_same_schedule_is_refused_when_it_is_loaded(start, first):
    document = schedule(2)
    document["quantizers"] = {"q": {"class": "DorefaQuantizer", "bits_weights": 4, "bits_activations": 8}}
    policy = {"quantizer": {"instance_name": "q"}, "starting_epoch": start, "ending_epoch": 9, "frequency": 1}
    document["policies"].insert(len(document["policies"]) * int(first), policy)
    with pytest.raises(ScheduleError, match="quantizer 'q' prepares its layers when the schedule is loaded.*write two"):
        run(document)


def test_a_second_schedule_quantizes_the_factors_that_the_first_one_left(tmp_path):
    model, optimizer, scheduler = run(schedule(0))
    train(model, optimizer, scheduler, [0])
    save_checkpoint(0, "mlp", model, optimizer=optimizer, scheduler=scheduler, dir=tmp_path, name="mlp")
    second = load_model(new_model, tmp_path / "mlp_checkpoint.pth.tar")
    assert torch.equal(second(X), model(X))
    document = {
        "quantizers": {"q": {"class": "DorefaQuantizer", "bits_weights": 4, "bits_activations": 8}},
        "policies": [{"quantizer": {"instance_name": "q"}, "starting_epoch": 0, "ending_epoch": 2, "frequency": 1}],
    }
    optimizer = torch.optim.SGD(second.parameters(), lr=0.05)
    train(second, optimizer, dict_config(second, optimizer, document, example_inputs=(X,)), [0, 1])
    assert [type(part).__name__ for part in second[0].children()] == ["QuantizedLinear"] * 2


def test_what_is_over_by_then_is_fine_and_policies_added_by_hand_get_a_typed_error():
    document = schedule(2) | L1
    document["policies"].append(
        {"regularizer": {"instance_name": "p"}, "starting_epoch": 0, "ending_epoch": 2, "frequency": 1}
    )
    model, optimizer, scheduler = run(document)
    train(model, optimizer, scheduler, range(4))
    assert isinstance(model[2], TruncatedSVD) and str(scheduler.finish())
    model, optimizer, scheduler = run(schedule(1))
    late = distiller.RegularizationPolicy(distiller.regularization.L1Regularizer("p", model, {"2.weight": 0.1}))
    scheduler.add_policy(late, starting_epoch=2, ending_epoch=3)
    with pytest.raises(TargetError, match=r"no parameter '2\.weight' \(any more\)"):
        train(model, optimizer, scheduler, range(3))


def test_quantized_models_are_refused():
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    distiller.quantization.DorefaQuantizer(
        model, optimizer=optimizer, bits_weights=4, bits_activations=8
    ).prepare_model()
    with pytest.raises(GraphError, match="quantized: make its layers of low rank first"):
        low_rank_(model, rank=1)


def test_optimizers_with_lists_of_their_own_are_refused():
    model = new_model()
    with pytest.raises(GraphError, match="LBFGS"):
        low_rank_(model, rank=1, optimizer=torch.optim.LBFGS(model.parameters()))
    model[0].weight.data[0, 0] = float("nan")
    with pytest.raises(GraphError, match="not finite"):
        low_rank_(model, "0", rank=1)
    assert low_rank_(nn.DataParallel(new_model()), "0", rank=1)
