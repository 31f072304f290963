"""What a trial of ``quantize`` is made of: scores, what it returns, and looking things up (layer 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from distiller_ng.export._automatic_choices import AutomaticSettings
from distiller_ng.graph.inputs import ExampleInputs
from distiller_ng.names import canonical_name
from distiller_ng.ops.table import Table
from distiller_ng.quantization.calibration_batches import ModelInputs
from distiller_ng.quantization.post_train import PostTrainLinearQuantizer
from distiller_ng.quantization.ptq_layers import quantized_layers
from distiller_ng.quantization.range_linear_output import OutputGrid

__all__ = [
    "Outcome", "Score", "Trial", "costs_of", "example_of", "first_count", "input_shapes", "quantized_or_none",
    "take_back_",
]  # fmt: skip


@dataclass(frozen=True)
class Score:
    """Outputs against those of the floating point model; ``agreement`` is NaN for outputs that are no scores."""

    sqnr_db: float
    agreement: float

    @classmethod
    def of(cls, outputs: Tensor, reference: Tensor) -> Score:
        """``{"sqnr_db": 20}`` where the error's power is a hundredth of the signal's."""
        error = (outputs.double() - reference.double()).square().sum()
        power = reference.double().square().sum()
        if not bool(error.isfinite()):
            return cls(-math.inf, 0.0)
        ratio = math.inf if float(error) == 0 else 10 * math.log10(max(float(power), 1e-300) / float(error))
        if outputs.dim() < 2 or outputs.shape[-1] < 2:
            return cls(ratio, math.nan)
        return cls(ratio, float((outputs.argmax(-1) == reference.argmax(-1)).double().mean()))

    def meets(self, settings: AutomaticSettings) -> bool:
        """Whether both targets are met."""
        low_sqnr = settings.min_sqnr is not None and self.sqnr_db < settings.min_sqnr
        low_agreement = settings.min_agreement is not None and self.agreement < settings.min_agreement
        return not (low_sqnr or low_agreement)

    def __str__(self) -> str:
        agreement = "" if math.isnan(self.agreement) else f", agreement {self.agreement:.1%}"
        return f"{self.sqnr_db:.1f} dB{agreement}"


@dataclass
class Trial:
    """A prepared model and the floating point model it was made of."""

    quantizer: PostTrainLinearQuantizer
    reference: nn.Module
    stats: dict[str, Any]
    score: Score
    done: dict[str, set[str]] = field(default_factory=dict)  # layer -> what was done to it

    @property
    def model(self) -> nn.Module:
        return self.quantizer.model

    def note(self, what: str, names: Any) -> None:
        for name in names:
            self.done.setdefault(name, set()).add(what)


@dataclass
class Outcome:
    """What ``quantize`` returns, in parts."""

    quantizer: PostTrainLinearQuantizer
    reference: nn.Module
    score: Score
    steps: list[str]
    floating: dict[str, str]
    noise: dict[str, float]
    done: dict[str, set[str]]
    compared: Any

    @property
    def model(self) -> nn.Module:
        """The prepared model."""
        return self.quantizer.model

    def table(self) -> Table:
        """One row for each module that could be quantized."""
        wrappers = {
            canonical_name(name): module
            for name, module in self.model.named_modules()
            if isinstance(module, OutputGrid)
        }
        names = dict.fromkeys([*self.reference_order(), *wrappers, *self.floating])
        rows = []
        for name in names:
            wrapper = wrappers.get(name)
            if wrapper is None and name not in self.floating:
                continue
            rows.append(self._row(name, wrapper))
        columns = ("Name", "Type", "Weights", "Activations", "Done", "SQNR alone (dB)", "Why in floating point")
        return Table("Layers", columns, tuple(rows), decimals=1)

    def reference_order(self) -> list[str]:
        """Names of the floating point model's modules."""
        return [canonical_name(name) for name, _ in self.reference.named_modules()]

    def _row(self, name: str, wrapper: OutputGrid | None) -> tuple[Any, ...]:
        if wrapper is None:
            module = dict(self.model.named_modules()).get(name)
            kind = type(module).__name__ if module is not None else name.rpartition(".")[2]
            return (name, kind, "float", "float", "", None, self.floating[name])
        settings = getattr(wrapper, "wts_quant_settings", None)
        weights = "" if settings is None else settings.num_bits or "float"
        acts = wrapper.output_quant_settings.num_bits or "float"
        noise = self.noise.get(name)
        alone = None if not noise else -10 * math.log10(noise)
        kind = type(wrapper.wrapped_module).__name__
        why = "" if getattr(wrapper, "quantizes_output", True) else "its output"
        return (name, kind, weights, acts, ", ".join(sorted(self.done.get(name, ()))), alone, why)


def quantized_or_none(model: nn.Module) -> dict[str, Any]:
    """Layers with quantized weights; none is no mistake here."""
    try:
        return dict(quantized_layers(model))
    except RuntimeError:
        return {}


def first_count(order: list[str], noise: Mapping[str, float], settings: AutomaticSettings, score: Score) -> int:
    """How many layers to begin with, if noise adds up."""
    if settings.min_sqnr is None or score.sqnr_db >= settings.min_sqnr or not math.isfinite(score.sqnr_db):
        return min(len(order), max(1, len(order) // 16))
    left = sum(noise.values()) * 10 ** ((score.sqnr_db - settings.min_sqnr) / 10)
    total = sum(noise.values())
    for count, name in enumerate(order, start=1):
        total -= noise[name]
        if total <= left:
            return count
    return len(order)


def costs_of(trial: Trial) -> dict[str, float]:
    """Multiply-accumulates of each layer for one sample, as a fraction of all."""
    found: dict[str, float] = {}
    for name, wrapper in quantized_layers(trial.model).items():
        layer = wrapper.wrapped_module
        shape = trial.stats.get(name, {}).get("output", {}).get("shape", "")
        sizes = [int(part) for part in str(shape).strip("()").split(",") if part.strip().isdigit()]
        weight: Tensor = layer.weight  # type: ignore[assignment]
        found[name] = float(math.prod(sizes[1:]) * weight[0].numel()) if sizes else float(weight.numel())
    total = sum(found.values()) or 1.0
    return {name: value / total for name, value in found.items()}


def take_back_(model: nn.Module, before: Mapping[str, Tensor], biased: Mapping[str, bool]) -> None:
    """Put parameters and buffers back; biases there were none of go."""
    for name, wrapper in quantized_or_none(model).items():
        if wrapper.has_bias and not biased[name]:
            wrapper.wrapped_module.bias = None
            wrapper.has_bias = False
    own = model.state_dict()
    with torch.no_grad():
        for key, value in before.items():
            own[key].copy_(value)


def example_of(batch: ModelInputs, samples: int = 1) -> Any:
    """The first samples of a batch, in the form example inputs have."""
    size = batch.size

    def part(value: Any) -> Any:
        return value[:samples] if isinstance(value, Tensor) and value.dim() > 0 and len(value) == size else value

    args, kwargs = tuple(map(part, batch.args)), {key: part(value) for key, value in batch.kwargs.items()}
    if not kwargs:
        return args[0] if len(args) == 1 else args
    return kwargs if not args else ExampleInputs(args, kwargs)


def input_shapes(stats: Mapping[str, Any], modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """``(C, H, W)`` of what each convolution reads."""
    found = {}
    for name, module in modules.items():
        entry = (stats.get(name) or {}).get("inputs", {}).get(0)
        if isinstance(module, nn.Conv2d) and entry is not None:
            sizes = [int(part) for part in str(entry["shape"]).strip("()").split(",") if part.strip()]
            if len(sizes) == 4:
                found[name] = tuple(sizes[1:])
    return found
