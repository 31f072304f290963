"""Tools for ``ptq.py``: each makes a quantized model of a case and returns how to run it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _ptq_cases import Case
from torch import Tensor

Run = Callable[[Tensor], Tensor]


@dataclass
class Quantized:
    """``run``: the model in its runtime, one thread; ``bytes``: of its files; ``seconds``: of process time to make."""

    run: Run
    bytes: int
    seconds: float
    note: str = ""


def onnx_run(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def float_onnx(case: Case, folder: Path) -> Path:
    path = folder / f"{case.name}.onnx"
    if not path.exists():
        shapes = ({0: torch.export.Dim("batch", min=1, max=4096)},)
        example = case.test[:2]
        program = torch.export.export(case.model, (example,), dynamic_shapes=shapes, strict=False)
        torch.onnx.export(program, (), str(path), dynamo=True, verbose=False, external_data=False)
    return path


def fp32(case: Case, folder: Path) -> Quantized:
    """The floating point model in ONNX Runtime."""
    path = float_onnx(case, folder)
    return Quantized(onnx_run(path), path.stat().st_size, 0.0)


def ours(case: Case, folder: Path, effort: str = "normal") -> Quantized:
    """``distiller_ng.quantize`` and its ONNX file."""
    import distiller_ng

    start = time.process_time()
    quantized = distiller_ng.quantize(case.model, case.calibration.split(16), effort=effort)
    path = folder / f"{case.name}_ours_{effort}.onnx"
    seconds = time.process_time() - start
    report = quantized.convert("onnx", path, tolerance=None)
    note = f"{len(report.quantized)} of {len(report.layers)} layers; " + "; ".join(quantized.steps)
    return Quantized(onnx_run(path), path.stat().st_size, seconds, note)


def ours_fast(case: Case, folder: Path) -> Quantized:
    """The same with ``effort="fast"``: minimum and maximum, biases corrected."""
    return ours(case, folder, "fast")


def onnxruntime_static(case: Case, folder: Path) -> Quantized:
    """ONNX Runtime's ``quantize_static``: QDQ, uint8 activations, int8 weights, per channel, minimum and maximum."""
    from onnxruntime import quantization as ort
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, ready, path = (folder / f"{case.name}{end}.onnx" for end in ("", "_ready", "_ort"))
    float_onnx(case, folder)
    start = time.process_time()
    try:
        quant_pre_process(str(source), str(ready))
    except Exception:  # it raises all kinds of errors over symbolic shapes, and goes on without
        quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)

    class Reader(ort.CalibrationDataReader):
        def __init__(self) -> None:
            import onnx

            name = onnx.load(str(source)).graph.input[0].name
            self.batches = iter({name: x.numpy()} for x in case.calibration.split(16))

        def get_next(self) -> Any:
            return next(self.batches, None)

    ort.quantize_static(
        str(ready), str(path), Reader(), per_channel=True, quant_format=ort.QuantFormat.QDQ,
        activation_type=ort.QuantType.QUInt8, weight_type=ort.QuantType.QInt8,
    )  # fmt: skip
    return Quantized(onnx_run(path), path.stat().st_size, time.process_time() - start)


def nncf_openvino(case: Case, folder: Path) -> Quantized:
    """NNCF's post-training quantization of the OpenVINO model (mixed preset, its default of 300 samples)."""
    import nncf
    import openvino

    model = openvino.convert_model(str(float_onnx(case, folder)))
    start = time.process_time()
    data = nncf.Dataset([x.numpy() for x in case.calibration.split(1)])
    kind = {"model_type": nncf.ModelType.TRANSFORMER} if case.test.dtype == torch.int64 else {}
    model = nncf.quantize(model, data, preset=nncf.QuantizationPreset.MIXED, **kind)
    seconds = time.process_time() - start
    path = folder / f"{case.name}_ov.xml"
    openvino.save_model(model, str(path), compress_to_fp16=False)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": 1})
    size = path.stat().st_size + path.with_suffix(".bin").stat().st_size
    return Quantized(lambda x: torch.from_numpy(np.array(compiled(x.numpy())[0])), size, seconds)


def torchao_pt2e(case: Case, folder: Path) -> Quantized:
    """torchao PT2E with the x86 inductor quantizer, run eagerly for its outputs."""
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    start = time.process_time()
    shapes = ({0: torch.export.Dim("batch", min=1, max=4096)},)
    exported = torch.export.export(copy.deepcopy(case.model), (case.test[:2],), dynamic_shapes=shapes).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    with torch.no_grad():
        for x in case.calibration.split(16):
            prepared(x)
    converted = convert_pt2e(prepared)
    seconds = time.process_time() - start

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = converted(x)
        return found

    return Quantized(run, 0, seconds, "simulated: its time is not that of compiled code")


TOOLS: dict[str, Callable[[Case, Path], Quantized]] = {
    "fp32": fp32,
    "ours": ours,
    "ours_fast": ours_fast,
    "onnxruntime": onnxruntime_static,
    "nncf_openvino": nncf_openvino,
    "torchao": torchao_pt2e,
}
