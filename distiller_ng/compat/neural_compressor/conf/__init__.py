"""Neural Compressor's package of configurations (layer 5)."""
