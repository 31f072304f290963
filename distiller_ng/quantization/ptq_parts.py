"""Parts of a model that post-training quantization adds to its modules: functions, and recurrent layers' (layer 2)."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from distiller_ng.data_loggers.quant_stats_file import QuantStats, load_quant_stats
from distiller_ng.errors import CalibrationError, listed
from distiller_ng.modules.recurrent_parts import (
    RecurrentParts,
    place_recurrent_parts_,
    recurrent_parts,
    shown_recurrent_parts,
)
from distiller_ng.names import canonical_name
from distiller_ng.quantization._functions import (
    Functions,
    attach_functions_,
    functions_called,
    functions_in_stats,
    possible_functions,
    shown_functions,
)
from distiller_ng.quantization._weights import is_quantizable
from distiller_ng.quantization.ptq_replacing import leaves_alone
from distiller_ng.quantization.ptq_settings import StatisticsError, StatisticsFileError
from distiller_ng.quantization.q_utils import QBits
from distiller_ng.quantization.range_linear_output import is_called

__all__ = ["ModelParts", "check_statistics", "given_statistics"]


_COMPUTING = frozenset(
    {
        *("scaled_dot_product_attention", "einsum", "addmm", "baddbmm", "linear", "conv1d", "conv2d", "conv3d"),
        *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    }
)
_IN_FLOATING_POINT = "computes in floating point; its output is quantized"


def given_statistics(source: str | os.PathLike[str] | Mapping[str, Any], model: nn.Module) -> QuantStats:
    """:func:`load_quant_stats`, with errors that tell a schedule's reader where the statistics were given.

    Layers may be missing that never run (heads for training alone); :func:`check_statistics` looks for others. A bare
    ``nn.Module`` is what schedules are checked with where no model is given: any statistics will do for it.
    Raises :class:`StatisticsFileError` (a ``FileNotFoundError``) and :class:`StatisticsError`.
    """
    place = ("model_activation_stats",)
    try:
        return load_quant_stats(source, None if type(model) is nn.Module else model, allow_missing=True)
    except FileNotFoundError:
        text = f"the statistics file {str(source)!r} does not exist (relative paths start at {os.getcwd()!r})"
        raise StatisticsFileError(f"{text}: make it with collect_quant_stats(model, test_fn)", argument=place) from None
    except CalibrationError as error:
        raise StatisticsError(str(error), argument=place) from error


def check_statistics(
    model: nn.Module, stats: QuantStats, qbits: Mapping[str, QBits], ran: Collection[str] | None
) -> None:
    """Raise :class:`CalibrationError` for layers to quantize that run (``ran``; None: any may) without statistics."""
    missing = [
        name
        for name, module in model.named_modules()
        if is_quantizable(module)
        and not isinstance(module, nn.Embedding)
        and qbits.get(name, QBits(None, None, None)).acts is not None
        and canonical_name(name) not in stats
        and (ran is None or canonical_name(name) in ran)
    ]
    if missing:
        raise CalibrationError(
            f"the statistics belong to another model than this {type(model).__name__}: layers that only the model has: "
            f"{listed(missing)}. Collect statistics of this model with collect_quant_stats(model, test_fn), or leave "
            "these layers in floating point with overrides that are null"
        )


class ModelParts:
    """What one model has besides its modules: the functions it calls, as far as they are known, and what its
    ``nn.LSTM`` and ``nn.GRU`` become.

    ``functions`` are those that calibration statistics name and, once :meth:`place_` has run the model, those it calls;
    ``called`` names the latter.
    """

    def __init__(self, model: nn.Module, stats: QuantStats | None, overrides: Any) -> None:
        self._model = model
        self._is_placed = False
        self.called: set[str] = set()
        self.functions: Functions = {} if stats is None else functions_in_stats(model, stats)
        self.recurrent = self._recurrent_layers(stats, overrides)

    def _recurrent_layers(self, stats: QuantStats | None, overrides: Any) -> RecurrentParts:
        """Of the layers whose parts have statistics or need none, unless an override that is null, or sets all bits to
        null, names the layer itself.
        """
        given = overrides.items() if isinstance(overrides, Mapping) else ()
        kept = {canonical_name(str(key)) for key, entry in given if leaves_alone(entry)}
        return {
            name: part
            for name, part in recurrent_parts(self._model).items()
            if canonical_name(name) not in kept
            and (stats is None or any(known.startswith(f"{canonical_name(name)}.") for known in stats))
        }

    @property
    def cannot_be_traced(self) -> bool:
        """Whether there is a bidirectional LSTM made of modules, which may be prepared without being traced."""
        modules = [*self._model.modules(), *self.recurrent.values()]
        return any(is_called(module, "DistillerLSTM") and getattr(module, "bidirectional", False) for module in modules)

    @contextmanager
    def shown(self, functions: Functions | None = None) -> Iterator[None]:
        """Inside, ``model.named_modules()`` has everything (or ``functions`` in place of the known ones)."""
        if self._is_placed:
            yield
            return
        known = self.functions if functions is None else functions
        with shown_recurrent_parts(self._model, self.recurrent), shown_functions(self._model, known):
            yield

    def notes(self) -> dict[str, str]:
        """About functions with weights or products that integers could compute, and do not."""
        found = {canonical_name(name): module for name, module in self.functions.items()}
        return {name: _IN_FLOATING_POINT for name, module in found.items() if module.kind in _COMPUTING}

    def possible(self, patterns: Mapping[str, Any]) -> Functions:
        """Functions that overrides may be about where no statistics say which ones there are."""
        with self.shown():
            return possible_functions(self._model, patterns)

    def place_(self, dummy_input: Any) -> None:
        """Put everything into the model for good; ``dummy_input``, if there is one, shows which functions it calls."""
        place_recurrent_parts_(self._model, self.recurrent)
        if dummy_input is not None:
            called = functions_called(self._model, dummy_input)
            self.called = {canonical_name(name) for name in called}
            self.functions = {**self.functions, **called}
        attach_functions_(self._model, self.functions)
        self._is_placed = True

    def forget(self) -> None:
        """The model was put back to what it was before :meth:`place_`."""
        self._is_placed = False
