"""Flags of this example beyond the application's own."""

from __future__ import annotations

import argparse

from distiller_ng.apputils.classifier_greedy import add_greedy_arguments
from distiller_ng.knowledge_distillation import add_distillation_args
from distiller_ng.models import model_names


def add_cmdline_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add them to the application's parser, and return it."""
    parser.add_argument(
        "--save-untrained-model",
        action="store_true",
        help="also write a checkpoint of the model before training (for lottery-ticket experiments)",
    )
    add_distillation_args(parser, model_names(), enable_pretrained=True)
    add_greedy_arguments(parser)
    return parser
