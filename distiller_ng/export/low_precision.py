"""Models in 16-bit floating point: half the size, what is sensitive kept in 32 bits (layer 4)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from distiller_ng.errors import ArgumentError, ExportError, did_you_mean, listed
from distiller_ng.export.verification import compare
from distiller_ng.graph.inputs import ExampleInputs, ExampleInputsLike, as_example_inputs, flat_tensors
from distiller_ng.graph.trace import evaluating
from distiller_ng.names import canonical_name, unwrap
from distiller_ng.ops.table import Table
from distiller_ng.quantization._configuration import quantization_of
from distiller_ng.quantization._derived import Derived, derive_
from distiller_ng.quantization.exporters import Agreement
from distiller_ng.quantization.ptq_undo import leave_fast_paths_

__all__ = ["PrecisionReport", "convert_precision"]

_NORMS = (
    *(nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm),
    *(nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d),
)
_DTYPES = {"fp16": torch.float16, "float16": torch.float16, "bf16": torch.bfloat16, "bfloat16": torch.bfloat16}
_WIDE = (torch.float32, torch.float64)


class KeptInFloat32(Derived):
    """What a module gets that computes in 32 bits among others in 16: inputs become float32, results 16 bits again."""

    prefix: ClassVar[str] = "Float32"
    around: torch.dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own ``forward`` in float32."""
        args, kwargs = _cast((args, kwargs), torch.float32)
        return _cast(super().forward(*args, **kwargs), self.around)


class LowPrecision(Derived):
    """What the converted model itself gets: floating point inputs become 16 bits, results float32."""

    prefix: ClassVar[str] = "LowPrecision"
    inside: torch.dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own ``forward`` in 16 bits."""
        args, kwargs = _cast((args, kwargs), self.inside)
        return _cast(super().forward(*args, **kwargs), torch.float32)


@dataclass(frozen=True, slots=True)
class PrecisionReport:
    """What was converted; ``print(report)``. ``model`` takes and returns float32 like the original.

    ``tensors``: ``{parameter or buffer: its dtype now}``. ``kept``: ``{module: why it computes in 32 bits}``. ``bytes``
    and ``float_bytes``: of all tensors, after and before. ``vanished``: ``{tensor: weights too small for the format,
    now zero}``.
    """

    dtype: torch.dtype
    model: nn.Module = field(repr=False, compare=False)
    tensors: Mapping[str, torch.dtype]
    kept: Mapping[str, str]
    bytes: int
    float_bytes: int
    vanished: Mapping[str, int]
    agreement: Agreement | None = None

    def table(self) -> Table:
        """One row a tensor."""
        rows = tuple((name, str(dtype).removeprefix("torch.")) for name, dtype in self.tensors.items())
        title = f"{str(self.dtype).removeprefix('torch.')}: {self.bytes:,} bytes of {self.float_bytes:,}"
        return Table(title, ("Tensor", "Type"), rows)

    def __str__(self) -> str:
        lines = [str(self.table())]
        lines += [f"kept in float32: {name} ({why})" for name, why in self.kept.items()]
        if self.vanished:
            lines.append(f"weights that became 0: {sum(self.vanished.values())} ({listed(self.vanished, limit=5)})")
        if self.agreement is not None:
            lines.append(f"against the original: {self.agreement}")
        return "\n".join(lines)


def convert_precision(
    model: nn.Module,
    dtype: str | torch.dtype,
    example_inputs: ExampleInputsLike | None = None,
    *,
    keep: Sequence[str] = (),
    tolerance: float | None = 0.05,
) -> PrecisionReport:
    """A copy of ``model`` that computes in 16-bit floating point: ``"fp16"`` or ``"bf16"``; the original stays.

    Norms and softmax modules compute in float32 (casts stand around them), and so do the modules named in ``keep``,
    whole subtrees. Parameters keep being tied; inputs and outputs stay float32. With ``example_inputs`` the copy is
    compared with the model; ``tolerance`` is the largest accepted noise (RMS of the difference over RMS of the output),
    None accepts all. ::

        report = convert_precision(model, "bf16", images)
        print(report)                               # what is in which type
        save_sparse(report.model, "net.bf16.safetensors")
        again = load_packed(lambda: convert_precision(make_net(), "bf16").model, "net.bf16.safetensors")

    A model of 1,000,000 float32 weights takes 4 MB, the copy 2 MB. Limits: fp16 is for GPUs; on x86 processors without
    AMX or AVX512-FP16 both types save memory, not time.

    Raises :class:`ArgumentError` for another type, names that do not exist and a quantized model; :class:`ExportError`,
    naming the tensor or the module, for weights beyond 65504 in fp16, values that are not finite, activations that
    overflow, and more noise than ``tolerance``.
    """
    wanted = _dtype(dtype)
    plain = unwrap(model)
    if not isinstance(plain, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module, got {type(model).__name__}", argument=("model",))
    if quantization_of(plain) is not None:
        message = "the model is quantized: its grids need float32. Export it to 'onnx', 'openvino' or 'torchao'"
        raise ArgumentError(message, argument=("model",))
    names = {canonical_name(name) for name, _ in plain.named_modules()}
    unknown = [name for name in ([keep] if isinstance(keep, str) else keep) if name not in names]
    if isinstance(keep, str) or unknown:
        hint = did_you_mean(unknown[0], names) if unknown else "write a list"
        raise ArgumentError(f"keep is a list of module names, got {keep!r}. {hint}", argument=("keep",))
    converted = copy.deepcopy(plain).eval()
    kept = _kept(converted, set(keep))
    vanished = _convert_(converted, kept, wanted)
    leave_fast_paths_(converted)  # they read the weights of norms as if they were of the same type
    for name in kept:
        module = converted.get_submodule(_raw(converted, name))
        derive_(module, KeptInFloat32)
        module.__dict__["around"] = wanted
    derive_(converted, LowPrecision)
    converted.__dict__["inside"] = wanted
    agreement = None
    if example_inputs is not None:
        agreement = _compared(plain, converted, as_example_inputs(example_inputs), tolerance)
    state = {canonical_name(name): value for name, value in converted.state_dict().items()}
    return PrecisionReport(
        wanted,
        converted,
        {name: value.dtype for name, value in state.items()},
        kept,
        _size(converted),
        _size(plain),
        vanished,
        agreement,
    )


def _dtype(dtype: Any) -> torch.dtype:
    found = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or found not in _DTYPES.values():
        raise ArgumentError(f"dtype is 'fp16' or 'bf16', got {dtype!r}", argument=("dtype",))
    return found


def _kept(model: nn.Module, keep: set[str]) -> dict[str, str]:
    """Names of the modules that stay in float32, outermost ones alone, and why."""
    kept: dict[str, str] = {}
    for full, module in model.named_modules():
        name = canonical_name(full)
        if not name or any(name.startswith(f"{outer}.") for outer in kept):
            continue
        if name in keep:
            kept[name] = "as asked"
        elif isinstance(module, _NORMS):
            kept[name] = f"{type(module).__name__} sums over many values"
    return kept


def _convert_(model: nn.Module, kept: Mapping[str, str], dtype: torch.dtype) -> dict[str, int]:
    """Convert every tensor outside ``kept``, in place; how many weights of each became zero."""
    tensors: dict[str, Tensor] = {}
    held: set[int] = set()
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for full, tensor in named:
        name = canonical_name(full)
        if any(name.startswith(f"{module}.") for module in kept):
            held.add(id(tensor))
        elif tensor.is_floating_point() and tensor.dtype in _WIDE:
            tensors[name] = tensor
    limit = torch.finfo(dtype).max
    for name, tensor in tensors.items():
        if id(tensor) in held:
            raise ExportError(f"{name} is tied to a tensor that stays in float32: put both modules into keep, or none")
        largest = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
        if not largest <= limit:  # NaN included
            raise ExportError(
                f"{name} has the value {largest:g}, and {str(dtype).removeprefix('torch.')} ends at {limit:g}: use "
                "bf16, or put its module into keep"
            )
    vanished: dict[str, int] = {}
    done: set[int] = set()
    for name, tensor in tensors.items():
        if id(tensor) in done:
            continue
        done.add(id(tensor))
        low = tensor.detach().to(dtype)
        lost = int(((low == 0) & (tensor.detach() != 0)).sum())
        if lost:
            vanished[name] = lost
        tensor.data = low
    return vanished


def _compared(model: nn.Module, converted: nn.Module, inputs: ExampleInputs, tolerance: float | None) -> Agreement:
    overflows: list[str] = []
    handles = [
        module.register_forward_hook(_watch(canonical_name(name), overflows))
        for name, module in converted.named_modules()
        if name
    ]
    try:
        with torch.no_grad(), evaluating(converted):
            inputs.call(converted)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ExportError(
            f"the model does not run in 16 bits: {reason}. Put the module that is not ready for it into keep"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if overflows:
        raise ExportError(
            f"the output of {overflows[0]!r} is not finite in 16 bits on the example inputs: use bf16, or put it into "
            "keep"
        )
    return compare(model, converted, inputs, tolerance=tolerance)


def _watch(name: str, found: list[str]) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        finite = (bool(torch.isfinite(one).all()) for one in flat_tensors(output) if one.is_floating_point())
        before = (bool(torch.isfinite(one).all()) for one in flat_tensors(args) if one.is_floating_point())
        if not all(finite) and all(before):
            found.append(name)

    return hook


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, value)


def _raw(model: nn.Module, canonical: str) -> str:
    names: dict[str, str] = {canonical_name(name): name for name, _ in model.named_modules()}
    return names[canonical]


def _size(model: nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
