"""Learning-rate schedules as functions of the absolute epoch (layer 2)."""
