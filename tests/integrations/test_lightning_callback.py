"""The Lightning callback against the same training in a loop of our own."""

from __future__ import annotations

import json

import pytest

L = pytest.importorskip("lightning.pytorch")  # an optional test group

import torch  # noqa: E402
from integration_runs import PLATEAU, SCHEDULE, SMALLER, by_hand, loader, network, samples  # noqa: E402
from torch import nn  # noqa: E402

import distiller_ng  # noqa: E402
from distiller_ng.errors import ArgumentError, LifecycleError, ScheduleError  # noqa: E402
from distiller_ng.integrations.lightning import CompressionCallback  # noqa: E402


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = network()

    def training_step(self, batch, _index):
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self.model(inputs), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.4, momentum=0.9)


def trainer(folder, callback, epochs=4, **more):
    return L.Trainer(
        max_epochs=epochs, callbacks=[callback], accelerator="cpu", logger=False, default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, **more,
    )  # fmt: skip


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_lightning_trains_what_a_loop_of_our_own_trains(tmp_path, accumulate):
    module, callback = Module(), CompressionCallback(SCHEDULE, module="model")
    trainer(tmp_path, callback, accumulate_grad_batches=accumulate).fit(module, loader())
    expected = by_hand(accumulate=accumulate).state_dict()
    for name, value in module.model.state_dict().items():
        assert torch.allclose(value, expected[name], atol=1e-6), name
    assert (module.model[0].weight == 0).sum() == 36
    assert callback.summary is not None
    assert "configure_optimizers" not in module.__dict__


def test_resumed_training_is_the_same(tmp_path):
    whole = by_hand().state_dict()
    first, callback = Module(), CompressionCallback(SCHEDULE, module="model")
    runner = trainer(tmp_path, callback, epochs=2)
    runner.fit(first, loader())
    runner.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)
    second, callback = Module(), CompressionCallback(SCHEDULE, module="model")
    trainer(tmp_path, callback).fit(second, loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    for name, value in second.model.state_dict().items():
        assert torch.allclose(value, whole[name], atol=1e-6), name


def test_a_model_that_got_smaller_is_saved_and_resumed(tmp_path):
    whole = by_hand(schedule=SMALLER).state_dict()
    assert whole["0.fc_u.weight"].shape == (4, 1)
    runner = trainer(tmp_path, CompressionCallback(SMALLER, module="model"), epochs=2)
    runner.fit(Module(), loader())
    runner.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)
    second = Module()
    resumed = trainer(tmp_path, CompressionCallback(SMALLER, module="model"))
    resumed.fit(second, loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    assert list(second.model.state_dict()) == list(whole)
    for name, value in second.model.state_dict().items():
        assert torch.allclose(value, whole[name], atol=1e-6), name
    assert "on_load_checkpoint" not in second.__dict__


def test_training_resumed_inside_an_epoch_goes_on_with_the_schedule(tmp_path):
    class Saving(Module):
        def on_train_batch_end(self, outputs, batch, index):
            if (self.current_epoch, index) == (1, 2):
                self.trainer.save_checkpoint(tmp_path / "inside.ckpt", weights_only=False)

    trainer(tmp_path, CompressionCallback(SCHEDULE, module="model"), epochs=2).fit(Saving(), loader())
    second, callback = Module(), CompressionCallback(SCHEDULE, module="model")
    runner = trainer(tmp_path, callback)
    # Which batches follow is Lightning's affair: it starts a loader that cannot be resumed from its beginning.
    runner.fit(second, loader(), ckpt_path=tmp_path / "inside.ckpt", weights_only=False)
    assert (second.model[0].weight == 0).sum() == 36
    assert runner.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.4 * 0.5**4)
    assert callback.summary is not None


def test_training_goes_on_from_a_checkpoint_of_the_last_minibatch(tmp_path):
    class Saving(Module):
        def on_train_batch_end(self, outputs, batch, index):
            if (self.current_epoch, index) == (1, 5):
                self.trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=False)

    trainer(tmp_path, CompressionCallback(SCHEDULE, module="model"), epochs=2).fit(Saving(), loader())
    second = Module()
    resumed = trainer(tmp_path, CompressionCallback(SCHEDULE, module="model"))
    resumed.fit(second, loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    for name, value in by_hand().state_dict().items():
        assert torch.allclose(second.model.state_dict()[name], value, atol=1e-6), name

    waiting = trainer(tmp_path, CompressionCallback(SCHEDULE, module="model", monitor={"min": "loss"}))
    with pytest.raises(LifecycleError, match="before the validation whose 'loss' the schedule needs"):
        waiting.fit(Module(), loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=False)


def test_a_run_is_recorded(tmp_path):
    only_l1 = {"regularizers": SCHEDULE["regularizers"], "policies": [SCHEDULE["policies"][1]]}

    def recorded(model, optimizer):
        scheduler = distiller_ng.dict_config(model, optimizer, only_l1)
        distiller_ng.record_run(tmp_path / "run", scheduler, schedule=only_l1)
        return scheduler

    trainer(tmp_path, CompressionCallback(recorded, module="model"), epochs=2).fit(Module(), loader())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    batches = [(row["epoch"], row["completed"]) for row in rows if row.get("group") == "Performance/Training"]
    assert batches == [(epoch, done) for epoch in (0, 1) for done in range(1, 7)]
    first = next(row["metrics"] for row in rows if row.get("group") == "Performance/Training")
    model, (inputs, labels) = network(), next(iter(loader()))
    loss = nn.functional.cross_entropy(model(inputs), labels)
    assert first["Objective Loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert first["Overall Loss"] == pytest.approx((loss + 0.05 * model[2].weight.abs().sum()).item(), rel=1e-5)


def test_a_further_fit_of_the_trainer_goes_on_with_the_schedule(tmp_path):
    module, callback = Module(), CompressionCallback(SCHEDULE, module="model")
    runner = trainer(tmp_path, callback, epochs=3)
    runner.fit(module, loader())
    scheduler, runner.fit_loop.max_epochs = callback.scheduler, 4
    runner.fit(module, loader())
    assert callback.scheduler is scheduler
    assert (module.model[0].weight == 0).sum() == 36


def test_rates_of_the_schedule_replace_those_of_the_module(tmp_path, caplog):
    class Both(Module):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1), "interval": "step"}]

    module = Both()
    trainer(tmp_path, CompressionCallback(SCHEDULE, module="model")).fit(module, loader())
    for name, value in by_hand().state_dict().items():
        assert torch.allclose(module.model.state_dict()[name], value, atol=1e-6), name
    assert "configure_optimizers' lr_scheduler is left out" in caplog.text


def test_accumulation_that_changes_by_epochs_is_followed(tmp_path):
    steps = L.callbacks.GradientAccumulationScheduler({0: 1, 1: 4})
    only_l1 = {"regularizers": SCHEDULE["regularizers"], "policies": [SCHEDULE["policies"][1]]}
    module = Module()
    runner = trainer(tmp_path, CompressionCallback(only_l1, module="model"), epochs=2, gradient_clip_val=0.2)
    runner.callbacks.append(steps)
    runner.fit(module, loader())
    model = network()  # an ordinary loop, with 6 minibatches in steps of 1, then of 4 and 2
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4, momentum=0.9)
    for accumulate in (1, 4):
        for index, (inputs, labels) in enumerate(loader()):
            loss = nn.functional.cross_entropy(model(inputs), labels) + 0.05 * model[2].weight.abs().sum()
            (loss / accumulate).backward()
            if (index + 1) % accumulate == 0 or index == 5:
                nn.utils.clip_grad_norm_(model.parameters(), 0.2)
                optimizer.step()
                optimizer.zero_grad()
    for name, value in module.model.state_dict().items():
        assert torch.allclose(value, model.state_dict()[name], atol=1e-6), name


def test_a_loader_without_a_length_is_refused(tmp_path):
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(samples())

    with pytest.raises(LifecycleError, match="set limit_train_batches"):
        trainer(tmp_path, CompressionCallback(SCHEDULE, module="model")).fit(
            Module(), torch.utils.data.DataLoader(Endless(), batch_size=4)
        )


def test_names_begin_at_the_lightning_module_without_module():
    callback = CompressionCallback(SCHEDULE)
    with pytest.raises(ScheduleError, match=r"'0\.weight' matches no parameter of the model.*model\.0\.weight"):
        trainer(None, callback).fit(Module(), loader())


def test_metrics_reach_plateaus(tmp_path):
    class Flat(Module):
        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            self.log("flat", 1.0)
            return loss

    module, callback = Flat(), CompressionCallback(PLATEAU, monitor={"min": "flat"})
    runner = trainer(tmp_path, callback, epochs=3)
    runner.fit(module, loader())
    assert runner.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.004)
    with pytest.raises(ArgumentError, match="nothing was logged as 'other'"):
        trainer(tmp_path, CompressionCallback(PLATEAU, monitor={"min": "other"})).fit(Flat(), loader())


class Manual(Module):
    automatic_optimization = False


class Two(Module):
    def configure_optimizers(self):
        return [torch.optim.SGD(self.model[0].parameters()), torch.optim.SGD(self.model[2].parameters())]


@pytest.mark.parametrize(
    ("module", "arguments", "error", "message"),
    [
        (Manual, {}, LifecycleError, "manual optimization"),
        (Two, {}, LifecycleError, "one optimizer"),
        (Module, {"module": "network"}, ArgumentError, "has no module 'network'"),
    ],
)
def test_what_cannot_be_driven_is_refused(tmp_path, module, arguments, error, message):
    with pytest.raises(error, match=message):
        trainer(tmp_path, CompressionCallback(SCHEDULE, **arguments)).fit(module(), loader())


@pytest.mark.parametrize("engine", ["DeepSpeedStrategy", "FSDPStrategy", "ModelParallelStrategy"])
def test_engines_that_own_the_step_are_refused_by_name(tmp_path, engine):
    kind = type(engine, (L.strategies.SingleDeviceStrategy,), {})
    callback = CompressionCallback(SCHEDULE, module="model")
    with pytest.raises(LifecycleError, match=f"{engine}, whose engine owns parameters and steps"):
        trainer(tmp_path, callback, strategy=kind(device="cpu")).fit(Module(), loader())


def test_structure_does_not_change_below_ddp(tmp_path):
    kind = type("DDPStrategy", (L.strategies.SingleDeviceStrategy,), {})
    callback = CompressionCallback(SMALLER, module="model")
    with pytest.raises(LifecycleError, match=r"changes its structure \(FilterRemover\): train in one process"):
        trainer(tmp_path, callback, strategy=kind(device="cpu")).fit(Module(), loader())


def test_every_hook_is_driven_the_loss_included(tmp_path):
    called = []

    class Spy(distiller_ng.Policy):
        def before_backward_pass(self, ctx):
            called.append(("before_backward_pass", float(ctx.loss)))
            return distiller_ng.core.policy.PolicyLoss(
                2 * ctx.loss, distiller_ng.core.policy.LossComponent("x", ctx.loss)
            )

    def noting(hook):
        return lambda self, ctx: called.append((hook, ctx.is_step))

    hooks = ("on_epoch_begin", "on_minibatch_begin", "before_parameter_optimization", "on_minibatch_end", "on_epoch_end",
             "on_finish")  # fmt: skip
    for hook in hooks:
        setattr(Spy, hook, noting(hook))

    def schedule(model, optimizer):
        scheduler = distiller_ng.CompressionScheduler(model, optimizer=optimizer)
        scheduler.add_policy(Spy(), starting_epoch=0, ending_epoch=9)
        return scheduler

    module, seen = Module(), []
    module.on_before_optimizer_step = lambda optimizer: seen.append(module.model[2].bias.grad.clone())
    trainer(tmp_path, CompressionCallback(schedule, module="model"), epochs=1, accumulate_grad_batches=3).fit(
        module, loader()
    )
    counts = {hook: sum(name == hook for name, _ in called) for hook in (*hooks, "before_backward_pass")}
    assert counts == {"on_epoch_begin": 1, "on_minibatch_begin": 6, "before_backward_pass": 6,
                      "before_parameter_optimization": 2, "on_minibatch_end": 6, "on_epoch_end": 1, "on_finish": 1}  # fmt: skip
    assert [step for name, step in called if name == "on_minibatch_end"] == [False, False, True] * 2
    # the gradients are those of twice the mean loss of three minibatches, and policies see the loss at full scale
    fresh = network()
    batches = list(loader())[:3]
    losses = [nn.functional.cross_entropy(fresh(x), y) for x, y in batches]
    (2 * sum(losses) / 3).backward()
    assert torch.allclose(seen[0], fresh[2].bias.grad, atol=1e-6)
    told = [value for name, value in called if name == "before_backward_pass"][:3]
    assert told == pytest.approx([float(loss) for loss in losses], rel=1e-5)


def test_monitor_has_two_kinds():
    with pytest.raises(ArgumentError, match="'min' and 'max'"):
        CompressionCallback(SCHEDULE, monitor={"val_loss": "min"})
