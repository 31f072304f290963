"""The table every report is made of (layer 4; it is defined further down so that loggers can use it)."""

from distiller_ng.ops.table import Cell, Table, pretty_int, size_to_str

__all__ = ["Cell", "Table", "pretty_int", "size_to_str"]
