"""Masks from scores: thresholds, exact counts over one tensor or many, and lowest-ranked structures (layer 1).

A mask is 1 where a value is kept and 0 where it is pruned, in the dtype of the tensor it was made for. Counts are
exact: ties go by index, the lower index first, so that a constant tensor is pruned like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from distiller_ng.errors import ArgumentError
from distiller_ng.ops.patterns import NMPattern, nm_mask

__all__ = [
    "NMPattern",
    "create_mask_level_criterion",
    "create_mask_sensitivity_criterion",
    "create_mask_threshold_criterion",
    "global_threshold_masks",
    "lowest_k_mask",
    "lowest_k_masks",
    "lowest_structures",
    "mask_tensor",
    "nm_mask",
    "structures_to_prune",
]

_NUMPY_DTYPES = {torch.float32: np.float32, torch.float64: np.float64}
_HUGE_PAGES_FROM = 1 << 22  # bytes
_TIE_CHUNK = 1 << 20  # values looked at together when ties are settled; bounds the memory for their indices


def mask_tensor(tensor: Tensor, mask: Tensor | None, inplace: bool = True) -> Tensor:
    """``tensor * mask``, written into ``tensor`` unless ``inplace`` is False; a mask of None changes nothing.

    Raises :class:`ArgumentError` when the shapes differ.
    """
    if mask is None:
        return tensor
    if mask.shape != tensor.shape:
        raise ArgumentError(f"mask of shape {tuple(mask.shape)} does not fit a tensor of shape {tuple(tensor.shape)}")
    if not inplace:
        return tensor * mask
    with torch.no_grad():
        tensor.mul_(mask)
    return tensor


def create_mask_threshold_criterion(tensor: Tensor, threshold: float | Tensor) -> Tensor:
    """Keep what is larger than a threshold in magnitude: ``|w| > threshold``.

    >>> create_mask_threshold_criterion(torch.tensor([0.2, -0.5, 0.4]), 0.4)
    tensor([0., 1., 0.])
    """
    return torch.gt(tensor.detach().abs(), threshold).to(tensor.dtype)


def create_mask_level_criterion(tensor: Tensor, desired_sparsity: float) -> Tensor:
    """Prune exactly ``int(desired_sparsity * n)`` of the ``n`` values, those of lowest magnitude.

    >>> create_mask_level_criterion(torch.tensor([0.2, -0.5, 0.4, 0.1]), 0.5)
    tensor([0., 1., 1., 0.])

    Raises :class:`ArgumentError` unless ``0 <= desired_sparsity <= 1``.
    """
    _check_fraction("desired_sparsity", desired_sparsity)
    return lowest_k_mask(tensor.detach().abs(), int(desired_sparsity * tensor.numel()))


def create_mask_sensitivity_criterion(tensor: Tensor, sensitivity: float) -> Tensor:
    """Keep ``|w| > sensitivity * std(w)``; with one value, whose standard deviation is undefined, it counts as 0.

    Source: S. Han et al., "Learning both Weights and Connections for Efficient Neural Networks",
    https://arxiv.org/abs/1506.02626. On normally distributed weights a sensitivity of 1 prunes 68.3 %.
    """
    deviation = float(tensor.detach().float().std()) if tensor.numel() > 1 else 0.0
    return create_mask_threshold_criterion(tensor, deviation * sensitivity)


def lowest_k_mask(scores: Tensor, k: int, *, pattern: NMPattern | None = None) -> Tensor:
    """Prune exactly the ``k`` lowest scores; equal scores by index, lower index first.

    With ``pattern``, what the N:M pattern would prune goes first: ``k = numel * (1 - N / M)`` gives exactly the
    pattern, a smaller k a part of it, a larger one all of it and then the lowest of the rest. Returns 1 (keep) or 0
    in the shape and dtype of ``scores`` (float32 for integers and bool).

    >>> lowest_k_mask(torch.tensor([3.0, 1.0, 2.0, 1.0]), 2)
    tensor([1., 0., 1., 0.])

    Raises :class:`ArgumentError` when k is not in ``0 .. numel`` or a score is NaN.
    """
    if not 0 <= k <= scores.numel():
        raise ArgumentError(f"cannot prune {k} of {scores.numel()} values", argument=("k",))
    if pattern is None:
        return _exact_masks([scores.detach()], k, absolute=False)[0]
    mask = nm_mask(scores, pattern)
    flat, kept = mask.view(-1), mask.view(-1) != 0
    dropped_first = int(mask.numel() - kept.count_nonzero())
    pool = (~kept if k <= dropped_first else kept).nonzero().squeeze(1)
    if k <= dropped_first:
        flat.fill_(1)
    else:
        k -= dropped_first
    flat[pool] = lowest_k_mask(scores.detach().reshape(-1)[pool], k).to(flat.dtype)
    return mask


def lowest_k_masks(scores: Sequence[Tensor], k: int, *, absolute: bool = False) -> list[Tensor]:
    """One ranking over several tensors: prune exactly the ``k`` lowest scores of them all.

    ``absolute=True`` ranks magnitudes and so takes weights directly. Equal scores go by order of tensors, then index.

    >>> lowest_k_masks([torch.tensor([1.0, -4.0]), torch.tensor([2.0, 3.0])], 2, absolute=True)
    [tensor([0., 1.]), tensor([0., 1.])]

    Raises :class:`ArgumentError` when k is not in ``0 .. total`` or a score is NaN.
    """
    total = sum(score.numel() for score in scores)
    if not 0 <= k <= total:
        raise ArgumentError(f"cannot prune {k} of {total} values", argument=("k",))
    return _exact_masks([score.detach() for score in scores], k, absolute=absolute)


def global_threshold_masks(scores: Sequence[Tensor], sparsity: float, *, absolute: bool = False) -> list[Tensor]:
    """One ranking over several tensors: prune exactly ``int(sparsity * total)`` of all their values, the lowest ones.

    ``absolute=True`` ranks magnitudes and so takes weights directly, without a copy of them. Equal scores go by
    order of tensors, then index. The cost is about one ``numpy.partition`` and one comparison of all values.

    >>> global_threshold_masks([torch.tensor([1.0, 4.0]), torch.tensor([2.0, 3.0])], 0.5)
    [tensor([0., 1.]), tensor([0., 1.])]

    Raises :class:`ArgumentError` unless ``0 <= sparsity <= 1``, or when a score is NaN.
    """
    _check_fraction("sparsity", sparsity)
    tensors = [score.detach() for score in scores]
    return _exact_masks(tensors, int(sparsity * sum(t.numel() for t in tensors)), absolute=absolute)


def structures_to_prune(
    total: int, fraction: float, group_size: int = 1, rounding_fn: Callable[[float], float] = math.floor
) -> int:
    """How many of ``total`` structures a fraction means: whole groups only, and never all unless ``fraction`` is 1.

    >>> structures_to_prune(16, 0.3), structures_to_prune(16, 0.3, 4), structures_to_prune(16, 0.99, 1, math.ceil)
    (4, 4, 15)

    Raises :class:`ArgumentError` unless ``0 <= fraction <= 1`` and ``group_size >= 1``.
    """
    _check_fraction("fraction", fraction)
    if group_size < 1:
        raise ArgumentError(f"group_size must be 1 or more, got {group_size}", argument=("group_size",))
    count = int(rounding_fn(rounding_fn(fraction * total) / group_size) * group_size)
    if count >= total and fraction != 1:
        return max(total - 1, 0) // group_size * group_size
    return min(count, total)


def lowest_structures(
    magnitudes: Tensor,
    fraction: float,
    *,
    group_size: int = 1,
    rounding_fn: Callable[[float], float] = math.floor,
) -> Tensor | None:
    """Which structures to keep: 1 or 0 for each of the ``magnitudes`` ``[N]``, or None when nothing is to be pruned.

    ``n = structures_to_prune(N, ...)``; the threshold is the n-th lowest magnitude and what is larger stays. Equal
    magnitudes may prune more than n, but never everything: the ``group_size`` best are then kept.

    >>> lowest_structures(torch.tensor([3.0, 1.0, 2.0, 4.0]), 0.5)
    tensor([1., 0., 0., 1.])
    """
    total = magnitudes.numel()
    count = structures_to_prune(total, fraction, group_size, rounding_fn)
    if count == 0:
        return None
    if count == total:
        return torch.zeros_like(magnitudes)
    threshold, _ = _partition(magnitudes.detach().flatten().clone(), count)
    keep = (magnitudes.detach() > threshold).to(magnitudes.dtype)
    if bool(keep.any()):
        return keep
    return lowest_k_mask(magnitudes, total - group_size)


def _exact_masks(scores: Sequence[Tensor], k: int, *, absolute: bool) -> list[Tensor]:
    """Masks with exactly ``k`` zeros over all tensors."""
    masks = [_empty(s.shape, _mask_dtype(s), s.device) for s in scores]
    total = sum(s.numel() for s in scores)
    if k in (0, total):
        return [mask.fill_(0 if k else 1) for mask in masks]
    buffer = _gather(scores, total, absolute)
    threshold, surplus = _partition(buffer, k)
    for score, mask in zip(scores, masks):
        if score.dtype == mask.dtype == buffer.dtype:
            torch.gt(torch.abs(score, out=mask) if absolute else score, threshold, out=mask)
        else:
            wide = score.to(buffer.dtype)
            mask.copy_(torch.gt(wide.abs() if absolute else wide, threshold))
    _restore_ties_(masks, scores, surplus, threshold, buffer.dtype, absolute)
    return masks


def _restore_ties_(
    masks: Sequence[Tensor],
    scores: Sequence[Tensor],
    surplus: int,
    threshold: float,
    dtype: torch.dtype,
    absolute: bool,
) -> None:
    """Set the last ``surplus`` of the values equal to the threshold back to 1: the comparison pruned them too."""
    for score, mask in zip(reversed(scores), reversed(masks)):
        values, flat = score.reshape(-1), mask.view(-1)
        for stop in range(values.numel(), 0, -_TIE_CHUNK):
            if surplus == 0:
                return
            start = max(stop - _TIE_CHUNK, 0)
            wide = values[start:stop].to(dtype)
            equal = ((wide.abs() if absolute else wide) == threshold).nonzero().squeeze(1)[-surplus:]
            flat[start + equal] = 1
            surplus -= equal.numel()


def _gather(scores: Sequence[Tensor], total: int, absolute: bool) -> Tensor:
    """All values in one new buffer, float64 if any tensor is, else float32 (which holds the half types exactly)."""
    dtype = torch.float64 if any(s.dtype == torch.float64 for s in scores) else torch.float32
    buffer = _empty((total,), dtype, scores[0].device)
    start = 0
    for score in scores:
        part = buffer.narrow(0, start, score.numel()).view(score.shape)
        part.copy_(score)
        if absolute:
            part.abs_()
        start += score.numel()
    return buffer


def _empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialized memory; numpy's if it is big, as numpy asks for huge pages (22 M values: 8 ms against 34 ms)."""
    numpy_dtype = _NUMPY_DTYPES.get(dtype)
    if device.type != "cpu" or numpy_dtype is None or math.prod(shape) * dtype.itemsize < _HUGE_PAGES_FROM:
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    return torch.from_numpy(np.empty(tuple(shape), dtype=numpy_dtype))


def _partition(values: Tensor, k: int) -> tuple[float, int]:
    """``(k-th lowest value, how many beyond the k lowest equal it)``; for ``0 < k <= numel``; reorders values."""
    if values.device.type == "cpu" and values.dtype in _NUMPY_DTYPES:
        # numpy's introselect: measured 70 ms on 22 M values, torch.kthvalue 249 ms, topk 462 ms, sort 3261 ms.
        array = values.numpy()
        zeros = array.size - int(np.count_nonzero(array))
        # Weights pruned before are exact zeros, and introselect degrades on repeated values: 22 M values of which 90 %
        # are zero took 1.2 s. So the zeros are counted, not partitioned (min() is NaN where there is one).
        if zeros > array.size // 8 and array.min() >= 0:
            if k <= zeros:
                return 0.0, zeros - k
            return _partition(torch.from_numpy(array[array != 0]), k - zeros)
        array.partition(k - 1)
        # NaN sorts last, and min() returns it.
        kth, beyond = float(array[k - 1]), float(values[k:].min()) if k < array.size else math.inf
        surplus = int(np.count_nonzero(array[k:] == kth)) if beyond == kth else 0
    else:
        wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
        kth = beyond = float(wide.kthvalue(k).values)
        surplus = int((wide <= kth).sum()) - k
        if bool(torch.isnan(wide).any()):
            beyond = math.nan
    if math.isnan(kth) or math.isnan(beyond):
        raise ArgumentError("cannot rank scores that contain NaN: did the training diverge?")
    return kth, surplus


def _mask_dtype(scores: Tensor) -> torch.dtype:
    return scores.dtype if scores.is_floating_point() else torch.float32


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ArgumentError(f"{name} must lie between 0 and 1, got {value}", argument=(name,))
