import json
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from distiller_ng.errors import ArgumentError
from distiller_ng.export.benchmarking import benchmark_model
from distiller_ng.export.benchmarking_memory import peak_memory
from distiller_ng.export.benchmarking_runtimes import as_subject
from distiller_ng.graph.inputs import ExampleInputs
from distiller_ng.modules import EltwiseAdd
from distiller_ng.quantization.exporters import export_model


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


IMAGES = torch.randn(3, 64)


def test_rows_hold_what_was_measured():
    slow = nn.Sequential(*(nn.Linear(64, 64) for _ in range(40)))
    result = benchmark_model({"fast": net(), "slow": slow}, IMAGES, batches=(1, 16), seconds=0.05, memory=False)
    fast, slow_row = result.rows
    assert (fast.runtime, fast.precision) == ("torch", "float32")
    assert list(fast.latency) == [1, 16]
    assert fast.throughput[16] == pytest.approx(16000 / fast.latency[16])
    assert fast.speedup == {1: 1.0, 16: 1.0}
    assert slow_row.speedup[16] < 0.7
    assert result["slow"] is slow_row
    parameters = sum(p.numel() * 4 for p in net().parameters())
    assert parameters < fast.file_bytes < parameters + 4096
    assert min(result.rounds.values()) >= 5
    text = str(result)
    assert "ms, batch 16" in text and "fast" in text and "1 of" in text
    assert json.loads(result.to_json())["rows"][0]["name"] == "fast"


def test_one_model_needs_no_name(tmp_path):
    result = benchmark_model(net(), IMAGES, batches=4, seconds=0.0, memory=False, clock="cpu")
    assert result.rows[0].name == "model"
    assert result.clock == "cpu"
    result.to_json(tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text())["machine"]["threads"] == 1


def test_modes_and_threads_are_as_before():
    model = net().train()
    threads = torch.get_num_threads()
    benchmark_model(model, IMAGES, batches=(1,), seconds=0.0, threads=1, memory=False)
    assert model.training and torch.get_num_threads() == threads


def test_files_run_in_their_runtime(tmp_path):
    path = tmp_path / "net.onnx"
    export_model(net(), "onnx", IMAGES, path)
    result = benchmark_model({"torch": net(), "file": path}, IMAGES, batches=(1, 8), seconds=0.0, memory=False)
    row = result["file"]
    assert (row.runtime, row.precision) == ("ONNX Runtime", "float32")
    assert row.file_bytes == path.stat().st_size


def test_half_precision_and_simulations_are_named():
    assert as_subject("x", net().bfloat16(), 1).precision == "bfloat16"
    assert as_subject("x", nn.ReLU(), 1).precision == "-"
    assert as_subject("x", torch.compile(net()), 1).runtime == "torch.compile"


@pytest.mark.slow
def test_peak_memory_counts_weights_and_activations():
    small, large = nn.Sequential(nn.Linear(64, 10)), nn.Sequential(nn.Linear(64, 1 << 18), nn.Linear(1 << 18, 4))
    subjects = [as_subject("x", model, 1) for model in (small, large)]
    peaks = [peak_memory(subject, ExampleInputs((IMAGES,)), 1) for subject in subjects]
    assert [reason for _, reason in peaks] == ["", ""]
    assert peaks[0][0] < 30e6
    assert 70e6 < peaks[1][0] < 140e6


@pytest.mark.slow
def test_models_of_a_script_are_traced_for_the_other_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import torch
            from torch import nn
            from distiller_ng.export.benchmarking import benchmark_model

            class Mine(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.fc = nn.Linear(64, 4)
                def forward(self, x):
                    return self.fc(x)

            row = benchmark_model(Mine(), torch.randn(2, 64), batches=(2,), seconds=0.0).rows[0]
            print(row.peak_memory is not None, row.note)
            """
        )
    )
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": ""}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "True", done.stderr


def test_what_cannot_be_measured_says_why():
    compiled = as_subject("x", torch.compile(net()), 1)
    peak, reason = peak_memory(compiled, ExampleInputs((IMAGES,)), 1)
    assert peak is None and "compiler would be counted" in reason
    odd = nn.Sequential(net())
    odd.generator = (number for number in range(3))
    peak, reason = peak_memory(as_subject("x", odd, 1), ExampleInputs((IMAGES,)), 1)
    assert peak is None and "cannot go to another process" in reason


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ({}, {}, "measures models, got none"),
        ({"a": 3}, {}, "'a' must be a model or the path of a file, got int"),
        (net(), {"batches": ()}, "batches: whole numbers from 1"),
        (net(), {"batches": (0,)}, "batches: whole numbers from 1"),
        (net(), {"threads": 0}, "threads: whole numbers from 1"),
        (net(), {"seconds": float("nan")}, "seconds is a number from 0"),
        (net(), {"clock": "sun"}, "clock is one of cpu, wall"),
        (EltwiseAdd(), {"batches": (2,)}, "'model' does not run with batch 2"),
    ],
)
def test_wrong_arguments(models, options, message):
    with pytest.raises(ArgumentError, match=message):
        benchmark_model(models, {"a": IMAGES} if isinstance(models, EltwiseAdd) else IMAGES, memory=False, **options)


def test_wrong_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="model 'x'"):
        benchmark_model({"x": tmp_path / "none.onnx"}, IMAGES)
    (tmp_path / "net.safetensors").write_bytes(b"")
    with pytest.raises(ArgumentError, match="load others first"):
        benchmark_model({"x": tmp_path / "net.safetensors"}, IMAGES)
