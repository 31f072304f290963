"""The summary graph under Distiller's module name (re-exports)."""

from distiller_ng.graph.summary_graph import AdjacentsEntry, OpSimpleMetadata, SummaryGraph, onnx_name_2_pytorch_name

__all__ = ["AdjacentsEntry", "OpSimpleMetadata", "SummaryGraph", "onnx_name_2_pytorch_name"]
