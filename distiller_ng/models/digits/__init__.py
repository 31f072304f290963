"""Architectures for 8 x 8 grey images (layer 5)."""
