"""The demonstration behind ``make demo``: real digits, a small network, and what pruning really gains.

First single weights are pruned to 90 % while the network trains. Then, from the same start, whole filters are pruned
to a budget and physically removed, and the small network is measured against the dense one.

It calls the example application with fixed arguments, so everything it does can be done by hand:

    python examples/classifier_compression/compress_classifier.py --arch digits_cnn --dataset digits
        --compress schedules/agp_digits_cnn.yaml --epochs 24 --batch-size 64 --lr 0.05 --deterministic
    (and the same with schedules/structured/groups_macs_thinned_digits_cnn.yaml)
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "classifier_compression"))

import parser as example_parser  # noqa: E402  (found through the path set above)
import torch  # noqa: E402
from compress_classifier import run  # noqa: E402

from distiller_ng.apputils.guard import run_guarded  # noqa: E402
from distiller_ng.apputils.image_classifier import init_classifier_compression_arg_parser  # noqa: E402
from distiller_ng.checkpoint import load_model, save_checkpoint  # noqa: E402
from distiller_ng.models import create_model  # noqa: E402
from distiller_ng.reports import size_and_speed, size_and_speed_tbl  # noqa: E402

COMMON = (
    *("--arch", "digits_cnn", "--dataset", "digits"),
    *("--epochs", "24", "--batch-size", "64", "--lr", "0.05", "--deterministic"),
    *("--print-freq", "100"),
)
SCHEDULES = {
    "demo": ROOT / "schedules" / "agp_digits_cnn.yaml",
    "demo_thinned": ROOT / "schedules" / "structured" / "groups_macs_thinned_digits_cnn.yaml",
}


def compress(name: str, more: list[str]):
    """One run of the application; the finished application."""
    parser = example_parser.add_cmdline_args(init_classifier_compression_arg_parser(include_ptq_lapq_args=True))
    return run(parser.parse_args([*COMMON, "--compress", str(SCHEDULES[name]), "--name", name, *more]))


def demo() -> None:
    """Both runs, and the comparison of the second one's model with the dense network."""
    more = sys.argv[1:]
    compress("demo", more)
    app = compress("demo_thinned", more)
    path = save_checkpoint(app.args.epochs - 1, "digits_cnn", app.model, name="thinned", dir=app.logdir)
    dense = create_model(False, "digits", "digits_cnn")
    thinned = load_model(lambda: create_model(False, "digits", "digits_cnn"), path)
    top1 = {"dense": f"{app.results.before.top1:.2f}", "thinned": f"{app.results.after.top1:.2f}"}
    figures = size_and_speed({"dense": dense, "thinned": thinned}, torch.zeros(1, 1, 8, 8))
    print(f"\n{size_and_speed_tbl(figures, extra={'Top1': top1})}")
    print(f"(top-1 of the dense network after epoch {app.results.before.epoch}; the thinned one is {path})")


if __name__ == "__main__":
    sys.exit(run_guarded(demo))
