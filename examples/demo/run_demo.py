"""The demonstration behind ``make demo``: real digits, a small network, and what compressing it really gains.

It opens with a plan: what the last schedule will do, and when. Then a network is trained dense; a second one is pruned
to 90 % zeros while it trains; and a third one loses whole filters until 30 % of its multiply-accumulates are left, for
good, while it learns from the dense one. That small network is quantized; dense, small and quantized networks are
written as ONNX files and measured in ONNX Runtime. It ends with one page that shows all three runs, ``report.html``.
What the application says of every epoch is in the runs' logs; with ``--verbose`` it is shown, too.

Everything it does can be done by hand: ``distiller-ng plan``, then the example application with fixed arguments,

    python examples/classifier_compression/compress_classifier.py --arch digits_cnn --dataset digits
        --compress schedules/agp_digits_cnn.yaml --epochs 24 --batch-size 64 --lr 0.05 --deterministic
    (without --compress for the dense one; for the small one with --compress examples/demo/distilled_student.yaml
    --kd-teacher digits_cnn --kd-resume CHECKPOINT, the dense one's)

then ``distiller_ng.quantize``, ``export_model``, ``benchmark_model`` and ``distiller-ng report``.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "classifier_compression"))

import parser as example_parser  # noqa: E402  (found through the path set above)
import torch  # noqa: E402
from compress_classifier import run  # noqa: E402

from distiller_ng import benchmark_model, export_model, quantize  # noqa: E402
from distiller_ng.apputils.guard import run_guarded  # noqa: E402
from distiller_ng.apputils.image_classifier import init_classifier_compression_arg_parser  # noqa: E402
from distiller_ng.apputils.log_setup import close_pylogger  # noqa: E402
from distiller_ng.apputils.run_measuring import save_activation_histograms  # noqa: E402
from distiller_ng.checkpoint import load_model, save_checkpoint  # noqa: E402
from distiller_ng.config import file_config  # noqa: E402
from distiller_ng.models import create_model  # noqa: E402
from distiller_ng.ops.files import write_text_atomically  # noqa: E402
from distiller_ng.reports import schedule_plan, schedule_timeline, size_and_speed, size_and_speed_tbl  # noqa: E402
from distiller_ng.reports.html import write_html_report  # noqa: E402
from distiller_ng.reports.schedule_plan import notes_text  # noqa: E402

COMMON = (
    *("--arch", "digits_cnn", "--dataset", "digits"),
    *("--epochs", "24", "--batch-size", "64", "--lr", "0.05", "--deterministic"),
    *("--print-freq", "100"),
)
SCHEDULES = {
    "demo_pruned": ROOT / "schedules" / "agp_digits_cnn.yaml",
    "demo_student": ROOT / "examples" / "demo" / "distilled_student.yaml",
}
#: 1,294 training images in batches of 64.
STEPS_PER_EPOCH = 21


def step(number: int, what: str) -> None:
    """Say what comes now."""
    print(f"\n== {number} of 6: {what}", flush=True)


def train(name: str, more: list[str]):
    """One run of the application, with the schedule of its name if there is one; the finished application."""
    parser = example_parser.add_cmdline_args(init_classifier_compression_arg_parser(include_ptq_lapq_args=True))
    schedule = ["--compress", str(SCHEDULES[name])] if name in SCHEDULES else []
    args = parser.parse_args([*COMMON, *schedule, "--name", name, *more])
    said = io.StringIO()
    with contextlib.nullcontext() if args.verbose else contextlib.redirect_stdout(said):
        app = run(args)
    close_pylogger()
    for line in said.getvalue().splitlines():
        if line.startswith(("WARNING", "ERROR")):
            print(line)
    left = sum(int(parameter.count_nonzero()) for parameter in app.model.parameters())
    print(f"top-1 on the test images {app.results.after.top1:.2f} %, {left:,} values that are not zero")
    print(f"{app.results.seconds:.0f} seconds; every epoch is told in {next(Path(app.logdir).glob('*.log'))}")
    return app


def plan():
    """Print what the student's schedule will do to it; its timeline, to be drawn."""
    torch.manual_seed(0)
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    example, teachers = (torch.zeros(1, 1, 8, 8),), {"digits_cnn": new_model()}
    scheduler = file_config(model, optimizer, SCHEDULES["demo_student"], example_inputs=example, teachers=teachers)
    planned = schedule_plan(scheduler, STEPS_PER_EPOCH, predict=True)
    timeline = schedule_timeline(scheduler, STEPS_PER_EPOCH, optimizer=optimizer, plan=planned)
    is_unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    drawn = timeline.text(ascii_only=not is_unicode)
    print("\n\n".join([planned.table(), drawn, notes_text(planned.notes)]))
    return timeline


def new_model():
    """The network, untrained."""
    return create_model(False, "digits", "digits_cnn")


@torch.no_grad()
def top1_of(model, loader) -> float:
    """Percentage of images a model, also one in a runtime, puts into the right class."""
    right = [(model(images).argmax(dim=1) == labels).float() for images, labels in loader]
    return 100 * float(torch.cat(right).mean())


def to_integers(app, dense, thinned) -> tuple[dict[str, Path], dict[str, float]]:
    """ONNX files of the dense, the thinned and the quantized network, and top-1 of each, as the files compute.

    What the report shows of it, activations and bits, goes into the run's folder.
    """
    _, calibration, tests = app.load_datasets()
    images = next(iter(calibration))[0]
    folder = Path(app.logdir)
    files = {name: folder / f"{name.replace(' ', '_')}.onnx" for name in ("fp32", "pruned", "pruned int8")}
    full = export_model(dense, "onnx", images, files["fp32"])
    pruned = export_model(thinned, "onnx", images, files["pruned"])
    quantized = quantize(thinned, calibration)
    integers = quantized.convert("onnx", files["pruned int8"], dummy_input=images)
    print(integers)
    layers = {"layers": integers.table().records(), "notes": list(integers.notes)}
    write_text_atomically(folder / "quantization.json", json.dumps({"export": layers}, indent=1))
    save_activation_histograms(thinned, calibration, folder)
    models = {"fp32": full.model, "pruned": pruned.model, "pruned int8": integers.model}
    top1 = {name: top1_of(model, tests) for name, model in models.items()}
    return files, top1


def demo() -> None:
    """The plan, three runs, what the last one's model gained, in floating point and as integers, and the report."""
    more = sys.argv[1:]
    started = time.perf_counter()
    step(1, "the plan of what the last training will do, before anything is trained")
    timeline = plan()
    step(2, "train the network as it is")
    teacher = train("demo_dense", more)
    step(3, "train it again, pruned to 90 % zeros")
    pruned = train("demo_pruned", more)
    step(4, "train it again, learning from the first one, and remove whole filters")
    weights = Path(teacher.logdir, "demo_dense_checkpoint.pth.tar")
    app = train("demo_student", ["--kd-teacher", "digits_cnn", "--kd-resume", str(weights), *more])
    folder = Path(app.logdir)
    picture = timeline.save(folder / "plan.svg")
    path = save_checkpoint(app.args.epochs - 1, "digits_cnn", app.model, name="thinned", dir=folder)
    thinned = load_model(new_model, path).eval()
    dense = teacher.model.eval()
    figures = size_and_speed({"dense": dense, "thinned": thinned}, torch.zeros(1, 1, 8, 8))
    columns = {"Top1": {"dense": f"{teacher.results.after.top1:.2f}", "thinned": f"{app.results.after.top1:.2f}"}}
    print(f"\n{size_and_speed_tbl(figures, extra=columns)}")
    print(f"(measured in PyTorch; the thinned network is {path})")

    step(5, "quantize the thinned network, and write ONNX files")
    files, top1 = to_integers(app, dense, thinned)
    step(6, "measure the files in ONNX Runtime, and write the report")
    measured = benchmark_model(files, torch.zeros(64, 1, 8, 8), batches=(1, 64), memory=False)
    print(measured)
    print("Top-1 of the files: " + ", ".join(f"{name} {value:.2f}" for name, value in top1.items()))
    content = json.loads(measured.to_json()) | {"top1": top1}
    write_text_atomically(folder / "benchmark.json", json.dumps(content, indent=1))
    runs = [teacher.logdir, pruned.logdir, app.logdir]
    page = write_html_report(runs, folder / "report.html", title="Digits, compressed")
    first, last = measured.rows[0], measured.rows[-1]
    print(
        f"\n{last.file_bytes / 1024:.0f} KiB instead of {first.file_bytes / 1024:.0f}, {last.speedup[64]:.1f} times as "
        f"fast at batch 64, top-1 {top1['pruned int8']:.2f} % instead of {top1['fp32']:.2f} %"
    )
    print(f"The plan as a picture: {picture}")
    print(f"The whole story on one page: {page.resolve()}")
    print(f"({time.perf_counter() - started:.0f} seconds)")


if __name__ == "__main__":
    sys.exit(run_guarded(demo))
