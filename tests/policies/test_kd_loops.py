"""Distillation with everything else: resume, AMP, torch.compile, wrappers, replicas, copies of the model."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from replicas import in_two_processes
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import distiller_ng as distiller
from distiller_ng.apputils import load_checkpoint, save_checkpoint
from distiller_ng.knowledge_distillation.own_teacher import OwnTeacher

EPOCHS = 3


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU()
        self.fc = nn.Linear(width * 16, 4)

    def forward(self, x):
        return self.fc(self.relu(self.bn(self.conv(x))).flatten(1))


KINDS = {
    "logits": {"teacher": "big"},
    "layers": {"teacher": "big", "layers": {"conv": "conv", "relu": {"teacher": "relu", "loss": "AT"}}, "gain": 0.5},
    "self": {"teacher": "self", "layers": {"conv": "conv"}},
    "ema": {"teacher": {"ema": 0.8}, "loss_weights": {"distill": {0: 0.2, 3: 0.8}, "student": 0.5}},
    "several": {"teacher": ["big", {"ema": 0.5}], "teacher_weights": [1, 3]},
    "mutual": {"class": "MutualDistiller", "peer": "big"},
}
every_kind = pytest.mark.parametrize("kind", list(KINDS))


def schedule(kind, start=1):
    return {
        "distillers": {"kd": {"class": "KnowledgeDistiller", "temperature": 2.0, **KINDS[kind]}},
        "policies": [{"distiller": {"instance_name": "kd"}, "starting_epoch": start, "ending_epoch": EPOCHS}],
    }


class Run:
    def __init__(
        self,
        kind,
        *,
        wrap=lambda model: model,
        wrap_teacher=lambda model: model,
        optimizer=torch.optim.SGD,
        example=True,
        start=1,
        batch=8,
    ):
        torch.manual_seed(0)
        self.model, self.teacher = Net(4), Net(6)
        x, y = torch.randn(32, 1, 6, 6), torch.randint(0, 4, (32,))
        self.loader = DataLoader(TensorDataset(x, y), batch_size=batch, shuffle=True, generator=torch.Generator())
        self.optimizer = optimizer(self.model.parameters(), lr=0.05)
        self.net = wrap(self.model)
        self.scheduler = distiller.dict_config(
            self.net,
            self.optimizer,
            schedule(kind, start),
            teachers={"big": wrap_teacher(self.teacher)},
            example_inputs=(x[:2],) if example else None,
        )
        self.losses = []
        torch.manual_seed(1)

    def train(self, stop_after=None, autocast=None, scaler=None, accumulate=1):
        done = 0
        for _ in self.scheduler.epochs(EPOCHS):
            self.optimizer.zero_grad()
            for x, y in self.scheduler.minibatches(self.loader, accumulate=accumulate):
                with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
                    loss = functional.cross_entropy(self.net(x), y)
                self.losses.append(float(self.scheduler.backward(loss, scaler=scaler)))
                if self.scheduler.should_step:
                    (self.optimizer.step() if scaler is None else scaler.step(self.optimizer))
                    self.optimizer.zero_grad()
                if scaler is not None:
                    scaler.update()
                done += 1
                if done == stop_after:
                    return self
        return self

    def weights(self):
        """Of the model, and of what is trained beside it."""
        return [p.detach().clone() for group in self.optimizer.param_groups for p in group["params"]]

    def state(self):
        return {"model": self.model, "scheduler": self.scheduler, "optimizer": self.optimizer}


@every_kind
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("killed_after", [4, 7, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 10))])
def test_resume_is_bit_identical(kind, optimizer, killed_after):
    whole = Run(kind, optimizer=optimizer).train()
    first, buffer = Run(kind, optimizer=optimizer).train(stop_after=killed_after), io.BytesIO()
    torch.save({key: part.state_dict() for key, part in first.state().items()}, buffer)
    buffer.seek(0)
    resumed = Run(kind, optimizer=optimizer)
    torch.manual_seed(99)
    saved = torch.load(buffer, weights_only=True)
    for key, part in resumed.state().items():
        part.load_state_dict(saved[key])
    resumed.train()
    assert first.losses + resumed.losses == whole.losses
    for a, b in zip(whole.weights(), resumed.weights(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("kind", "example"), [("layers", True), ("layers", False), ("ema", True), ("mutual", True)])
def test_resume_from_a_checkpoint_file(kind, example, tmp_path):
    whole = Run(kind, optimizer=torch.optim.AdamW, example=example).train()
    first = Run(kind, optimizer=torch.optim.AdamW, example=example).train(stop_after=8)
    save_checkpoint(1, "net", first.model, first.optimizer, first.scheduler, dir=str(tmp_path), name="kd")
    resumed = Run(kind, optimizer=torch.optim.AdamW, example=example)
    load_checkpoint(
        resumed.model, str(tmp_path / "kd_checkpoint.pth.tar"), resumed.optimizer, scheduler=resumed.scheduler
    )
    resumed.train()
    for a, b in zip(whole.weights(), resumed.weights(), strict=True):
        assert torch.equal(a, b)


def test_an_optimizer_that_does_not_fit_keeps_its_groups(tmp_path):
    first = Run("layers", optimizer=torch.optim.AdamW, example=False).train(stop_after=8)
    save_checkpoint(1, "net", first.model, first.optimizer, first.scheduler, dir=str(tmp_path), name="kd")
    other = Run("layers", optimizer=torch.optim.SGD, example=False)
    with pytest.raises(distiller.CheckpointError, match=r"is a torch\.optim\.AdamW"):
        load_checkpoint(
            other.model, str(tmp_path / "kd_checkpoint.pth.tar"), other.optimizer, scheduler=other.scheduler
        )
    assert len(other.optimizer.param_groups) == 1


def test_projections_that_no_example_made_come_back_with_the_schedulers_state():
    whole = Run("layers", example=False).train()
    first = Run("layers", example=False).train(stop_after=7)
    resumed = Run("layers", example=False)
    assert len(resumed.optimizer.param_groups) == 1
    resumed.model.load_state_dict(first.model.state_dict())
    resumed.scheduler.load_state_dict(first.scheduler.state_dict())
    assert len(resumed.optimizer.param_groups) == 2
    resumed.optimizer.load_state_dict(first.optimizer.state_dict())
    resumed.train()
    for a, b in zip(whole.weights(), resumed.weights(), strict=True):
        assert torch.equal(a, b)


def test_state_of_another_distiller_is_refused():
    state = Run("layers").train(stop_after=5).scheduler.state_dict()
    for kind, message in (("ema", "made with the teachers"), ("mutual", "another schedule")):
        with pytest.raises(distiller.CheckpointError, match=message):
            Run(kind).scheduler.load_state_dict(state)


@every_kind
def test_bf16_autocast(kind):
    run = Run(kind).train(autocast=torch.bfloat16)
    assert all(torch.isfinite(w).all() for w in run.weights()) and len(set(run.losses)) > 6


def test_the_teacher_computes_as_the_student_under_autocast():
    seen = {}
    for kind in ("plain", "autocast", "set"):
        torch.manual_seed(0)
        student, teacher = Net(4), Net(6)
        scheduler = distiller.CompressionScheduler(student)
        options = {"autocast": "bfloat16"} if kind == "set" else {}
        scheduler.add_policy(
            distiller.KnowledgeDistillationPolicy(student, teacher, **options), starting_epoch=0, ending_epoch=1
        )
        teacher.fc.register_forward_hook(lambda m, a, out, kind=kind: seen.__setitem__(kind, out.dtype))
        scheduler.on_epoch_begin(0)
        scheduler.on_minibatch_begin(0, 0, 1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "autocast"):
            loss = student(torch.randn(2, 1, 6, 6)).float().sum()
        scheduler.before_backward_pass(0, 0, 1, loss)
    assert seen == {"plain": torch.float32, "autocast": torch.bfloat16, "set": torch.bfloat16}


@every_kind
def test_grad_scaler(kind):
    plain = Run(kind).train()
    scaled = Run(kind).train(scaler=torch.amp.GradScaler("cpu", init_scale=4.0))
    for a, b in zip(plain.weights(), scaled.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_skipped_step_does_not_move_the_average():
    run = Run("ema", start=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    run.scheduler.on_epoch_begin(0)
    run.scheduler.on_minibatch_begin(0, 0, 1, run.optimizer)
    teacher = run.scheduler.schedule[0][0].teacher
    run.model.fc.weight.data.add_(1.0)
    loss = functional.cross_entropy(run.net(torch.randn(2, 1, 6, 6)), torch.tensor([0, 1]))
    scaler.scale(run.scheduler.before_backward_pass(0, 0, 1, loss)).backward()
    run.model.fc.bias.grad.fill_(float("inf"))
    before = copy.deepcopy(teacher.state_dict())
    scaler.step(run.optimizer)
    scaler.update()
    run.scheduler.on_minibatch_end(0, 0, 1, run.optimizer)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


# -- torch.compile ----------------------------------------------------------------------------------------------------


def compiled(model):
    torch._dynamo.reset()
    return torch.compile(model, backend="aot_eager")


@every_kind
@pytest.mark.parametrize("where", [*(pytest.param(w, marks=pytest.mark.slow) for w in ("student", "teacher")), "both"])
def test_torch_compile(kind, where):
    eager = Run(kind).train()
    wraps = {"wrap": compiled} if where != "teacher" else {}
    wraps |= {"wrap_teacher": compiled} if where != "student" else {}
    run = Run(kind, **wraps).train()
    assert run.losses == pytest.approx(eager.losses, rel=1e-4)
    for a, b in zip(eager.weights(), run.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["logits", "layers"])
def test_a_model_compiled_after_the_schedule_was_loaded(kind):
    eager = Run(kind).train()
    run = Run(kind)
    run.net = compiled(run.model)
    run.train()
    assert run.losses == pytest.approx(eager.losses, rel=1e-4)


def test_compile_in_place():
    eager = Run("layers").train()
    run = Run("layers")
    torch._dynamo.reset()
    run.model.compile(backend="aot_eager")
    run.train()
    assert run.losses == pytest.approx(eager.losses, rel=1e-4)


def called_once(model):
    made = compiled(model)
    made(torch.randn(8, 1, 6, 6)).sum().backward()
    model.zero_grad()
    return made


def test_hooks_on_layers_after_the_first_compiled_call_are_refused():
    run = Run("layers", wrap=called_once, start=0)
    with pytest.raises(distiller.LifecycleError, match="the student's layer 'conv': hooks on layers inside a compiled"):
        run.train()


def test_another_model_of_the_class_compiled_before_says_what_to_do():
    called_once(Net(4))
    run = Run("layers", wrap=lambda model: torch.compile(model, backend="aot_eager"), start=0)
    with pytest.raises(distiller.LifecycleError, match=r"call torch._dynamo.reset\(\) first"):
        run.train()
    torch._dynamo.reset()
    again = Run("layers", wrap=lambda model: torch.compile(model, backend="aot_eager"), start=0).train()
    assert again.losses == pytest.approx(Run("layers", start=0).train().losses, rel=1e-4)


def test_hooks_on_a_teachers_layers_after_its_first_compiled_call_are_refused():
    def used(model):
        made = compiled(model.eval())
        with torch.no_grad():
            made(torch.randn(8, 1, 6, 6))
        return made

    run = Run("layers", wrap_teacher=used, start=0, example=False)
    with pytest.raises(distiller.LifecycleError, match="the teacher's layer 'conv': hooks on layers inside a compiled"):
        run.train()


def test_logits_need_no_hooks_inside_and_may_come_later():
    eager = Run("logits").train()
    assert Run("logits", wrap=called_once).net is not None
    run = Run("logits", wrap=lambda m: compiled(m)).train()
    assert run.losses == pytest.approx(eager.losses, rel=1e-4)


def test_a_layer_replaced_after_the_first_compiled_step_is_refused():
    run = Run("layers", wrap=compiled, start=0)
    run.train(stop_after=1)
    run.model.conv = nn.Conv2d(1, 4, 3)
    run.scheduler.on_minibatch_end(0, 0, 4)
    with pytest.raises(distiller.LifecycleError, match="'conv' was replaced after the compiled model first ran"):
        run.scheduler.on_minibatch_begin(0, 1, 4)


# -- wrappers and copies ----------------------------------------------------------------------------------------------


@every_kind
def test_data_parallel_on_one_device(kind):
    assert Run(kind, wrap=nn.DataParallel, wrap_teacher=nn.DataParallel).train().losses == Run(kind).train().losses


def test_channels_last_and_bfloat16_models():
    torch.manual_seed(0)
    x, y = torch.randn(8, 1, 6, 6), torch.randint(0, 4, (8,))
    for change in (lambda m: m.to(memory_format=torch.channels_last), lambda m: m.bfloat16(), lambda m: m.double()):
        student, teacher = change(Net(4)), change(Net(6))
        optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
        dtype = student.fc.weight.dtype
        scheduler = distiller.CompressionScheduler(student, optimizer=optimizer, example_inputs=(x[:1].to(dtype),))
        policy = distiller.KnowledgeDistillationPolicy(student, teacher, 2.0, layers={"conv": "conv"})
        scheduler.add_policy(policy, starting_epoch=0, ending_epoch=1)
        for _ in scheduler.epochs(1):
            for batch in scheduler.minibatches([x] * 2):
                inputs = batch.to(dtype).contiguous(memory_format=torch.channels_last)
                assert torch.isfinite(scheduler.backward(functional.cross_entropy(student(inputs), y)))
                optimizer.step()


def test_copies_and_pickles_of_a_watched_student_hold_nothing():
    run = Run("layers", start=0).train(stop_after=1)
    policy = run.scheduler.schedule[0][0]
    run.scheduler.on_minibatch_end(0, 0, 4)
    run.scheduler.on_minibatch_begin(0, 1, 4)
    run.net(torch.randn(2, 1, 6, 6))
    assert policy._step._recorder.passes
    for twin in (copy.deepcopy(run.model), pickle.loads(pickle.dumps(run.model))):
        before = len(policy._step._recorder.passes)
        twin(torch.randn(2, 1, 6, 6))
        assert len(policy._step._recorder.passes) == before
        for module in twin.modules():
            for hook in module._forward_hooks.values():
                assert not hook.recorder.is_open and not hook.recorder.passes and not hook.recorder.features


def test_torch_export_of_a_student_between_steps():
    run = Run("layers", start=0).train(stop_after=2)
    exported = torch.export.export(run.model.eval(), (torch.randn(2, 1, 6, 6),), strict=False)
    x = torch.randn(2, 1, 6, 6)
    torch.testing.assert_close(exported.module()(x), run.model(x))


def test_pruning_beside_distillation_keeps_its_zeros():
    torch.manual_seed(0)
    student, teacher = Net(4), Net(6)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    x, y = torch.randn(8, 1, 6, 6), torch.randint(0, 4, (8,))
    pruner = {"class": "SparsityLevelParameterPruner", "levels": {"conv.weight": 0.5}}
    plan = {"pruners": {"p": pruner}, **schedule("layers", start=0)}
    plan["policies"] = [{"pruner": {"instance_name": "p"}, "epochs": [0, 1, 2]}, *plan["policies"]]
    scheduler = distiller.dict_config(student, optimizer, plan, teachers={"big": teacher}, example_inputs=(x,))
    for _ in scheduler.epochs(EPOCHS):
        for batch in scheduler.minibatches([x] * 3):
            optimizer.zero_grad()
            scheduler.backward(functional.cross_entropy(student(batch), y))
            optimizer.step()
            assert (student.conv.weight == 0).float().mean() == 0.5
    assert set(scheduler.zeros_mask_dict) == set(scheduler.parameters)
    (projection,) = optimizer.param_groups[1]["params"]
    assert bool((projection != 0).all())


# -- replicas ---------------------------------------------------------------------------------------------------------


def _replica(rank, folder):
    results = {}
    for kind in KINDS:
        for example in (True, False):
            run = Run(kind, wrap=DistributedDataParallel, example=example)
            x, y = run.loader.dataset.tensors
            half = slice(rank * 16, rank * 16 + 16)
            run.loader = DataLoader(TensorDataset(x[half], y[half]), batch_size=4)
            torch.manual_seed(100 + rank)
            run.train()
            results[f"{kind} {example}"] = run.weights()
    torch.save(results, folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_replicas_keep_the_same_weights(tmp_path):
    in_two_processes(_replica, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert len(first) == 2 * len(KINDS)
    for name, ours in first.items():
        assert all(torch.equal(a, b) for a, b in zip(ours, second[name], strict=True)), name
    assert len(first["layers True"]) == 7


@pytest.mark.parametrize(
    ("student", "teacher"), [("float32", "bfloat16"), ("float64", "float32"), ("bfloat16", "float32")]
)
def test_a_teacher_in_another_type_of_numbers(student, teacher):
    torch.manual_seed(0)
    mine, theirs = getattr(torch, student), getattr(torch, teacher)
    model, large = Net(4).to(mine), Net(6).to(theirs)
    scheduler = distiller.CompressionScheduler(model)
    policy = distiller.KnowledgeDistillationPolicy(model, large, 2.0, layers={"conv": "conv"})
    scheduler.add_policy(policy, starting_epoch=0, ending_epoch=1)
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    x = torch.randn(4, 1, 6, 6).to(mine)
    total = scheduler.before_backward_pass(0, 0, 1, functional.cross_entropy(model(x), torch.tensor([0, 1, 2, 3])))
    total.backward()
    assert torch.isfinite(total) and model.conv.weight.grad.abs().sum() > 0


def test_an_empty_batch_is_no_crash():
    model, teacher = nn.Linear(3, 4), nn.Linear(3, 4)
    scheduler = distiller.CompressionScheduler(model)
    scheduler.add_policy(distiller.KnowledgeDistillationPolicy(model, teacher), starting_epoch=0, ending_epoch=1)
    scheduler.on_epoch_begin(0)
    scheduler.on_minibatch_begin(0, 0, 1)
    loss = scheduler.before_backward_pass(0, 0, 1, model(torch.zeros(0, 3)).sum())
    assert loss.shape == ()


def thin(model):
    """Half of the filters, in place."""
    keep = torch.arange(2)
    model.conv = nn.Conv2d(1, 2, 3)
    bn, model.bn = model.bn, nn.BatchNorm2d(2)
    model.fc = nn.Linear(32, 4)
    model.bn.weight.data = bn.weight.data[keep]
    return model


def test_a_dense_copy_comes_back_for_a_student_that_was_thinned_since():
    first = Run("self", start=0).train(stop_after=1)
    policy = first.scheduler.schedule[0][0]
    x = torch.randn(2, 1, 6, 6)
    want = policy.teacher(x)
    resumed = distiller.KnowledgeDistillationPolicy(thin(Net(4)), "self", 2.0)
    scheduler = distiller.CompressionScheduler(resumed.student)
    scheduler.add_policy(resumed, starting_epoch=0, ending_epoch=3)
    resumed.load_state_dict({**policy.state_dict(), "projections": {}})
    assert torch.equal(resumed.teacher(x), want)
    assert (resumed.teacher.conv.out_channels, resumed.teacher.bn.num_features, resumed.teacher.fc.in_features) == (
        4,
        4,
        64,
    )
    assert resumed.student.conv.out_channels == 2
    deeper = distiller.KnowledgeDistillationPolicy(student := nn.Sequential(Net(4)), "self", 2.0)
    distiller.CompressionScheduler(student).add_policy(deeper, starting_epoch=0, ending_epoch=3)
    with pytest.raises(distiller.CheckpointError, match="'0.conv.weight' is in one of them only"):
        deeper.load_state_dict(policy.state_dict())


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize("teacher", ["self", {"ema": 0.5}])
def test_copies_of_a_student_that_keeps_computed_weights(norm, teacher):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # weight_norm is torch's old one
        norm(model)
    x = torch.randn(4, 3)
    model(x)  # from here on model.weight is part of a graph
    source = OwnTeacher("own", teacher["ema"] if isinstance(teacher, dict) else None)
    source.begin(model)
    assert torch.equal(source.module(x), model.eval()(x))
    assert source.module.weight.data_ptr() != model.weight.data_ptr()


def test_an_average_of_half_precision_weights_is_kept_in_float32():
    torch.manual_seed(0)
    model = nn.Linear(3, 4).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scheduler = distiller.CompressionScheduler(model, optimizer=optimizer)
    policy = distiller.KnowledgeDistillationPolicy(model, {"ema": 0.999})
    scheduler.add_policy(policy, starting_epoch=0, ending_epoch=1)
    for _ in scheduler.epochs(1):
        for batch in scheduler.minibatches([torch.randn(2, 3).bfloat16()] * 3):
            with torch.no_grad():
                model.weight.fill_(2.0)
            scheduler.backward(model(batch).float().sum())
            before = policy.teacher.weight.clone()
            optimizer.step()
    assert policy.teacher.weight.dtype == torch.float32
    torch.testing.assert_close(policy.teacher.weight, before + 0.001 * (2.0 - before))


def _train_part(kind, rank, world, leave_out_hook):
    """Three epochs by hand on one part of 16 samples; everything the optimizer holds."""
    torch.manual_seed(0)
    student, teacher = (
        nn.Sequential(nn.Conv2d(1, w, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * w, 4)).double() for w in (4, 6)
    )
    part = slice(rank * 16 // world, (rank + 1) * 16 // world)
    x, y = torch.randn(16, 1, 6, 6).double()[part], torch.randint(0, 4, (16,))[part]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    model = DistributedDataParallel(student) if world > 1 else student
    plan = {
        "distillers": {"kd": {"class": "KnowledgeDistiller", "teacher": "big", "layers": {"0": "0"}}},
        "policies": [{"distiller": {"instance_name": "kd"}, "starting_epoch": 0, "ending_epoch": 3}],
    }
    if kind == "mutual":
        plan["distillers"]["kd"] = {"class": "MutualDistiller", "peer": "big"}
    scheduler = distiller.dict_config(model, optimizer, plan, teachers={"big": teacher}, example_inputs=(x[:1],))
    for epoch in range(3):
        scheduler.on_epoch_begin(epoch, optimizer)
        scheduler.on_minibatch_begin(epoch, 0, 1, optimizer)
        loss = scheduler.before_backward_pass(epoch, 0, 1, functional.cross_entropy(model(x), y), optimizer)
        optimizer.zero_grad()
        loss.backward()
        if not leave_out_hook:
            scheduler.before_parameter_optimization(epoch, 0, 1, optimizer)
        optimizer.step()
        scheduler.on_minibatch_end(epoch, 0, 1, optimizer)
        scheduler.on_epoch_end(epoch, optimizer)
    return [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]


CASES = [(kind, leave_out) for kind in ("layers", "mutual") for leave_out in (False, True)]


def _half(rank, folder):
    results = {f"{kind} {leave_out}": _train_part(kind, rank, 2, leave_out) for kind, leave_out in CASES}
    if rank == 0:
        torch.save(results, folder / "halves.pt")


@pytest.mark.slow
def test_two_replicas_equal_one_process_on_the_whole_batch(tmp_path):
    in_two_processes(_half, tmp_path)
    halves = torch.load(tmp_path / "halves.pt", weights_only=True)
    for kind, leave_out in CASES:
        for a, b in zip(halves[f"{kind} {leave_out}"], _train_part(kind, 0, 1, leave_out), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
