"""What the library decides for the user: candidates and their cost, first schedules, budgeted searches."""

from distiller_ng.automatic.candidates import Candidates, LayerChoice, PredictedCost, compressed_copy, predicted_cost

__all__ = ["Candidates", "LayerChoice", "PredictedCost", "compressed_copy", "predicted_cost"]
