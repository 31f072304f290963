"""Where to clip a range before it is quantized (layer 1)."""
