"""Loading: Distiller's return values, what does not fit, and that a failed load changes nothing."""

import logging

import pytest
import torch
from torch import nn

from distiller_ng.checkpoint import load_checkpoint, load_lean_checkpoint, save_checkpoint
from distiller_ng.core.scheduler import CompressionScheduler
from distiller_ng.errors import CheckpointError
from distiller_ng.policies import PruningPolicy
from distiller_ng.pruning import SparsityLevelParameterPruner


def small_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))


def trained(seed=0, kind=torch.optim.SGD, groups=False, **options):
    """A model, its optimizer with state, and a scheduler with one mask."""
    model = small_model(seed)
    parameters = model.parameters()
    if groups:
        parameters = [{"params": [model[3].weight], "lr": 0.5}, {"params": [model[0].weight, model[3].bias]}]
    optimizer = kind(parameters, lr=0.125, **options)
    scheduler = CompressionScheduler(model, optimizer=optimizer)
    scheduler.masks.set("3.weight", torch.arange(24.0).reshape(2, 12) % 2, owner="p")
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 1, 4, 4)).square().sum().backward()
        optimizer.step()
    return model, optimizer, scheduler


def equal_states(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal_states(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal_states(x, y) for x, y in zip(a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.Adam, {}),
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.RMSprop, {}),
    ],
)
@pytest.mark.parametrize("groups", [False, True])
def test_everything_comes_back(tmp_path, kind, options, groups):
    model, optimizer, scheduler = trained(kind=kind, groups=groups, **options)
    path = save_checkpoint(0, "a", model, optimizer, scheduler, dir=tmp_path)
    other = small_model(1)
    result = load_checkpoint(other, path)
    loaded, its_scheduler, its_optimizer, start_epoch = result
    assert loaded is other
    assert start_epoch == 1
    assert equal_states(dict(other.state_dict()), dict(model.state_dict()))
    assert type(its_optimizer) is kind
    assert equal_states(its_optimizer.state_dict(), optimizer.state_dict())
    first = its_optimizer.param_groups[0]["params"][0]
    names = {id(p): n for n, p in other.named_parameters()}
    assert names[id(first)] == ("3.weight" if groups else "0.weight")
    assert torch.equal(its_scheduler.masks["3.weight"].mask, scheduler.masks["3.weight"].mask)
    assert its_scheduler.schedule == ()


def test_given_optimizer_is_restored_in_place(tmp_path):
    model, optimizer, _ = trained(momentum=0.9)
    path = save_checkpoint(4, "a", model, optimizer, dir=tmp_path)
    other = small_model(1)
    mine = torch.optim.SGD(other.parameters(), lr=9.0)
    _, scheduler, returned, start_epoch = load_checkpoint(other, path, mine)
    assert returned is mine
    assert mine.param_groups[0]["lr"] == 0.125
    assert scheduler is None
    assert start_epoch == 5


def test_weights_alone(tmp_path):
    torch.save({"state_dict": small_model(3).state_dict()}, tmp_path / "w.pth")
    model = small_model()
    assert load_checkpoint(model, tmp_path / "w.pth")[1:] == (None, None, 0)
    assert torch.equal(model[0].weight, small_model(3)[0].weight)


def test_bare_state_dict_is_refused(tmp_path):
    torch.save(small_model().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"under the key 'state_dict'.*torch\.save\(\{'state_dict'"):
        load_checkpoint(small_model(), tmp_path / "w.pth")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_checkpoint(small_model(), tmp_path / "nowhere" / "checkpoint.pth.tar")


def test_lean_loads_weights_only(tmp_path):
    model, optimizer, scheduler = trained()
    path = save_checkpoint(5, "a", model, optimizer, scheduler, dir=tmp_path)
    other = small_model(1)
    assert load_lean_checkpoint(other, path) is other
    assert equal_states(dict(other.state_dict()), dict(model.state_dict()))
    assert load_checkpoint(other, path, lean_checkpoint=True) == (other, None, None, 0)


def test_wrapped_names_fit_either_way(tmp_path):
    model = small_model(3)
    torch.save({"state_dict": nn.DataParallel(model).state_dict()}, tmp_path / "w.pth")
    bare = small_model()
    load_lean_checkpoint(bare, tmp_path / "w.pth")
    assert torch.equal(bare[0].weight, model[0].weight)
    path = save_checkpoint(0, "a", model, dir=tmp_path)
    wrapped = nn.DataParallel(small_model())
    load_lean_checkpoint(wrapped, path)
    assert torch.equal(wrapped.module[0].weight, model[0].weight)


def test_model_is_built_by_the_factory(tmp_path):
    model = small_model(3)
    model.dataset = "digits"
    path = save_checkpoint(0, "mynet", model, dir=tmp_path)
    asked = []

    def factory(dataset, arch):
        asked.append((dataset, arch))
        return small_model()

    built = load_checkpoint(None, path, model_factory=factory)[0]
    assert asked == [("digits", "mynet")]
    assert torch.equal(built[0].weight, model[0].weight)


def test_model_none_needs_a_factory_arch_and_dataset(tmp_path):
    path = save_checkpoint(0, None, small_model(), dir=tmp_path)
    with pytest.raises(CheckpointError, match="model_factory"):
        load_checkpoint(None, path)
    with pytest.raises(ValueError, match="does not say its dataset and arch"):
        load_checkpoint(None, path, model_factory=lambda dataset, arch: small_model())


def _assert_unchanged(path, match, *, model=None, optimizer=None, scheduler=None, **options):
    model = small_model(7) if model is None else model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint(model, path, optimizer, scheduler=scheduler, **options)
    assert equal_states(dict(model.state_dict()), before)


def test_missing_weights(tmp_path):
    state = small_model().state_dict()
    del state["3.weight"], state["1.num_batches_tracked"]
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    _assert_unchanged(tmp_path / "w.pth", r"1 missing: 3\.weight")


def test_old_files_without_the_batch_counter_load(tmp_path):
    state = small_model(3).state_dict()
    del state["1.num_batches_tracked"]
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    model = small_model()
    load_checkpoint(model, tmp_path / "w.pth")
    assert torch.equal(model[3].bias, small_model(3)[3].bias)


def test_unexpected_weights_warn_or_fail(tmp_path, caplog):
    torch.save({"state_dict": small_model().state_dict() | {"extra.weight": torch.ones(1)}}, tmp_path / "w.pth")
    with caplog.at_level(logging.WARNING):
        load_checkpoint(small_model(), tmp_path / "w.pth")
    assert "1 not in the model: extra.weight" in caplog.text
    _assert_unchanged(tmp_path / "w.pth", r"1 not in the model: extra\.weight", strict=True)


def test_other_shapes(tmp_path):
    torch.save({"state_dict": small_model().state_dict() | {"3.weight": torch.ones(2, 5)}}, tmp_path / "w.pth")
    _assert_unchanged(tmp_path / "w.pth", r"1 of another shape: 3\.weight is \[2, 5\], the model's \[2, 12\]")


def test_other_architecture(tmp_path):
    path = save_checkpoint(0, "resnet20_cifar", small_model(), dir=tmp_path)
    model = small_model(7)
    model.arch = "digits_cnn"
    _assert_unchanged(path, "of a 'resnet20_cifar', but the model is a 'digits_cnn'", model=model)


def test_other_optimizers(tmp_path):
    model, optimizer, _ = trained()
    path = save_checkpoint(0, "a", model, optimizer, dir=tmp_path)
    other = small_model(7)
    adam = torch.optim.Adam(other.parameters(), lr=0.1)
    _assert_unchanged(path, r"is a torch\.optim\.SGD, this one a torch\.optim\.Adam", model=other, optimizer=adam)
    part = torch.optim.SGD([other[0].weight], lr=0.1)
    _assert_unchanged(path, r"groups of \[6\] parameters, this one of \[1\]", model=other, optimizer=part)
    turned = torch.optim.SGD(list(other.parameters())[::-1], lr=0.1)
    _assert_unchanged(path, r"holds '3\.bias' where the checkpoint's had '0\.weight'", model=other, optimizer=turned)
    assert turned.param_groups[0]["lr"] == 0.1


def test_scheduler_of_another_model_or_schedule(tmp_path):
    model, optimizer, scheduler = trained()
    path = save_checkpoint(0, "a", model, optimizer, scheduler, dir=tmp_path)
    other = small_model(7)
    _assert_unchanged(path, "another model", model=other, scheduler=CompressionScheduler(small_model()))
    wrong = CompressionScheduler(other)
    wrong.add_policy(PruningPolicy(SparsityLevelParameterPruner("p", {"0.weight": 0.5})), epochs=[0])
    _assert_unchanged(path, "another schedule", model=other, scheduler=wrong)
    assert wrong.masks.masked() == {}


def test_custom_optimizer_class_is_named_and_left_to_the_user(tmp_path, caplog):
    class Mine(torch.optim.SGD):
        pass

    model = small_model()
    path = save_checkpoint(0, "a", model, Mine(model.parameters(), lr=0.1), dir=tmp_path)
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(small_model(), path)[2] is None
    assert "Mine is not torch's: pass optimizer=" in caplog.text
    other = small_model()
    mine = Mine(other.parameters(), lr=0.5)
    assert load_checkpoint(other, path, mine)[2].param_groups[0]["lr"] == 0.1


def test_scaled_masks_and_flags_survive(tmp_path):
    model = small_model()
    scheduler = CompressionScheduler(model)
    mask = torch.full((2, 12), 1.5)
    mask[0] = 0
    scheduler.masks.set("3.weight", mask, owner="bernoulli")
    scheduler.masks["0.weight"].use_double_copies = True
    path = save_checkpoint(0, "a", model, scheduler=scheduler, dir=tmp_path)
    other = small_model(1)
    target = CompressionScheduler(other)
    load_checkpoint(other, path, scheduler=target)
    assert torch.equal(target.masks["3.weight"].owners["bernoulli"], mask)
    assert target.masks["0.weight"].use_double_copies


def test_tied_weights_stay_tied(tmp_path):
    def tied():
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        model[1].weight = model[0].weight
        return model

    model = tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    path = save_checkpoint(0, "a", model, optimizer, dir=tmp_path)
    other = tied()
    _, _, its_optimizer, _ = load_checkpoint(other, path)
    assert other[0].weight is other[1].weight
    assert torch.equal(other[1].weight, model[0].weight)
    assert len(its_optimizer.param_groups[0]["params"]) == 1


def test_extra_module_state_round_trips(tmp_path):
    class WithState(nn.Linear):
        def get_extra_state(self):
            return {"calls": self.calls}

        def set_extra_state(self, state):
            self.calls = state["calls"]

    model, other = WithState(2, 2), WithState(2, 2)
    model.calls, other.calls = 5, 0
    load_checkpoint(other, save_checkpoint(0, "a", model, dir=tmp_path))
    assert other.calls == 5
