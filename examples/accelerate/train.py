"""A training loop with Hugging Face's accelerate and a schedule, on handwritten digits.

    python train.py                         # 90 % of the weights are pruned
    accelerate launch --cpu train.py        # the same, started by accelerate
    python train.py --resume runs/epoch_5   # goes on from accelerate's own checkpoint

prints accuracy after every epoch, what was planned and what was achieved. README.md has the results.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader

import distiller_ng
from distiller_ng.apputils.datasets.digits import Digits
from distiller_ng.integrations.accelerate import AcceleratedLoop
from distiller_ng.models import create_model

HERE = Path(__file__).parent


@torch.no_grad()
def top1(model: nn.Module, loader: DataLoader[Any]) -> float:
    """Accuracy in percent."""
    model.eval()
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in loader)
    return 100.0 * right / len(loader.dataset)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train, and say what came out; the same as a dictionary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedule", default=str(HERE / "schedule.yaml"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--accumulate", type=int, default=2, help="minibatches a step")
    parser.add_argument("--out", default="runs", help="folder of the checkpoints, one for each epoch")
    parser.add_argument("--resume", help="a checkpoint of an earlier run")
    args = parser.parse_args(arguments)

    set_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=args.accumulate)
    model = create_model(False, "digits", "digits_cnn")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = distiller_ng.file_config(model, optimizer, args.schedule)  # before prepare: it is given the bare model
    data = Digits()
    train_loader = DataLoader(data.train_set(), batch_size=args.batch_size, shuffle=True)
    test_loader = DataLoader(data.test_set(), batch_size=360)
    prepared, optimizer, train_loader = accelerator.prepare(model, optimizer, train_loader)
    accelerator.register_for_checkpointing(scheduler)  # masks, policies and position go into save_state
    if args.resume:
        accelerator.load_state(args.resume)

    loop, criterion, history = AcceleratedLoop(accelerator, scheduler, prepared), nn.CrossEntropyLoss(), {}
    for epoch in scheduler.epochs(args.epochs):
        prepared.train()
        for images, labels in loop.minibatches(train_loader):
            loop.backward(criterion(prepared(images), labels))
            optimizer.step()
            optimizer.zero_grad()
        history[epoch] = top1(prepared, test_loader)
        accelerator.print(f"epoch {epoch:2}: top-1 {history[epoch]:.2f}")
        accelerator.save_state(str(Path(args.out, f"epoch_{epoch}")))
    summary = scheduler.finish()
    accelerator.print(summary)
    accelerator.print(f"checkpoints: {args.out}")
    return {"top1": history, "summary": summary, "model": model}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
