"""Where training progress is written: console, CSV, TensorBoard (layer 2)."""
