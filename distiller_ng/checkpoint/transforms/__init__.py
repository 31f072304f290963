"""Structural transforms a checkpoint can replay: one file each, registered in ``TRANSFORMS`` (layer 3)."""
