"""Saving, loading and resuming: one safe file format, exact resume, Distiller's signatures (layer 3).

A checkpoint holds plain data and tensors only (``torch.load(weights_only=True)`` reads it), appears in one step, and
restores a run bit for bit. This package knows neither schedules' text nor the model zoo: both are passed in.
"""

from distiller_ng.checkpoint.contents import Checkpoint, get_contents_table, read_checkpoint
from distiller_ng.checkpoint.deployment import load_model
from distiller_ng.checkpoint.loading import ModelFactory, load_checkpoint, load_lean_checkpoint, restore
from distiller_ng.checkpoint.record import TRANSFORMS, CompressionRecord, RecordEntry, StructuralTransform
from distiller_ng.checkpoint.resumable import LoadedScheduler
from distiller_ng.checkpoint.saving import save_checkpoint

__all__ = [
    "TRANSFORMS",
    "Checkpoint",
    "CompressionRecord",
    "LoadedScheduler",
    "ModelFactory",
    "RecordEntry",
    "StructuralTransform",
    "get_contents_table",
    "load_checkpoint",
    "load_lean_checkpoint",
    "load_model",
    "read_checkpoint",
    "restore",
    "save_checkpoint",
]
