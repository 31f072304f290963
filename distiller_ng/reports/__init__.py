"""Summaries as data: a dataclass first, then a table, CSV or JSON (layer 4)."""
