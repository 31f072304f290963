"""A small BERT that sorts paragraphs of Python's own documentation by topic, pruned in the transformers Trainer.

    python train.py                                       # dense first, then pruned to 80 %
    python train.py --resume runs/pruned/checkpoint-375   # the second half goes on from a checkpoint

The model is made from a configuration and learns from the texts alone (``topics.py``): nothing is downloaded, so it
knows no language beforehand. Prints accuracy before and after, what was planned and what was achieved. README.md has
the results.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from topics import TOPICS, load
from transformers import BertConfig, BertForSequenceClassification, PrinterCallback, Trainer, TrainingArguments
from transformers.utils import logging as transformers_logging

from distiller_ng.integrations.transformers import compress_trainer

HERE = Path(__file__).parent


def top1(evaluated: Any) -> dict[str, float]:
    """Accuracy in percent, for the Trainer."""
    return {"top1": 100.0 * float((np.argmax(evaluated.predictions, axis=1) == evaluated.label_ids).mean())}


def make_trainer(
    model: Any, data: tuple[Any, Any], args: argparse.Namespace, name: str, lr: float, epochs: int
) -> Trainer:
    settings = TrainingArguments(
        str(Path(args.out, name)),
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=64,
        gradient_accumulation_steps=args.accumulate,
        num_train_epochs=epochs,
        learning_rate=lr,
        save_strategy="epoch" if name == "pruned" else "no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    trainer = Trainer(model=model, args=settings, train_dataset=data[0], eval_dataset=data[1], compute_metrics=top1)
    trainer.remove_callback(PrinterCallback)
    return trainer


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train twice, and say what came out; the same as a dictionary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedule", default=str(HERE / "schedule.yaml"))
    parser.add_argument("--dense-epochs", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=6, help="with the schedule")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--accumulate", type=int, default=2, help="minibatches a step")
    parser.add_argument("--samples", type=int, help="only so many paragraphs to learn from")
    parser.add_argument("--out", default="runs", help="folder of the checkpoints, one for each epoch")
    parser.add_argument("--resume", help="a checkpoint of the second half of an earlier run")
    args = parser.parse_args(arguments)

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    train, test, vocabulary = load()
    data = train[: args.samples], test
    print(f"{len(data[0])} paragraphs to learn from, {len(test)} to test, {len(TOPICS)} topics, {vocabulary} words")
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=vocabulary, hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256,
            max_position_embeddings=64, num_labels=len(TOPICS),
        )
    )  # fmt: skip
    largest = np.bincount([int(one["labels"]) for one in test]).max() / len(test)
    print(f"always the most frequent topic: {100 * largest:.2f}")
    results: dict[str, Any] = {"model": model}
    if args.resume is None:
        dense = make_trainer(model, data, args, "dense", 1e-3, args.dense_epochs)
        dense.train()
        results["dense"] = dense.evaluate()["eval_top1"]
        print(f"dense, {args.dense_epochs} epochs: top-1 {results['dense']:.2f}")

    trainer = make_trainer(model, data, args, "pruned", 5e-4, args.epochs)
    compression = compress_trainer(trainer, args.schedule)  # the whole integration
    trainer.train(resume_from_checkpoint=args.resume)
    results["pruned"] = trainer.evaluate()["eval_top1"]
    results["summary"] = compression.summary
    print(f"with the schedule, {args.epochs} epochs more: top-1 {results['pruned']:.2f}")
    print(compression.summary)
    print(f"checkpoints: {trainer.args.output_dir}")
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
