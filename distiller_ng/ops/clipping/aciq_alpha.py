"""Optimal clipping of a Gauss or Laplace distribution, in units of its width (layer 1).

Source: R. Banner et al., "Post-training 4-bit quantization of convolution networks for rapid-deployment" (ACIQ),
https://arxiv.org/abs/1810.05723. ``alpha`` minimises clipping error plus rounding error,
``E[(|x| - alpha)+ ^2] + alpha^2 / (3 * 4^bits)``, for standard deviation 1 (Gauss) or mean deviation ``b = 1``
(Laplace). Values that are never negative (after a ReLU) use half the range, so they have one bit more to spend.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.linear_quantization import check_bits

__all__ = ["ALPHA_GAUSS", "ALPHA_GAUSS_HALF", "ALPHA_LAPLACE", "ALPHA_LAPLACE_HALF", "Distribution", "aciq_alpha"]

Distribution: TypeAlias = Literal["gauss", "laplace"]

# Distiller's tables, kept to the digit so that its results are reproduced; other bit widths are computed.
ALPHA_LAPLACE = {0: 1.05, 1: 1.86, 2: 2.83, 3: 3.89, 4: 5.03, 5: 6.2, 6: 7.41, 7: 8.64, 8: 9.89}
ALPHA_LAPLACE_HALF = {0: 1.86, 1: 2.83, 2: 3.89, 3: 5.02, 4: 6.2, 5: 7.41, 6: 8.64, 7: 9.89, 8: 11.16}
ALPHA_GAUSS = {1: 1.24, 2: 1.71, 3: 2.15, 4: 2.55, 5: 2.93, 6: 3.28, 7: 3.61, 8: 3.92}
ALPHA_GAUSS_HALF = {1: 1.71, 2: 2.15, 3: 2.55, 4: 2.93, 5: 3.28, 6: 3.61, 7: 3.92, 8: 4.2}
_TABLES = {
    ("gauss", False): ALPHA_GAUSS,
    ("gauss", True): ALPHA_GAUSS_HALF,
    ("laplace", False): ALPHA_LAPLACE,
    ("laplace", True): ALPHA_LAPLACE_HALF,
}


def aciq_alpha(num_bits: int, distribution: Distribution, *, half_range: bool = False) -> float:
    """Where to clip, in standard deviations (``"gauss"``) or mean deviations (``"laplace"``).

    ``aciq_alpha(8, "gauss")`` is 3.92, ``aciq_alpha(4, "laplace", half_range=True)`` is 6.2. Bits outside Distiller's
    tables (up to 16) are solved for: ``aciq_alpha(10, "laplace")`` is 12.44.

    Raises :class:`ArgumentError` for another distribution or bits outside 0 .. 32.
    """
    table = _TABLES.get((distribution, half_range))
    if table is None:
        message = f"distribution must be gauss or laplace, got {distribution!r}"
        raise ArgumentError(message, argument=("distribution",))
    bits = check_bits(num_bits, low=0)
    if bits in table:
        return table[bits]
    return solve_alpha(bits + half_range, distribution)


def solve_alpha(bits: int, distribution: Distribution) -> float:
    """The exact minimum for any number of bits, by bisection: ``solve_alpha(8, "gauss")`` -> 3.924."""
    rounding = 1.0 / (3.0 * 4.0**bits)

    def slope(alpha: float) -> float:
        """Half the derivative of the total error: negative while less clipping helps."""
        if distribution == "laplace":
            return alpha * rounding - math.exp(-alpha)
        tail = alpha * math.erfc(alpha / math.sqrt(2)) - math.sqrt(2 / math.pi) * math.exp(-(alpha**2) / 2)
        return tail + alpha * rounding

    low, high = 0.0, 64.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return (low + high) / 2
