"""Pieces of schedules as text, shared by first schedules and the outcomes of searches."""

from __future__ import annotations

import json
import re

__all__ = ["FILTER_REMOVER", "cosine", "policy", "quoted"]

_PLAIN = re.compile(r"[A-Za-z_][\w./-]*\Z")

#: Makes the model small after pruners of filters; its name in policies is ``thinner``.
FILTER_REMOVER = """\
# Masked filters are still computed. This takes them out for good, so that the model becomes small and fast.
# Convolutions in ONNX Runtime like widths that are multiples of 8 (16 on some processors): round_to: 8 gives those, at
# the price of some filters that stay.
extensions:
  thinner:
    class: FilterRemover
    thinning_func_str: remove_filters"""


def cosine(epochs: int) -> str:
    """The section of learning rate schedulers; its policy is ``policy("lr_scheduler", "cosine", 0, epochs, 1)``."""
    return "\n".join(
        [
            "# The learning rate your optimizer starts with falls to 0 along a cosine. If your training loop",
            "# changes it already, delete this section and the policy lr_scheduler below.",
            "lr_schedulers:",
            "  cosine:",
            "    class: CosineAnnealingLR",
            f"    T_max: {epochs}",
        ]
    )


def policy(kind: str, name: str, start: float, end: float, every: float) -> list[str]:
    """The lines of one policy, in epochs."""
    return [
        f"  - {kind}: {{instance_name: {name}}}",
        f"    starting_epoch: {start:g}",
        f"    ending_epoch: {end:g}",
        f"    frequency: {every:g}",
    ]


def quoted(name: str) -> str:
    """Names YAML reads as text stay as they are: ``conv1.weight``; others become JSON strings, which YAML reads too."""
    return name if _PLAIN.match(name) and "." in name else json.dumps(name)
