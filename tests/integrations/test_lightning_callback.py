"""The Lightning callback against the same training in a loop of our own."""

from __future__ import annotations

import pytest

L = pytest.importorskip("lightning.pytorch")  # an optional test group

import torch  # noqa: E402
from integration_runs import PLATEAU, SCHEDULE, by_hand, loader, network  # noqa: E402
from torch import nn  # noqa: E402

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


@pytest.mark.parametrize("accumulate", [1, 2])
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


def test_names_begin_at_the_lightning_module_without_module():
    callback = CompressionCallback(SCHEDULE)
    with pytest.raises(ScheduleError, match=r"Did you mean 'model\.0\.weight'"):
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


def test_monitor_has_two_kinds():
    with pytest.raises(ArgumentError, match="'min' and 'max'"):
        CompressionCallback(SCHEDULE, monitor={"val_loss": "min"})
