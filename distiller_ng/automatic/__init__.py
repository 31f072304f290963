"""What the library decides for the user: candidates and their cost, first schedules, budgeted searches."""

from distiller_ng.automatic.candidates import Candidates, LayerChoice, PredictedCost, compressed_copy, predicted_cost
from distiller_ng.automatic.first import FirstSchedule, UnreachableTarget, first_schedule
from distiller_ng.automatic.search import search_compression
from distiller_ng.automatic.search_result import SearchCandidate, SearchResult

__all__ = [
    "Candidates",
    "FirstSchedule",
    "LayerChoice",
    "PredictedCost",
    "SearchCandidate",
    "SearchResult",
    "UnreachableTarget",
    "compressed_copy",
    "first_schedule",
    "predicted_cost",
    "search_compression",
]
