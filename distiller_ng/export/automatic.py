"""``quantize(model, calibration_loader)``: post-training quantization that chooses by itself what to do (layer 4)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from distiller_ng.errors import ArgumentError
from distiller_ng.export._automatic_choices import EFFORTS, TARGETS, AutomaticSettings
from distiller_ng.export._automatic_search import search
from distiller_ng.export._automatic_trial import Outcome
from distiller_ng.names import unwrap
from distiller_ng.ops.linear_quantization import check_bits
from distiller_ng.ops.table import Table
from distiller_ng.quantization.calibration_batches import CalibrationBatches
from distiller_ng.quantization.exporters import ExportReport, PathLike
from distiller_ng.quantization.post_train import PostTrainLinearQuantizer

__all__ = ["QuantizedModel", "quantize"]

logger = logging.getLogger(__name__)


@dataclass
class QuantizedModel:
    """A quantized copy of a model, with what was done to it; ``print(quantized.summary())``.

    ``model``: simulates the integers; called like the original, by calling this object. ``quantizer``: what prepared
    it, with all its functions. ``reference``: the floating point model it was made of, batch norms folded and channels
    equalized. ``sqnr_db`` and ``agreement``: on the batches that were held back, against the original. ``steps``: what
    was tried, in order, with the SQNR it gave. ``example_inputs``: up to 16 of the samples that were held back.
    """

    model: nn.Module
    quantizer: PostTrainLinearQuantizer
    reference: nn.Module
    sqnr_db: float
    agreement: float
    steps: tuple[str, ...]
    layers: Table = field(repr=False)
    floating: Mapping[str, str] = field(repr=False)
    example_inputs: Any = field(repr=False, default=None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the simulation computes."""
        return self.model(*args, **kwargs)

    def summary(self) -> str:
        """Every layer with its bits, what was done, why it was not quantized, and the SQNR it alone would leave."""
        agreement = "" if self.agreement != self.agreement else f", top-1 agreement {self.agreement:.1%}"
        head = f"on data held back: SQNR {self.sqnr_db:.1f} dB{agreement}"
        return "\n".join([head, *(f"- {step}" for step in self.steps), str(self.layers)])

    def __str__(self) -> str:
        return self.summary()

    def convert(self, target: str = "onnx", path: PathLike | None = None, **options: Any) -> ExportReport:
        """Write it for a runtime: ``quantized.convert("onnx", "model.onnx")``; see ``Quantizer.convert``.

        The file is compared with the simulation on ``example_inputs``; ``dummy_input`` among the options replaces them.
        """
        options.setdefault("dummy_input", self.example_inputs)
        report: ExportReport = self.quantizer.convert(target, path, **options)
        return report


def quantize(
    model: nn.Module,
    calibration_loader: Iterable[Any],
    *,
    example_inputs: Any = None,
    target: str = "x86",
    bits_weights: int = 8,
    bits_activations: int | None = 8,
    quantize_output: bool = False,
    overrides: Mapping[str, Mapping[str, Any] | None] | None = None,
    min_sqnr: float | None = None,
    min_agreement: float | None = None,
    effort: str = "normal",
    depthwise: str = "auto",
    samples: int = 512,
    held_back: int = 64,
    seed: int = 0,
    time_limit_s: float = 300.0,
) -> QuantizedModel:
    """Quantize a trained model after training; the model itself stays as it is.

    ``calibration_loader``: a DataLoader or a list of batches (tensors, ``(inputs, target)``, mappings of keyword
    arguments) of what the model will see; no labels are used. The first ``samples`` are taken, of which about
    ``held_back`` are not calibrated with: they decide what is kept. ``example_inputs``: what the model is traced with
    (the first batch). ``target``: ``"x86"`` (uint8 activations) or ``"arm"`` (int8), asymmetric; weights are symmetric,
    each output channel with its own scale. ``bits_activations=None`` quantizes weights only. ``quantize_output``: also
    what the model returns. ``overrides``: patterns and settings as :class:`PostTrainLinearQuantizer` takes them; they
    come before what is chosen here.

    What happens: batch norms are folded; ranges of activations are observed in one pass. Then each of these is tried
    and kept where the SQNR of the outputs on the held back batches rises: ranges of least squared error instead of
    minimum and maximum; bias correction (:func:`correct_biases_`); equalization by activations (:func:`equalize_`);
    AdaRound (:func:`adaround_`). ``effort="fast"`` only corrects biases, ``"normal"`` rounds adaptively only for
    weights below 8 bits or when a target was missed, ``"high"`` always. ``time_limit_s``: AdaRound gets no more.

    ``min_sqnr`` (dB) and ``min_agreement`` (fraction of equal top-1 decisions): where they are missed, the layers that
    bring most noise for the time they save get 8 bits instead of fewer, then floating point, until they are met.
    Operators that gain nothing from integers stay in floating point, as do their outputs: norms, GELU, softmax and the
    like, sums in models with layer norms, LSTMs and GRUs (naming one in ``overrides`` quantizes it all the same).
    ``depthwise``: ``"int8"``, ``"float"``, or ``"auto"``: measured in ONNX Runtime where that is installed, otherwise
    ``"float"`` (integer depthwise convolutions ran at 0.65 of the speed of floating point where this was written).

    Two layers, 512 samples::

        quantized = distiller_ng.quantize(model, loader, min_sqnr=20)
        print(quantized.summary())
        quantized.convert("onnx", "model.onnx")

    Raises :class:`CalibrationError` for an empty loader and NaN, :class:`ArgumentError` for settings that cannot be,
    :class:`GraphError` for a model that cannot be traced.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module, got {type(model).__name__}", argument=("model",))
    settings = AutomaticSettings(
        target=_one_of("target", target, TARGETS),
        bits_weights=check_bits(bits_weights, low=2, high=8, argument="bits_weights"),
        bits_activations=None if bits_activations is None else check_bits(bits_activations, low=2, high=16),
        quantize_output=quantize_output,
        overrides=dict(overrides or {}),
        min_sqnr=_number("min_sqnr", min_sqnr, 200.0),
        min_agreement=_number("min_agreement", min_agreement, 1.0),
        effort=_one_of("effort", effort, EFFORTS),
        depthwise=_one_of("depthwise", depthwise, ("auto", "int8", "float")),
        seed=seed,
        time_limit_s=time_limit_s,
    )
    for name, value in (("samples", samples), ("held_back", held_back)):
        check_bits(value, high=1 << 30, argument=name)
    copied = copy.deepcopy(unwrap(model)).eval()
    data = CalibrationBatches.of(calibration_loader, copied, limit=samples)
    outcome: Outcome = search(copied, data, example_inputs, held_back, settings)
    for step in outcome.steps:
        logger.debug("%s", step)
    return QuantizedModel(
        outcome.model,
        outcome.quantizer,
        outcome.reference,
        outcome.score.sqnr_db,
        outcome.score.agreement,
        tuple(outcome.steps),
        outcome.table(),
        outcome.floating,
        outcome.compared,
    )


def _one_of(name: str, value: str, allowed: Iterable[str]) -> str:
    if value not in tuple(allowed):
        raise ArgumentError(f"{name} is one of {', '.join(allowed)}; got {value!r}", argument=(name,))
    return value


def _number(name: str, value: float | None, highest: float) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool | Tensor) or not isinstance(value, int | float) or not 0 <= value <= highest:
        raise ArgumentError(f"{name} is a number from 0 to {highest:g}, got {value!r}", argument=(name,))
    return float(value)
