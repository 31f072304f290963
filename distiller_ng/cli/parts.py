"""What a command of one's own is put together from: arguments for models and data, and printing (layer 5)."""

from __future__ import annotations

from distiller_ng.cli._data import add_data_arguments, add_evaluate_argument, evaluation
from distiller_ng.cli._loaders import add_loaders_argument, required_loaders
from distiller_ng.cli._models import add_model_arguments, given_model, required_model
from distiller_ng.cli._printing import add_json_argument, print_json, print_result, say

__all__ = [
    "add_data_arguments",
    "add_evaluate_argument",
    "add_json_argument",
    "add_loaders_argument",
    "add_model_arguments",
    "evaluation",
    "given_model",
    "print_json",
    "print_result",
    "required_loaders",
    "required_model",
    "say",
]
