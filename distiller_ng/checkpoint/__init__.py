"""Saving, loading and resuming (layer 3)."""
