"""The tables of ``docs/what-speeds-up-where.md``, from the committed results of ``what_speeds_up.py``.

python benchmarks/_speed_table.py    # writes them into the page
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "what_speeds_up.json"
PAGE = ROOT / "docs" / "what-speeds-up-where.md"
BEGIN = "<!-- benchmarks/_speed_table.py writes the tables from here"
END = "<!-- to here -->"
NETWORKS = {
    "resnet20": "ResNet-20, 32 x 32 images",
    "mlp": "Perceptron 784, 1024, 512, 10",
    "transformer": "Transformer block, width 256, 16 tokens",
}
TECHNIQUES = {
    "dense": "dense float32",
    "unstructured": "95 % single zeros",
    "n_of_m": "2:4 zeros",
    "structured": "half of the MACs, thinned",
    "structured_8": "the same, widths multiples of 8",
    "low_rank": "linear layers of low rank",
    "bf16": "bfloat16",
    "int8": "int8",
    "dynamic_int8": "int8, dynamic",
    "structured_8_int8": "half of the MACs, multiples of 8, int8",
}
RUNTIMES = {
    "eager": "torch, eager",
    "onnxruntime": "ONNX Runtime",
    "sparse_linear": "torch, compressed rows",
    "openvino": "OpenVINO",
    "torchao": "torch, compiled (torchao)",
}


def tables(results: Mapping[str, Any]) -> str:
    """A heading and a table for each network that was measured, in Markdown."""
    parts = []
    for network, title in NETWORKS.items():
        rows = {
            tuple(one["metric"].split(".")[2:]): one["value"]
            for one in results["results"]
            if one["metric"].split(".")[1] == network
        }
        if rows:
            parts.append(f"### {title}\n\n" + table(rows))
    about = results["machine"]
    parts.append(
        f"Measured on {about['cores']} cores of an {about['cpu']}, {about['threads']} thread, torch {about['torch']}."
    )
    return "\n\n".join(parts)


def table(rows: Mapping[tuple[str, ...], Mapping[str, Any]]) -> str:
    lines = [
        "| | runs in | batch 1: ms | x eager | x ONNX Runtime | batch 64: ms | x eager | x ONNX Runtime | file, MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    order = [(technique, runtime) for technique in TECHNIQUES for runtime in RUNTIMES]
    for key in sorted(rows, key=lambda key: order.index((key[0], key[1]))):
        value, cells = rows[key], [TECHNIQUES[key[0]], RUNTIMES[key[1]]]
        if "fails" in value:
            lines.append(f"| {' | '.join(cells)} | fails | | | | | | |")
            continue
        for batch in ("batch_1", "batch_64"):
            one = value[batch]
            cells += [f"{one['ms']:.3g}", f"{one['over_eager']:.2f}", f"{one['over_onnxruntime']:.2f}"]
        lines.append(f"| {' | '.join(cells)} | {value['mb']:.2f} |")
    return "\n".join(lines)


def page_with(text: str, made: str) -> str:
    """The page with its tables replaced."""
    before, _, rest = text.partition(BEGIN)
    head, _, _ = rest.partition("\n")
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}{head}\n\n{made}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(
        page_with(PAGE.read_text(encoding="utf-8"), tables(json.loads(RESULTS.read_text()))), encoding="utf-8"
    )
