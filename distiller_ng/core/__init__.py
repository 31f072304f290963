"""The *when*: scheduler, policy base, windows, lifecycle and masks. Knows no algorithm (layer 1)."""
