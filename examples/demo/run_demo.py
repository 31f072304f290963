"""The demonstration behind ``make demo``: real digits, a small network, and what compressing it really gains.

First single weights are pruned to 90 % while the network trains. Then, from the same start, whole filters are pruned
to a budget and physically removed. The small network is quantized, all three are written as ONNX files, and measured in
ONNX Runtime. It ends with one page that shows both runs, ``report.html``.

Everything it does can be done by hand. It calls the example application with fixed arguments,

    python examples/classifier_compression/compress_classifier.py --arch digits_cnn --dataset digits
        --compress schedules/agp_digits_cnn.yaml --epochs 24 --batch-size 64 --lr 0.05 --deterministic
    (and the same with schedules/structured/groups_macs_thinned_digits_cnn.yaml)

then ``distiller_ng.quantize``, ``export_model``, ``benchmark_model`` and ``distiller-ng report``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "classifier_compression"))

import parser as example_parser  # noqa: E402  (found through the path set above)
import torch  # noqa: E402
from compress_classifier import run  # noqa: E402

from distiller_ng import benchmark_model, export_model, quantize  # noqa: E402
from distiller_ng.apputils.guard import run_guarded  # noqa: E402
from distiller_ng.apputils.image_classifier import init_classifier_compression_arg_parser  # noqa: E402
from distiller_ng.checkpoint import load_model, save_checkpoint  # noqa: E402
from distiller_ng.models import create_model  # noqa: E402
from distiller_ng.ops.files import write_text_atomically  # noqa: E402
from distiller_ng.reports import size_and_speed, size_and_speed_tbl  # noqa: E402
from distiller_ng.reports.html import write_html_report  # noqa: E402

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


def new_model():
    """The network, untrained."""
    return create_model(False, "digits", "digits_cnn")


@torch.no_grad()
def top1_of(model, loader) -> float:
    """Percentage of images a model, also one in a runtime, puts into the right class."""
    right = [(model(images).argmax(dim=1) == labels).float() for images, labels in loader]
    return 100 * float(torch.cat(right).mean())


def to_integers(app, thinned) -> tuple[dict[str, Path], dict[str, float]]:
    """ONNX files of the dense, the thinned and the quantized network, and top-1 of each, from the file where possible.

    The dense network's file has untrained weights, which its size and speed do not depend on; its top-1 is that of
    the training before pruning.
    """
    _, calibration, tests = app.load_datasets()
    images = next(iter(calibration))[0]
    folder = Path(app.logdir)
    files = {name: folder / f"{name.replace(' ', '_')}.onnx" for name in ("fp32", "pruned", "pruned int8")}
    export_model(new_model(), "onnx", images, files["fp32"])
    pruned = export_model(thinned, "onnx", images, files["pruned"])
    quantized = quantize(thinned, calibration)
    print(f"\n{quantized.summary()}")
    integers = quantized.convert("onnx", files["pruned int8"], dummy_input=images)
    print(f"\n{integers}")
    top1 = {"fp32": app.results.before.top1}
    top1 |= {"pruned": top1_of(pruned.model, tests), "pruned int8": top1_of(integers.model, tests)}
    return files, top1


def demo() -> None:
    """Both runs, what the second one's model gained, in floating point and as integers, and the report."""
    more = sys.argv[1:]
    first = compress("demo", more)
    app = compress("demo_thinned", more)
    path = save_checkpoint(app.args.epochs - 1, "digits_cnn", app.model, name="thinned", dir=app.logdir)
    thinned = load_model(new_model, path).eval()
    figures = size_and_speed({"dense": new_model(), "thinned": thinned}, torch.zeros(1, 1, 8, 8))
    columns = {"Top1": {"dense": f"{app.results.before.top1:.2f}", "thinned": f"{app.results.after.top1:.2f}"}}
    print(f"\n{size_and_speed_tbl(figures, extra=columns)}")
    print(f"(top-1 of the dense network after epoch {app.results.before.epoch}; the thinned one is {path})")

    files, top1 = to_integers(app, thinned)
    measured = benchmark_model(files, torch.zeros(64, 1, 8, 8), batches=(1, 64), memory=False)
    print(f"\n{measured}")
    print("Top-1: " + ", ".join(f"{name} {value:.2f}" for name, value in top1.items()))
    content = json.loads(measured.to_json()) | {"top1": top1}
    write_text_atomically(Path(app.logdir, "benchmark.json"), json.dumps(content, indent=1))
    page = write_html_report([first.logdir, app.logdir], Path(app.logdir, "report.html"), title="Digits, compressed")
    print(f"\nThe whole story on one page: {page}")


if __name__ == "__main__":
    sys.exit(run_guarded(demo))
