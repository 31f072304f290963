"""What the user's model is: which module consumes whose output (layer 1)."""
