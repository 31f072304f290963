"""What layers multiply with their weights, seen where the operators run (layer 2).

Matrix products and convolutions are recognised by the memory of their weight. So attention's projections, functional
calls and shared weights are seen as well as linear layers, and the user's modules are not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["LayerInputs", "Rows", "Use", "unfolded"]

#: First and last (exclusive) row of a weight matrix ``[outputs, inputs]``.
Rows: TypeAlias = tuple[int, int]

_ATEN = torch.ops.aten
_PIECE = 1 << 22  # values of unfolded inputs made at once


@dataclass(frozen=True, slots=True)
class Use:
    """One operator that a weight goes into: its outputs ``rows``, and whether the weight is stored ``[in, out]``."""

    name: str
    rows: Rows
    is_transposed: bool
    is_convolution: bool
    inputs: Tensor


class _Enough(BaseException):
    """Ends a forward pass; not an ``Exception``, so that no model's own handlers catch it."""


class LayerInputs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Calls ``seen(use, pieces)`` for every product with one of ``weights`` (by name), while a block runs a model.

    ``pieces`` are matrices ``[n, inputs]``, made as they are iterated over: the inputs' rows, or a convolution's
    patches ``[n, C_i * kernel]``. ``stop_after`` ends each :meth:`run` once so many uses were seen. ``refused`` has the
    weights that went into operators of another kind (transposed convolutions).
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        seen: Callable[[Use, Iterable[Tensor]], None],
        *,
        stop_after: int | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = {w.untyped_storage().data_ptr(): (name, w) for name, w in weights.items() if w.numel()}
        self._seen, self._stop_after, self._uses = seen, stop_after, 0
        self.refused: set[str] = set()

    def run(self, forward: Callable[[], Any]) -> None:
        """One forward pass, or as much of it as is needed."""
        self._uses = 0
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # one operator that hides a whole encoder layer
        try:
            with self:
                forward()
        except _Enough:
            pass
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, then tell about it."""
        result = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if packet is _ATEN.addmm:
            self._product(args[1], args[2])
        elif packet is _ATEN.mm:
            self._product(args[0], args[1])
        elif packet is _ATEN.linear:
            self._product(args[0].flatten(0, -2), args[1].t())
        elif packet is _ATEN.convolution:
            self._convolution(*args)
        return result

    def _product(self, inputs: Tensor, columns: Tensor) -> None:
        """``inputs [n, in] @ columns [in, out]``."""
        name, weight = self._weights.get(columns.untyped_storage().data_ptr(), ("", columns))
        if not name or weight.dim() != 2:
            return
        outputs, strides = columns.shape[1], weight.stride()
        if columns.shape[0] == weight.shape[1] and columns.stride() == strides[::-1]:
            first = (columns.storage_offset() - weight.storage_offset()) // strides[0]
            self._tell(Use(name, (first, first + outputs), False, False, inputs), [inputs])
        elif columns.shape == weight.shape:
            self._tell(Use(name, (0, outputs), True, False, inputs), [inputs])
        else:
            self.refused.add(name)

    def _convolution(self, inputs: Tensor, weight: Tensor, bias: Any, *settings: Any) -> None:
        stride, padding, dilation, transposed, _, groups = settings
        name, _ = self._weights.get(weight.untyped_storage().data_ptr(), ("", weight))
        if not name:
            return
        if transposed:
            self.refused.add(name)
            return
        share = weight.shape[0] // groups
        for group, part in enumerate(inputs.chunk(groups, dim=-1 - len(stride))):
            use = Use(name, (group * share, (group + 1) * share), False, True, inputs)
            self._tell(use, unfolded(part, weight.shape[2:], stride, padding, dilation), last=group == groups - 1)

    def _tell(self, use: Use, pieces: Iterable[Tensor], *, last: bool = True) -> None:
        self._seen(use, pieces)
        self._uses += int(last)
        if self._uses == self._stop_after:
            raise _Enough


def unfolded(
    inputs: Tensor, kernel: Iterable[int], stride: Iterable[int], padding: Iterable[int], dilation: Iterable[int]
) -> Iterable[Tensor]:
    """Patches ``[n, C * kernel]`` of ``inputs`` ``[N, C, ...]`` of any number of dimensions, some samples at a time."""
    sizes = list(kernel)
    single = inputs.dim() == len(sizes) + 1
    batch = inputs.unsqueeze(0) if single else inputs
    reach = [d * (k - 1) + 1 for k, d in zip(sizes, dilation, strict=True)]
    widths = [width for pad in reversed(list(padding)) for width in (pad, pad)]
    padded = functional.pad(batch, widths)
    step = max(1, _PIECE // max(1, padded[0].numel() * torch.Size(sizes).numel()))
    for part in padded.split(step):  # type: ignore[no-untyped-call]
        windows = part
        for axis, (size, by, spread) in enumerate(zip(reach, stride, dilation, strict=True)):
            windows = windows.unfold(2 + axis, size, by)[..., ::spread]
        dims = len(sizes)
        order = [0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims)]
        yield windows.permute(order).flatten(0, dims).flatten(1)
