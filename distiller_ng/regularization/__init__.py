"""Regularizers, one a file (layer 2)."""
