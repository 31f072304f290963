"""The image-classification application and its data sets (layer 5)."""
