"""The languages a schedule can be written in, one a file (layer 4)."""
