"""Architectures for 32 x 32 colour images (layer 5)."""
