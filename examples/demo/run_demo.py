"""The demonstration behind ``make demo``: train a small network on real digits, prune it to 90 %, show what came of it.

It calls the example application with fixed arguments, so everything it does can be done by hand:

    python examples/classifier_compression/compress_classifier.py --arch digits_cnn --dataset digits
        --compress schedules/agp_digits_cnn.yaml --epochs 24 --batch-size 64 --lr 0.05 --deterministic
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples" / "classifier_compression"))

from compress_classifier import main  # noqa: E402  (found through the path set above)

ARGUMENTS = (
    *("--arch", "digits_cnn", "--dataset", "digits"),
    *("--compress", str(ROOT / "schedules" / "agp_digits_cnn.yaml")),
    *("--epochs", "24", "--batch-size", "64", "--lr", "0.05", "--deterministic"),
    *("--name", "demo", "--print-freq", "100"),
)

if __name__ == "__main__":
    sys.exit(main([*ARGUMENTS, *sys.argv[1:]]))
