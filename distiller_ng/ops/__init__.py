"""Pure tensor functions: norms, rankings, thresholds, exact-k masks (layer 1)."""
