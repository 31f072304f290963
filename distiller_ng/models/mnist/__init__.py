"""Architectures for 28 x 28 grey images (layer 5)."""
