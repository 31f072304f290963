"""Glue between one kind of component and the scheduler's hooks (layer 3)."""
