"""Sparsity as a function of progress, one curve a file (layer 2)."""
