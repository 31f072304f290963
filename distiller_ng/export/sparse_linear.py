"""Linear layers that compute with the nonzero weights alone, where that was measured to be faster (layer 4)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distiller_ng.errors import ArgumentError
from distiller_ng.graph.inputs import ExampleInputsLike, as_example_inputs
from distiller_ng.graph.trace import evaluating
from distiller_ng.names import canonical_name, unwrap
from distiller_ng.ops.modules import model_device
from distiller_ng.ops.sparsity import sparsity
from distiller_ng.ops.table import Table
from distiller_ng.ops.timing import interleave, ratio
from distiller_ng.quantization._derived import Derived, derive_, underive_
from distiller_ng.quantization._weights import QuantizedLayer

__all__ = ["SparseLinear", "SparseLinearReport", "SparseLinearRow", "dense_linear_", "sparse_linear_"]

_COPY = "compressed_copy"


class SparseLinear(Derived):
    """What a linear layer gets that computes with its weight in compressed rows (CSR).

    The parameter stays as it is, dense; :attr:`compressed` was made from it and does not follow its changes. In
    training mode the layer computes with the parameter.
    """

    prefix: ClassVar[str] = "Sparse"

    @property
    def compressed(self) -> Tensor:
        """The weight in compressed rows, ``[out, in]``."""
        own = self.__dict__
        if _COPY not in own:
            own[_COPY] = _compressed(cast(Tensor, self._parameters["weight"]))
        found: Tensor = own[_COPY]
        return found

    def forward(self, input: Tensor) -> Tensor:
        """``input @ weight.T + bias`` for inputs ``[..., in]``."""
        if self.training:
            result: Tensor = super().forward(input)
            return result
        return _product(self.compressed, input, self._parameters["bias"])

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.__dict__.pop(_COPY, None)  # moved, or of another type
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def portable_state(self) -> dict[str, Any]:
        """Without the compressed copy, which torch cannot copy or pickle; it is made again when it is used."""
        return {name: value for name, value in self.__dict__.items() if name != _COPY}

    def extra_repr(self) -> str:
        """The layer's own description, and how many weights are left."""
        return f"{super().extra_repr()}, {int(self.compressed.values().numel())} weights in compressed rows"


@dataclass(frozen=True, slots=True)
class SparseLinearRow:
    """One linear layer: sparsity, rows of its input, microseconds of both forms, and what became of it.

    ``speedup``: median of dense over sparse time within a round. ``reason``: why it stays dense; empty if it does not.
    """

    name: str
    sparsity: float
    rows: int
    dense_us: float
    sparse_us: float
    speedup: float
    reason: str = ""

    @property
    def is_sparse(self) -> bool:
        """Whether the layer computes with compressed rows now."""
        return not self.reason


@dataclass(frozen=True, slots=True)
class SparseLinearReport:
    """Every linear layer; ``print(report)`` shows a table, ``report.taken`` names those that changed."""

    rows: tuple[SparseLinearRow, ...]

    @property
    def taken(self) -> list[str]:
        """Layers that compute with compressed rows now."""
        return [row.name for row in self.rows if row.is_sparse]

    def table(self) -> Table:
        """One row a layer."""
        columns = ("Layer", "Sparsity", "Rows", "Dense (us)", "Sparse (us)", "Speed-up", "Why dense")
        rows = [(r.name, r.sparsity, r.rows, r.dense_us, r.sparse_us, r.speedup, r.reason) for r in self.rows]
        return Table("Linear layers", columns, tuple(rows), decimals=2)

    def __str__(self) -> str:
        return str(self.table())


def sparse_linear_(
    model: nn.Module,
    example_inputs: ExampleInputsLike,
    *,
    min_sparsity: float = 0.8,
    min_speedup: float = 1.1,
    seconds: float = 0.2,
) -> SparseLinearReport:
    """Let those linear layers of ``model``, in place, compute with their nonzero weights that are faster so here.

    Each layer of at least ``min_sparsity`` is timed both ways, in turn, on the input it gets in a forward pass on
    ``example_inputs`` (so give the batch size you will run), for ``seconds`` a layer with the threads torch has now; it
    changes where the median speed-up is at least ``min_speedup`` and the outputs agree. Parameters, names and
    state dicts stay; training computes with the dense weight; ``dense_linear_(model)`` takes it all back. ::

        report = sparse_linear_(model, tokens)
        print(report)              # every linear layer, its sparsity, both times, and why it stayed dense
        report.taken               # ["encoder.0.linear1", ...]

    A 1024 x 1024 layer on 128 rows, one thread: 2.0x at sparsity 0.9, 3.4x at 0.95, 10.7x at 0.99; on one row it pays
    from 0.95 on. Limits: float32 and float64 on CPUs; at 0.5 it is slower than dense, and int8 is faster than this up
    to about 0.95. Convolutions gain nothing: thin them. Layers with quantized weights stay as they are.

    Raises :class:`ArgumentError` for fractions outside 0..1 and a speed-up that is not positive.
    """
    if not 0 <= min_sparsity <= 1:
        message = f"min_sparsity is a fraction from 0 to 1, got {min_sparsity!r}"
        raise ArgumentError(message, argument=("min_sparsity",))
    if not min_speedup > 0:
        raise ArgumentError(f"min_speedup must be positive, got {min_speedup!r}", argument=("min_speedup",))
    plain = unwrap(model)
    layers = {canonical_name(name): one for name, one in plain.named_modules() if isinstance(one, nn.Linear)}
    seen = _inputs(plain, layers, example_inputs)
    rows = []
    for name, layer in layers.items():
        row = _tried(name, layer, seen.get(name), min_sparsity, min_speedup, seconds)
        rows.append(row)
        if row.is_sparse:
            derive_(layer, SparseLinear)
            layer.__dict__.pop(_COPY, None)  # of an earlier call
    return SparseLinearReport(tuple(rows))


def dense_linear_(model: nn.Module) -> list[str]:
    """Undo :func:`sparse_linear_`, in place; the names of the layers that changed back."""
    changed = []
    for name, layer in unwrap(model).named_modules():
        if isinstance(layer, SparseLinear):
            underive_(layer, SparseLinear)
            layer.__dict__.pop(_COPY, None)
            changed.append(canonical_name(name))
    return changed


@torch.no_grad()
def _inputs(model: nn.Module, layers: dict[str, nn.Linear], example_inputs: ExampleInputsLike) -> dict[str, Tensor]:
    """What each layer is called with in one forward pass; the largest, where it is called more than once."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor) and (name not in seen or args[0].numel() > seen[name].numel()):
                seen[name] = args[0].detach().clone()

        return hook

    fast_path = torch.backends.mha.get_fastpath_enabled()
    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with evaluating(model):
            as_example_inputs(example_inputs).call(model)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for handle in handles:
            handle.remove()
    return seen


@torch.no_grad()
def _tried(
    name: str, layer: nn.Linear, x: Tensor | None, min_sparsity: float, min_speedup: float, seconds: float
) -> SparseLinearRow:
    reason = _obstacle(layer, x)
    weight = layer._parameters.get("weight")
    zeros = sparsity(weight) if weight is not None else 0.0
    rows = 0 if x is None else x.numel() // max(x.shape[-1], 1)
    if not reason and zeros < min_sparsity:
        reason = f"its sparsity is below {min_sparsity:g}"
    if reason or x is None or weight is None:
        return SparseLinearRow(name, zeros, rows, 0.0, 0.0, 0.0, reason)
    compressed, bias = _compressed(weight), layer.bias
    dense, sparse = F.linear(x, weight, bias), _product(compressed, x, bias)
    steps = {"dense": lambda: F.linear(x, weight, bias), "sparse": lambda: _product(compressed, x, bias)}
    times = interleave(steps, seconds, clock="wall")
    speedup = ratio(times, "dense", "sparse")
    median = {key: 1e6 * sorted(found)[len(found) // 2] for key, found in times.items()}
    if not torch.allclose(dense, sparse, rtol=1e-3, atol=1e-4 * float(dense.abs().max())):
        reason = "its sparse product differs from the dense one"
    elif speedup < min_speedup:
        reason = f"it would be {speedup:.2f}x as fast, {min_speedup:g}x was asked for"
    return SparseLinearRow(name, zeros, rows, median["dense"], median["sparse"], speedup, reason)


def _obstacle(layer: nn.Linear, x: Tensor | None) -> str:
    if isinstance(layer, QuantizedLayer):
        return "its weight is quantized"
    if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "the attention around it computes with the weight itself"
    if "weight" not in layer._parameters:
        return "its weight is computed from other parameters"
    if x is None:
        return "it did not run on the example inputs"
    if x.dtype not in (torch.float32, torch.float64) or x.dtype != layer.weight.dtype:
        return f"it computes in {str(layer.weight.dtype).removeprefix('torch.')}"
    if model_device(layer) != "cpu":
        return f"it is on {model_device(layer)}"
    return "" if x.numel() else "its input is empty"


def _compressed(weight: Tensor) -> Tensor:
    """The weight in compressed rows, ``[out, in]``; values are copies."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
        return weight.detach().to_sparse_csr()


def _product(compressed: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    # CSR times a dense matrix is the product torch has a fast kernel for, so the transposed result is computed.
    result = (compressed @ flat.t()).t() if len(flat) > 1 else torch.mv(compressed, flat[0])[None]
    if bias is not None:
        result = result + bias
    return result.reshape(*x.shape[:-1], compressed.shape[0])
