"""Command-line flags of Distiller whose feature does not exist here (yet): refused in one line (layer 5)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

__all__ = ["add_unavailable_arguments"]

# (group, what the message calls the feature, [(flags, number of values)])
_PTQ = (
    "Post-training quantization",
    "post-training quantization",
    (
        ("--quantize-eval --qe", 0),
        ("--qe-mode --qem", None),
        ("--qe-mode-acts --qema", None),
        ("--qe-mode-wts --qemw", None),
        ("--qe-bits-acts --qeba", None),
        ("--qe-bits-wts --qebw", None),
        ("--qe-bits-accum", None),
        ("--qe-clip-acts --qeca", None),
        ("--qe-clip-n-stds", None),
        ("--qe-no-clip-layers --qencl", "+"),
        ("--qe-no-quant-layers --qenql", "+"),
        ("--qe-per-channel --qepc", 0),
        ("--qe-scale-approx-bits --qesab", None),
        ("--qe-save-fp-weights", 0),
        ("--qe-convert-pytorch --qept", 0),
        ("--qe-pytorch-backend", None),
        ("--qe-stats-file --qesf", None),
        ("--qe-dynamic", 0),
        ("--qe-calibration", None),
        ("--qe-config-file --qecf", None),
    ),
)
_LAPQ = (
    "Loss-aware post-training quantization",
    "loss-aware post-training quantization",
    (
        ("--qe-lapq --qe-coordinate-search", 0),
        ("--lapq-maxiter", None),
        ("--lapq-maxfev", None),
        ("--lapq-method", None),
        ("--lapq-basinhopping --lapq-bh", 0),
        ("--lapq-basinhopping-niter --lapq-bh-niter", None),
        ("--lapq-init-mode", None),
        ("--lapq-init-method", None),
        ("--lapq-eval-size", None),
        ("--lapq-eval-memoize-dataloader", 0),
        ("--lapq-search-clipping", 0),
    ),
)
_SENSE = ("Sensitivity", "sensitivity analysis", (("--sense", None), ("--sense-range", 3)))
_EXPORT = ("Export", "ONNX export", (("--export-onnx", "?"),))
_SERIALIZED = ("Loading", "layer-wise loading (models are never wrapped here)", (("--load-serialized", 0),))
_EARLY_EXIT = (
    "Early exit",
    "early exit",
    (("--earlyexit_lossweights", "*"), ("--earlyexit_thresholds", "*")),
)
_APPLICATION = (_SENSE, _EXPORT, _SERIALIZED, _PTQ)
_EXAMPLE = (_EARLY_EXIT,)
_FEATURES = {"application": _APPLICATION, "lapq": (_LAPQ,), "example": _EXAMPLE}


class _Unavailable(argparse.Action):
    """Ends the program with code 2 and a line that names the flag and the missing feature."""

    def __init__(self, *args: Any, feature: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.feature = feature

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        parser.exit(2, f"error: {option_string}: {self.feature} is not available in this version of distiller_ng\n")


def add_unavailable_arguments(parser: argparse.ArgumentParser, which: str) -> None:
    """Add the flags of ``which``: ``"application"``, ``"lapq"`` or ``"example"``; all default to None."""
    for title, feature, flags in _FEATURES[which]:
        group = parser.add_argument_group(f"{title} (not available yet)")
        for names, values in flags:
            group.add_argument(
                *names.split(), action=_Unavailable, feature=feature, nargs=values, help=f"{feature}: not available yet"
            )
