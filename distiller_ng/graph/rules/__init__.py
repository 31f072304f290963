"""How each family of operators carries channel labels: one file a family (layer 1)."""
