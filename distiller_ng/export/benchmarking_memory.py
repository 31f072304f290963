"""Peak memory of a model that runs in a process of its own (layer 4)."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distiller_ng.errors import DistillerError
from distiller_ng.export.benchmarking_runtimes import Subject, loaded
from distiller_ng.graph.inputs import ExampleInputs
from distiller_ng.graph.trace import evaluating, exported_program
from distiller_ng.names import unwrap

__all__ = ["peak_memory"]

_SECONDS = 300
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory(subject: Subject, inputs: ExampleInputs, threads: int) -> tuple[int | None, str]:
    """Bytes that loading the model and running it on ``inputs`` add to a process, and why that is not known.

    The interpreter and the runtime's library are not counted, weights and activations are. Not known (None) for
    models compiled by ``torch.compile``, whose compiler would count, for models that can neither be pickled nor traced,
    and where the system does not tell (it must be Linux).
    """
    if not _RESET.exists():
        return None, "peak memory is read from /proc, which this system does not have"
    if subject.runtime == "torch.compile":
        return None, "peak memory of torch.compile is not measured: its compiler would be counted"
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder, "task.pt")
        reason = _write(task, subject, inputs, threads)
        return (None, reason) if reason else _measured(task)


def _write(task: Path, subject: Subject, inputs: ExampleInputs, threads: int) -> str:
    """The task of the other process as a file, or why there is none."""
    about: dict[str, Any] = {"inputs": (inputs.args, dict(inputs.kwargs)), "threads": threads}
    if subject.path is not None and subject.path.suffix != ".pt2":
        torch.save({**about, "path": str(subject.path.resolve())}, task)
        return ""
    model = unwrap(subject.model)
    is_local = any(type(module).__module__ == "__main__" for module in model.modules())
    try:
        if is_local:  # the other process does not have its class
            program = exported_program(model, inputs)
            program_file = task.with_name("program.pt2")
            torch.export.save(program, program_file)
            torch.save({**about, "program": str(program_file)}, task)
        else:
            torch.save({**about, "model": model}, task)
    except (DistillerError, pickle.PicklingError, AttributeError, TypeError, RuntimeError, ValueError) as error:
        return f"peak memory is not measured: the model cannot go to another process ({str(error).splitlines()[0]})"
    return ""


def _measured(task: Path) -> tuple[int | None, str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", f"from {__name__} import main; main()", str(task)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, env=environment, check=False)
    except (subprocess.TimeoutExpired, OSError) as error:
        return None, f"peak memory is not measured: {error}"
    lines = done.stdout.split()
    if done.returncode or not lines or not lines[-1].isdecimal():
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return None, f"peak memory is not measured: {reason}"
    return int(lines[-1]), ""


def _run(task: Path) -> int:
    """In the process of its own: load, run three times, and return what that added at its peak."""
    about = torch.load(task, weights_only=False)  # written by the parent process a moment ago
    args, kwargs = about["inputs"]
    torch.set_num_threads(about["threads"])
    inputs = ExampleInputs(args, kwargs)
    held = _status("VmRSS") - _held_by(about)
    model = _model_of(about)
    _RESET.write_text("5")  # forget the peak so far
    with torch.no_grad(), evaluating(model):
        for _ in range(3):
            inputs.call(model)
    return max(_status("VmHWM") - held, 0)


def _model_of(about: dict[str, Any]) -> nn.Module:
    if "path" in about:
        return loaded(Path(about["path"]), about["threads"])
    if "program" in about:
        return _Program(torch.export.load(about["program"]).module())
    model: nn.Module = about["model"]
    return model


def _held_by(about: dict[str, Any]) -> int:
    """Bytes of the model that the task brought along: they count."""
    model = about.get("model")
    if not isinstance(model, nn.Module):
        return 0
    content = getattr(model, "content", b"")
    tensors = [*model.parameters(), *model.buffers()]
    return len(content) + sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _Program(nn.Module):
    """An exported program, whose own ``eval`` raises."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.__dict__["program"] = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["program"](*args, **kwargs)


def _status(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def main() -> None:
    """What the process of its own does: run the task that its argument names, and write the bytes."""
    sys.stdout.write(f"{_run(Path(sys.argv[1]))}\n")
