"""Language models (layer 5)."""
