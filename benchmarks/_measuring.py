"""What the benchmarks share: timing variants in turn, and naming the machine."""

from distiller_ng.ops.timing import Step, interleave, machine, ratio

__all__ = ["Step", "interleave", "machine", "ratio"]
