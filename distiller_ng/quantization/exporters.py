"""What every exporter is, and what it reports: the registry that ``convert`` looks its target up in (layer 2).

The exporters themselves live above, in ``distiller_ng/export/``; the registry imports them when it is first asked.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from torch import nn

from distiller_ng.errors import ArgumentError, LifecycleError
from distiller_ng.graph.inputs import ExampleInputsLike
from distiller_ng.ops.optional import require
from distiller_ng.ops.table import Table
from distiller_ng.registry import Registry

__all__ = [
    "EXPORTERS",
    "Agreement",
    "ExportReport",
    "Exporter",
    "LayerPrecision",
    "PathLike",
    "check_exporter",
    "export_issues",
    "export_model",
]

PathLike: TypeAlias = "str | os.PathLike[str]"


@dataclass(frozen=True, slots=True)
class LayerPrecision:
    """What one layer of the exported model computes with.

    ``weight_bits`` and ``activation_bits`` (of its input) are None for floating point. ``reason``: why the layer
    computes in floating point; empty where it computes with integers.
    """

    name: str
    operator: str
    weight_bits: int | None
    activation_bits: int | None
    reason: str = ""

    @property
    def is_quantized(self) -> bool:
        """Whether it computes with integers."""
        return not self.reason


@dataclass(frozen=True, slots=True)
class Agreement:
    """The runtime's outputs against the simulation's on the example inputs.

    ``max_abs``: largest difference; ``max_steps``: the same in steps of the output's grid (None where the output is in
    floating point); ``noise``: RMS of the difference over RMS of the simulated output, ``10**(-sqnr_db / 20)``;
    ``top1``: fraction of samples whose largest output is the same one (None for outputs that are no scores).
    """

    max_abs: float
    noise: float
    sqnr_db: float
    top1: float | None = None
    max_steps: float | None = None
    samples: int = 0

    def __str__(self) -> str:
        steps = "" if self.max_steps is None else f" ({self.max_steps:.1f} steps of the output's grid)"
        top1 = "" if self.top1 is None else f", top-1 agrees on {self.top1:.1%}"
        samples = f"{self.samples} sample{'' if self.samples == 1 else 's'}"
        return f"largest difference {self.max_abs:.4g}{steps}, SQNR {self.sqnr_db:.1f} dB{top1}, {samples}"


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written and how it compares with the simulation; ``print(report)``.

    ``paths``: the files; ``bytes``: their size together, ``float_bytes``: the size of the model's parameters and
    buffers in floating point. ``layers``: every layer with weights, and what it computes with. ``agreement`` is None
    where the comparison was turned off. ``model`` is the exported model, callable like the original.
    """

    target: str
    paths: tuple[Path, ...]
    bytes: int
    float_bytes: int
    layers: tuple[LayerPrecision, ...] = ()
    notes: tuple[str, ...] = ()
    agreement: Agreement | None = None
    model: Any = field(default=None, repr=False, compare=False)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The file, or the first one of several. Raises :class:`LifecycleError` when nothing was written."""
        if not self.paths:
            raise LifecycleError("nothing was written: give convert() or export() a path")
        return self.paths[0]

    @property
    def quantized(self) -> dict[str, LayerPrecision]:
        """Layers that compute with integers, by name."""
        return {layer.name: layer for layer in self.layers if layer.is_quantized}

    @property
    def floating(self) -> dict[str, str]:
        """Why each other layer computes in floating point."""
        return {layer.name: layer.reason for layer in self.layers if not layer.is_quantized}

    def table(self) -> Table:
        """One row a layer."""
        rows = tuple(
            (layer.name, layer.operator, layer.weight_bits or "float", layer.activation_bits or "float", layer.reason)
            for layer in self.layers
        )
        return Table("Layers", ("Name", "Operator", "Weight bits", "Input bits", "Why in floating point"), rows)

    def __str__(self) -> str:
        ratio = f" ({self.bytes / self.float_bytes:.2f}x of floating point)" if self.float_bytes else ""
        files = ", ".join(path.name for path in self.paths) or "not written"
        lines = [f"{self.target}: {files}, {self.bytes:,} bytes{ratio}"]
        lines += self._about_layers()
        lines += [f"note: {note}" for note in self.notes]
        if self.agreement is not None:
            against = "simulation" if self.quantized else "model"
            lines.append(f"runtime against {against}: {self.agreement}")
        return "\n".join(lines)

    def _about_layers(self) -> list[str]:
        """One line where all stay in floating point for one reason, otherwise the table."""
        count, reasons = len(self.layers), set(self.floating.values())
        if not count:
            return []
        if self.quantized:
            return [f"{len(self.quantized)} of {count} layers compute with integers", str(self.table())]
        if len(reasons) == 1:
            return [f"{count} layer{'' if count == 1 else 's'} in floating point: {reasons.pop()}"]
        return [f"{count} layers, all computed in floating point", str(self.table())]


class Exporter(ABC):
    """Writes models for one runtime; subclasses register themselves in :data:`EXPORTERS`.

    ``suffix``: what file names get where none is given. ``packages``: what it needs besides torch.
    """

    suffix: ClassVar[str] = ""
    #: What has to be installed, and the extra of this package that installs it.
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""

    @abstractmethod
    def issues(self, model: nn.Module, example_inputs: ExampleInputsLike, **options: Any) -> list[str]:
        """Everything of ``model`` that cannot be exported or stays in floating point, one sentence each."""

    @abstractmethod
    def export(
        self, model: nn.Module, example_inputs: ExampleInputsLike, path: PathLike | None = None, **options: Any
    ) -> ExportReport:
        """Write ``model`` to ``path`` in one step and compare the file, as it runs, with the model; without ``path``
        the report's ``model`` is all there is.

        Raises :class:`ExportError` when the model cannot be exported or the file disagrees with it; nothing is left
        behind then, and the model is what it was.
        """


#: Exporters by the name that ``quantizer.convert(target)`` takes.
EXPORTERS: Registry[Exporter] = Registry("exporter", "distiller_ng.export")


def export_model(
    model: nn.Module, target: str, example_inputs: ExampleInputsLike, path: PathLike | None = None, **options: Any
) -> ExportReport:
    """Write a model, quantized or not, for the runtime ``target``: ``"onnx"``, ``"openvino"``, ``"torchao"``, ...

    ``example_inputs``: what one forward pass takes, best a batch of real data, since the file is compared with the
    model on it. Without ``path`` nothing is written, and the report's ``model`` runs. ``options``: see the exporter.
    Raises :class:`ArgumentError` for an unknown target and :class:`ExportError` for a model that cannot be exported::

        report = export_model(model, "onnx", images, "model.onnx")
        print(report)
    """
    exporter = _exporter(target, example_inputs)
    if path is not None and exporter.suffix and not Path(path).suffix:
        path = Path(path).with_suffix(exporter.suffix)
    return exporter.export(model, example_inputs, path, **options)


def export_issues(model: nn.Module, target: str, example_inputs: ExampleInputsLike, **options: Any) -> list[str]:
    """What cannot be exported to ``target`` or will stay in floating point there, one sentence each."""
    return _exporter(target, example_inputs).issues(model, example_inputs, **options)


def check_exporter(target: str) -> Exporter:
    """The exporter, if all it needs is installed; for callers that will work for long before they export.

    Raises :class:`ArgumentError` for an unknown target and a missing package.
    """
    found = EXPORTERS.get(target).cls()
    for package in found.packages:
        require(package, found.extra, f"exporting to {target}")
    return found


def _exporter(target: str, example_inputs: ExampleInputsLike | None) -> Exporter:
    found = check_exporter(target)
    if example_inputs is None:
        message = f"exporting to {target} needs an example of the model's inputs (dummy_input)"
        raise ArgumentError(message, argument=("dummy_input",))
    return found
