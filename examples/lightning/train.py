"""A convolutional network on handwritten digits, trained by Lightning and made smaller by a schedule.

    python train.py                                    # half of the multiply-accumulates go while it trains
    python train.py --resume runs/epoch=9.ckpt         # goes on from a checkpoint, of the smaller model too

prints accuracy before pruning and at the end, what was planned and what was achieved. README.md has the results.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from distiller_ng.apputils.datasets.digits import Digits
from distiller_ng.integrations.lightning import CompressionCallback
from distiller_ng.models import create_model
from distiller_ng.reports.compute import layer_costs

HERE = Path(__file__).parent


class Classifier(L.LightningModule):
    """An ordinary LightningModule: nothing in it knows about compression."""

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        self.model = create_model(False, "digits", "digits_cnn")
        self.lr = lr
        self.top1: list[float] = []  # after every epoch

    def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.model(images), labels)

    def on_validation_epoch_start(self) -> None:
        self._right = self._seen = 0

    def validation_step(self, batch: list[Tensor], _index: int) -> None:
        images, labels = batch
        self._right += int((self.model(images).argmax(1) == labels).sum())
        self._seen += len(labels)

    def on_validation_epoch_end(self) -> None:
        self.top1.append(100.0 * self._right / self._seen)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def macs(model: nn.Module) -> int:
    """Multiply-accumulates for one image."""
    return sum(cost.macs for cost in layer_costs(model, torch.zeros(1, 1, 8, 8)))


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train, and say what came out; the same as a dictionary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedule", default=str(HERE / "schedule.yaml"))
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--accumulate", type=int, default=2, help="minibatches a step")
    parser.add_argument("--out", default="runs", help="folder of the checkpoints, one for each epoch")
    parser.add_argument("--resume", help="a checkpoint of an earlier run")
    args = parser.parse_args(arguments)

    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    L.seed_everything(0, verbose=False)
    data = Digits()
    train_loader = DataLoader(data.train_set(), batch_size=args.batch_size, shuffle=True)
    test_loader = DataLoader(data.test_set(), batch_size=360)
    classifier = Classifier()
    before = sum(p.numel() for p in classifier.parameters()), macs(classifier.model)
    # The whole integration: a callback. It knows the names of `classifier.model`, as the schedule has them.
    compression = CompressionCallback(args.schedule, module="model", example_inputs=(torch.zeros(1, 1, 8, 8),))
    checkpoints = ModelCheckpoint(args.out, filename="{epoch}", save_top_k=-1)
    trainer = L.Trainer(
        max_epochs=args.epochs,
        accumulate_grad_batches=args.accumulate,
        callbacks=[compression, checkpoints],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(
        classifier, train_loader, test_loader, ckpt_path=args.resume, weights_only=False if args.resume else None
    )

    after = sum(p.numel() for p in classifier.parameters()), macs(classifier.model)
    for epoch, top1 in enumerate(classifier.top1, args.epochs - len(classifier.top1)):
        print(f"epoch {epoch:2}: top-1 {top1:.2f}")
    print(f"\nparameters {before[0]:,} -> {after[0]:,}, multiply-accumulates {before[1]:,} -> {after[1]:,} "
          f"({after[1] / before[1]:.1%})")  # fmt: skip
    print(compression.summary)
    print(f"checkpoints: {args.out}")
    return {"top1": classifier.top1, "macs": after[1] / before[1], "parameters": after[0], "model": classifier.model}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
