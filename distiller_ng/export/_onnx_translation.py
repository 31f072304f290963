"""Our operators in ONNX: QuantizeLinear and DequantizeLinear (layer 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distiller_ng.export._dequantize import DEQUANTIZE, FAKE_QUANTIZE
from distiller_ng.ops.optional import require

__all__ = ["OPSET", "translation_table"]

#: QuantizeLinear of 16 bit integers, DequantizeLinear of 4 bit ones.
OPSET = 21


def translation_table(*, clips_integers: bool = True) -> dict[Any, Callable[..., Any]]:
    """``custom_translation_table`` of ``torch.onnx.export`` for a quantized graph.

    ``clips_integers``: grids of fewer levels than their integer type has are cut after rounding, which ONNX Runtime
    wants; OpenVINO wants it before.
    """
    require("onnxscript", "onnx", "exporting to ONNX")
    from onnxscript import ir, opset21

    kind = ir.DataType
    short = {kind.INT8: (-128, 127), kind.UINT8: (0, 255)}
    full = {**short, kind.INT16: (-(2**15), 2**15 - 1), kind.UINT16: (0, 2**16 - 1)}
    op: Any = opset21

    def fake_quantize(x: Any, scale: Any, zero_point: Any, axis: int | None, qmin: int, qmax: int) -> Any:
        along = {} if axis is None else {"axis": axis}
        # OpenVINO computes nonsense for QuantizeLinear of 16 bits: rounding in floating point says the same.
        is_wide = not clips_integers and zero_point.dtype not in short
        is_short = clips_integers and zero_point.dtype in short
        is_cut = is_wide or (qmin, qmax) != full[zero_point.dtype]
        if axis is None:
            scale, zero_point = op.Squeeze(scale), op.Squeeze(zero_point)
        ends = [op.Constant(value_int=end) for end in (qmin, qmax)] if is_cut else []
        if is_cut and not is_short:  # ONNX Runtime clips no integers of 16 bits
            offset = op.Cast(zero_point, to=kind.FLOAT)
            x = op.Clip(x, *(op.Mul(op.Sub(op.Cast(end, to=kind.FLOAT), offset), scale) for end in ends))
        if is_wide:
            return op.Mul(op.Round(op.Div(x, scale)), scale)
        integers = op.QuantizeLinear(x, scale, zero_point, **along)
        if is_cut and is_short:
            # Not before rounding: a clip between a layer and its rounding keeps the two from being one kernel.
            integers = op.Clip(integers, *(op.CastLike(end, zero_point) for end in ends))
        return op.DequantizeLinear(integers, scale, zero_point, **along)

    def dequantize(integers: Any, scale: Any, zero_point: Any, axis: int | None) -> Any:
        along = {} if axis is None else {"axis": axis}
        if integers.dtype == kind.INT32:  # biases have no zero point
            return op.DequantizeLinear(integers, scale, **along)
        return op.DequantizeLinear(integers, scale, zero_point, **along)

    return {FAKE_QUANTIZE: fake_quantize, DEQUANTIZE: dequantize}
