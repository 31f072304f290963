"""Sparse and packed files by the names that ``quantizer.convert`` and ``export_model`` take (layer 4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from distiller_ng.errors import ArgumentError, ExportError, did_you_mean
from distiller_ng.export.packed import PackedReport, save_packed
from distiller_ng.export.packed_contents import contents_of
from distiller_ng.export.sparse import save_sparse
from distiller_ng.graph.inputs import ExampleInputsLike
from distiller_ng.quantization._weights import QUANTIZABLE_LAYERS
from distiller_ng.quantization.exporters import EXPORTERS, Exporter, ExportReport, LayerPrecision, PathLike

__all__ = ["PackedExporter", "SparseExporter"]


@EXPORTERS.register("sparse")
class SparseExporter(Exporter):
    """Bit masks and nonzero values in safetensors: ``export_model(model, "sparse", images, "net.safetensors")``.

    See :func:`save_sparse`; :func:`load_packed` reads the file. The example inputs are not used: nothing is traced, and
    the values are exact. ``report.details["file"]`` is the :class:`PackedReport` with every tensor.
    """

    suffix: ClassVar[str] = ".safetensors"
    packages = ("safetensors",)
    extra = "export"
    target: ClassVar[str] = "sparse"
    options: ClassVar[tuple[str, ...]] = ()

    def issues(self, model: nn.Module, example_inputs: ExampleInputsLike = (), **options: Any) -> list[str]:
        """What cannot be stored."""
        try:
            contents_of(model)
        except ExportError as error:
            return [str(error)]
        return []

    def export(
        self, model: nn.Module, example_inputs: ExampleInputsLike, path: PathLike | None = None, **options: Any
    ) -> ExportReport:
        """Write the file. Raises :class:`ArgumentError` without ``path`` and for unknown options."""
        for name in options:
            if name not in self.options:
                raise ArgumentError(f"unknown option {name!r}. {did_you_mean(name, self.options)}", argument=(name,))
        if path is None:
            raise ArgumentError("this target is a file: pass path=...", argument=("path",))
        report = self._saved(model, path, options)
        layers = _layers(model, report)
        notes = ("weights are unpacked to floating point when they are loaded: this saves space, not time",)
        return ExportReport(
            self.target,
            (Path(report.path),),
            report.file_bytes,
            report.dense_bytes,
            layers,
            notes,
            model=None,
            details={"file": report},
        )

    def _saved(self, model: nn.Module, path: PathLike, options: dict[str, Any]) -> PackedReport:
        return save_sparse(model, path)


@EXPORTERS.register("packed")
class PackedExporter(SparseExporter):
    """Weights of one to eight bits in safetensors: ``quantizer.convert("packed", "net.safetensors", images)``.

    See :func:`save_packed`, whose ``bits``, ``group_size`` and ``keep`` are the options here.
    """

    target: ClassVar[str] = "packed"
    options: ClassVar[tuple[str, ...]] = ("bits", "group_size", "keep")

    def _saved(self, model: nn.Module, path: PathLike, options: dict[str, Any]) -> PackedReport:
        return save_packed(model, path, **options)


def _layers(model: nn.Module, report: PackedReport) -> tuple[LayerPrecision, ...]:
    """Every layer with weights: the bits they are stored in. Kernels compute in floating point."""
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    weights = {name for name, module in model.named_modules() if isinstance(module, QUANTIZABLE_LAYERS)}
    found = []
    for row in report.rows:
        name = row.name.removesuffix(".weight").removesuffix(".wrapped_module")
        if row.name.endswith("weight") and (name in weights or f"{name}.wrapped_module" in weights):
            bits = row.bits if row.encoding.startswith(("grid", "codebook")) else None
            reason = f"stored as {row.encoding}, computed in floating point"
            found.append(LayerPrecision(name, kinds.get(name, "").lower(), bits, None, reason))
    return tuple(found)
