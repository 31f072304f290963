"""Pruning algorithms, one a file (layer 2)."""
